"""containerd in a lab host, with what it needs of images and configuration, and its pods.

It is one of the host's daemons: `host.kill("containerd")` and `host.start("containerd")` work,
and it ends with the host. Its pods outlive it, as they do on any node, but not the host.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.daemon import Daemon
from lab.host import Host
from tests.functional.runtimes import conflist
from tests.functional.runtimes.conflist import Conflist
from tests.functional.runtimes.cri import Cri, CriError
from tests.functional.runtimes.images import BUSYBOX, PAUSE

NAME = "containerd"
CTR = ("ctr", "--namespace", "by-hand")
"""The command for containers that no kubelet knows."""

_CONFIGURATION = "/etc/containerd/config.toml"
_SOCKET = "/run/containerd/containerd.sock"
_CRI_NAMESPACE = "k8s.io"


@dataclass(frozen=True)
class Pod:
    """A pod that runs, with one container of busybox in it."""

    runtime: "Containerd"
    name: str
    sandbox: str
    container: str
    ips: tuple[str, ...]
    netns: str

    @property
    def ip(self) -> str:
        return self.ips[0]

    @property
    def netns_name(self) -> str:
        """In /run/netns of its host."""
        return self.netns.rpartition("/")[2]

    def run(self, *argv: str, check: bool = True, timeout_s: int = 10) -> str:
        """What a command prints in the pod's container."""
        code, output = self.runtime.cri.execute(self.container, argv, timeout_s)
        assert code == 0 or not check, f"{self.name}: {' '.join(argv)}: {output}"
        return output

    def answers_first_ping_to(self, ip: str) -> bool:
        """Whether one ping, without another try, is answered within a second."""
        return " 1 packets received" in self.run("ping", "-c", "1", "-W", "1", ip, check=False)

    def serve(self, port: int, text: str) -> None:
        """Have busybox's web server answer with this text."""
        page = f"mkdir -p /tmp/www && echo {text} >/tmp/www/index.html"
        self.run("sh", "-c", f"{page} && httpd -p {port} -h /tmp/www")

    def remove(self) -> None:
        """End it as a kubelet does."""
        self.runtime.cri.stop_sandbox(self.sandbox)
        self.runtime.cri.remove_sandbox(self.sandbox)


class Containerd:
    """A host's containerd. It is started by `start`, with the images and conflists given."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.cri = Cri(host.path(_SOCKET))

    @classmethod
    def install(
        cls, host: Host, archive: Path, handlers: Mapping[str, Conflist] | None = None
    ) -> "Containerd":
        """Have it running and ready.

        Its own configuration directory is /etc/cni/net.d. Each of `handlers` is one more runtime
        handler, with a conflist of its own, so that a pod chooses among several.
        """
        lists = dict(handlers or {})
        for name, config in lists.items():
            conflist.write(host, config, f"/etc/cni/{name}.d")
        _write_configuration(host, tuple(lists))
        host.daemons[NAME] = Daemon(
            name=NAME,
            argv=("containerd", "--config", _CONFIGURATION),
            log="/var/log/containerd.log",
            ready=_is_ready,
            timeout_s=30,
        )
        host.start(NAME)
        for namespace in (_CRI_NAMESPACE, CTR[2]):
            importing = ["ctr", "--namespace", namespace, "images", "import", str(archive)]
            host.run([*importing, "--snapshotter", "native"])
        return cls(host)

    def run_pod(
        self,
        name: str,
        *,
        handler: str = "",
        host_ports: Mapping[int, int] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Pod:
        """A new pod in the Kubernetes namespace `default`; CriError if it can't be had."""
        sandbox, config = self.cri.run_sandbox(
            name,
            namespace="default",
            uid=str(uuid.uuid4()),
            handler=handler,
            host_ports=host_ports,
            annotations=annotations,
        )
        container = self.cri.run_container(sandbox, config, BUSYBOX, ())
        addresses = self.cri.addresses(sandbox)
        return Pod(self, name, sandbox, container, addresses.ips, addresses.netns)

    @contextmanager
    def pod(self, name: str, handler: str = "") -> Iterator[Pod]:
        """A pod that is removed at the end."""
        pod = self.run_pod(name, handler=handler)
        try:
            yield pod
        finally:
            pod.remove()

    def remove_all(self) -> None:
        """Remove every pod that is listed, whatever its state, as a kubelet does after a crash."""
        for sandbox in self.cri.sandboxes():
            self.cri.stop_sandbox(sandbox.id)
            self.cri.remove_sandbox(sandbox.id)


def _is_ready(host: Host) -> bool:
    cri = Cri(host.path(_SOCKET))
    try:
        return cri.conditions()["RuntimeReady"]
    except CriError:
        return False
    finally:
        cri.close()


def _write_configuration(host: Host, handlers: tuple[str, ...]) -> None:
    """Snapshots are copies (`native`), which any file system can hold."""
    text = f"""
        version = 2
        root = "/var/lib/containerd"
        state = "/run/containerd"

        [grpc]
        address = "{_SOCKET}"

        [plugins."io.containerd.grpc.v1.cri"]
        sandbox_image = "{PAUSE}"
        restrict_oom_score_adj = true

        [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "{conflist.PROGRAMS}"
        conf_dir = "{conflist.DIRECTORY}"

        [plugins."io.containerd.grpc.v1.cri".containerd]
        snapshotter = "native"

        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
    """
    for name in handlers:
        text += f"""
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{json.dumps(name)}]
        runtime_type = "io.containerd.runc.v2"
        cni_conf_dir = "/etc/cni/{name}.d"
        """
    file = host.path(_CONFIGURATION)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
