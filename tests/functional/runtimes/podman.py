"""podman in a lab host, with its CNI backend. There is no daemon: each call is a command.

Its images, containers and locks are in the host's own directories and end with it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.host import Host
from tests.functional.runtimes import conflist
from tests.functional.runtimes.images import BUSYBOX

_CONFIGURATION = f"""
[containers]
cgroupns = "host"

[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "file"
# Otherwise in /dev/shm, which is the machine's.
lock_type = "file"

[network]
network_backend = "cni"
cni_plugin_dirs = ["{conflist.PROGRAMS}"]
network_config_dir = "{conflist.DIRECTORY}"
"""
_STORAGE = """
[storage]
driver = "vfs"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"
"""


@dataclass(frozen=True)
class PodmanContainer:
    """A container that runs."""

    podman: "Podman"
    name: str
    ip: str
    mac: str

    def run(self, *argv: str, check: bool = True) -> str:
        """What a command prints in the container."""
        done = self.podman.host.run(["podman", "exec", self.name, *argv], check=check)
        return done.stdout

    def answers_first_ping_to(self, ip: str) -> bool:
        """Whether one ping, without another try, is answered within a second."""
        return " 1 packets received" in self.run("ping", "-c", "1", "-W", "1", ip, check=False)

    def serve(self, port: int, text: str) -> None:
        """Have busybox's web server answer with this text."""
        page = f"mkdir -p /tmp/www && echo {text} >/tmp/www/index.html"
        self.run("sh", "-c", f"{page} && httpd -p {port} -h /tmp/www")

    def remove(self) -> None:
        """End it."""
        self.podman("rm", "--force", "--time", "0", self.name)


class Podman:
    """A host's podman."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @classmethod
    def install(cls, host: Host, archive: Path) -> "Podman":
        """Configure it, and load the images."""
        for name, text in (("containers.conf", _CONFIGURATION), ("storage.conf", _STORAGE)):
            host.path("/etc/containers").mkdir(exist_ok=True)
            host.path(f"/etc/containers/{name}").write_text(text)
        podman = cls(host)
        podman("load", "--quiet", "--input", str(archive))
        return podman

    def __call__(self, *arguments: str) -> str:
        """What a command of podman prints; it must succeed."""
        return self.host.run(["podman", *arguments]).stdout

    def refused(self, *arguments: str) -> str:
        """What podman says about a command that must fail."""
        done = self.host.run(["podman", *arguments], check=False)
        assert done.returncode != 0, done
        return done.stderr

    def run_container(self, name: str, network: str, *options: str) -> PodmanContainer:
        """A container of busybox that does nothing, in this network."""
        # Raw sockets are ping's.
        given = ("--network", network, "--cap-add", "NET_RAW", *options)
        self("run", "--detach", "--name", name, *given, BUSYBOX)
        attached = self.inspect(name)["NetworkSettings"]["Networks"][network]
        return PodmanContainer(self, name, attached["IPAddress"], attached["MacAddress"])

    def inspect(self, name: str) -> Mapping[str, Any]:
        """What podman knows of a container."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)
