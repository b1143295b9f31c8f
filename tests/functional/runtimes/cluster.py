"""A lab whose hosts are nodes: virtkit installed as its users install it, tenant networks, images.

`Nodes` are those with containerd; podman needs no more than a `Cluster`.
"""

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.host import Host
from lab.lab import Lab
from tests.functional.runtimes import conflist, images
from tests.functional.runtimes.conflist import Conflist, Plugin
from tests.functional.runtimes.containerd import Containerd
from tests.functional.runtimes.leftovers import nothing_left, rows
from tests.functional.tenants import Fabric

TENANT = "default"
_FETCH_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Cluster:
    """Nodes on which runtimes find virtkit, and `/etc/cni/net.d` says network `pods`."""

    lab: Lab
    fabric: Fabric
    archive: Path

    def port_of(self, pod: str) -> dict[str, Any]:
        """The one port that says it is this pod's."""
        ports = self.fabric(f"nvctl port list -t {TENANT}")
        (port,) = [port for port in ports if port["labels"].get("pod") == pod]
        return dict(port)


@contextmanager
def cluster(name: str, directory: Path, networks: Mapping[str, str]) -> Iterator[Cluster]:
    """Two nodes; `networks` are the tenant's, with the options they are created with."""
    with Lab.up(name, hosts=2) as lab:
        fabric = Fabric(lab)
        fabric(f"nvctl tenant create {TENANT}")
        for network, options in networks.items():
            fabric(f"nvctl network create {network} -t {TENANT} {options}")
        with ThreadPoolExecutor(len(lab.hosts)) as pool:
            list(pool.map(_install_plugins, lab.hosts))
        yield Cluster(lab, fabric, images.write_archive(directory / "images.tar"))


def _install_plugins(host: Host) -> None:
    # The reference plugins first: what is there decides what is chained.
    conflist.install_reference_plugins(host)
    host.run(["nvctl", "cni", "install", "--wait-for-agent", "20"])


class Nodes:
    """A cluster's nodes `h1` and `h2` with containerd, and what tests ask of both."""

    def __init__(self, cluster: Cluster, h1: Containerd, h2: Containerd) -> None:
        self.cluster = cluster
        self.lab = cluster.lab
        self.h1 = h1
        self.h2 = h2

    def attached(self) -> int:
        """How many interfaces of containers the fabric has on record."""
        return len(rows(self.lab, "Attachment"))

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """At the end daemons run, no pod is left, and nothing of one."""
        with nothing_left(self.lab):
            yield
            for host in (self.lab.ctl, *self.lab.hosts):
                for daemon in host.daemons:
                    host.start(daemon)
            for runtime in (self.h1, self.h2):
                runtime.remove_all()


@contextmanager
def nodes_with_containerd(
    name: str,
    directory: Path,
    networks: Mapping[str, str],
    handlers: Mapping[str, Conflist],
) -> Iterator[Nodes]:
    """Both nodes of a new cluster, with runtime handlers that choose among these conflists."""
    with cluster(name, directory, networks) as made:

        def install(host: Host) -> Containerd:
            runtime = Containerd.install(host, made.archive, handlers)
            # A node's own port in a network with host access comes with its first pod, and stays.
            runtime.run_pod("first").remove()
            return runtime

        with ThreadPoolExecutor(2) as pool:
            h1, h2 = pool.map(install, made.lab.hosts)
        yield Nodes(made, h1, h2)


def joins(network: str, *chained: Plugin, **keys: object) -> Conflist:
    """A conflist for a network of the tenant, named as the network."""
    own = conflist.virtkit(tenant=TENANT, network=network, **keys)
    return conflist.conflist(network, own, *chained)


def fetch(host: Host, url: str, timeout_s: float = _FETCH_TIMEOUT_S) -> str:
    """A page without its last newline, asked for by the host itself."""
    program = "import sys, urllib.request as u; print(u.urlopen({!r}, timeout={}).read().decode())"
    done = host.run([sys.executable, "-c", program.format(url, timeout_s)])
    return done.stdout.strip()
