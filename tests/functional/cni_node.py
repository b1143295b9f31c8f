"""A lab host as a node of containers: their namespaces, virtkit's CNI program, and all it changes.

`Node.state` is what a call may leave something in; two of them are compared.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tests.functional.cni_calls import Container, Plugin
from tests.functional.tenants import Fabric

PROGRAM = Path(__file__).parents[2] / "build" / "virtkit-cni"
SETTLED_WITHIN_S = 5.0

# What moves on by itself or does not go back: the agents' reports, and the place in a subnet
# where the search for a free address goes on.
_MOVING = {
    "Fabric": {"cfg"},
    "Host": {"cfg", "heartbeat"},
    "Network": {"cfg"},
    "Subnet": {"cursor"},
}


class Node:
    """A host, the program as a runtime there calls it, and containers without a runtime."""

    def __init__(self, lab: Lab, host: Host) -> None:
        assert PROGRAM.exists(), f"{PROGRAM} is not there. Run: make install"
        self.lab = lab
        self.host = host
        self.fabric = Fabric(lab)
        self.plugin = Plugin(PROGRAM, host, path="/opt/cni/bin")
        self._numbers = count(1)

    @contextmanager
    def container(self, name: str = "c", interface: str = "eth0") -> Iterator[Container]:
        """A container that is not attached yet. Its namespace goes at the end, if it is there.

        Who attached it must detach it; that is done here only if a test has failed, lest the
        next fail with it.
        """
        number = next(self._numbers)
        netns = f"{name}{number}"
        self.host.add_netns(netns)
        container = Container(
            id=f"{name}-{number}-{os.getpid()}", netns=f"/run/netns/{netns}", interface=interface
        )
        try:
            yield container
        except BaseException:
            for attached in {interface, "eth0", "net1", "net2"}:
                one = Container(id=container.id, netns=container.netns, interface=attached)
                self.plugin.delete({"cniVersion": "1.1.0", "name": "x", "type": "virtkit"}, one)
            raise
        finally:
            self.host.run(["ip", "netns", "delete", netns], check=False)

    def inside(self, container: Container, *argv: str, check: bool = True) -> str:
        """What a command prints in the container."""
        netns = Path(container.netns).name
        return self.host.run(argv, netns=netns, check=check).stdout

    def links(self, container: Container) -> dict[str, dict[str, Any]]:
        """The links in the container, by name."""
        return {link["ifname"]: link for link in self._ip(container, "-d", "addr", "show")}

    def addresses(self, container: Container) -> set[str]:
        """Addresses with their prefix on the container's interface, those of links excepted."""
        return {
            f"{address['local']}/{address['prefixlen']}"
            for address in self.links(container)[container.interface]["addr_info"]
            if address["scope"] != "link"
        }

    def routes(self, container: Container) -> set[tuple[str, str | None]]:
        """Destination and gateway of the routes over the container's interface that were added."""
        found = set()
        for family, everywhere in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
            for route in self._ip(container, family, "route", "show", "dev", container.interface):
                if route.get("protocol") != "kernel":
                    destination = everywhere if route["dst"] == "default" else route["dst"]
                    found.add((destination, route.get("gateway")))
        return found

    def _ip(self, container: Container, *arguments: str) -> list[dict[str, Any]]:
        text = self.inside(container, "ip", "-j", *arguments)
        found: list[dict[str, Any]] = json.loads(text or "[]")
        return [entry for entry in found if entry]

    # What there is

    def state(self) -> frozenset[str]:
        """Everything that an attachment changes, one line for each thing."""
        return frozenset(
            line
            for lines in (self._rows(), self._switch(), self._links(), self._namespaces())
            for line in lines
        )

    def _rows(self) -> Iterator[str]:
        remote = "unix:/run/virtkit/fabric.sock"
        dump = ["ovsdb-client", "--format=json", "dump", remote, "Virtkit_Fabric"]
        for table in _documents(self.lab.ctl.run(dump).stdout):
            name = table["caption"].removesuffix(" table")
            kept = [
                number
                for number, heading in enumerate(table["headings"])
                if heading not in _MOVING.get(name, ())
            ]
            for row in table["data"]:
                cells = {table["headings"][number]: row[number] for number in kept}
                yield f"{name} {json.dumps(cells, sort_keys=True)}"

    def _switch(self) -> Iterator[str]:
        columns = "name,type,external_ids,ofport"
        listing = ["ovs-vsctl", "--format=json", f"--columns={columns}", "list", "Interface"]
        for row in json.loads(self.host.run(listing).stdout)["data"]:
            yield f"interface {json.dumps(row)}"
        dump = ["ovs-ofctl", "dump-flows", "br-int", "--no-stats"]
        for line in self.host.run(dump).stdout.splitlines():
            yield f"flow {line.strip()}"
        for record in self.host.path("/var/lib/virtkit/cni/queue").glob("*"):
            yield f"queued {record.name}"

    def _links(self) -> Iterator[str]:
        yield from _network_of(self.host, None)

    def _namespaces(self) -> Iterator[str]:
        for entry in json.loads(self.host.run(["ip", "-j", "netns"]).stdout or "[]"):
            yield f"namespace {entry['name']}"
            yield from _network_of(self.host, entry["name"])


@contextmanager
def node(what: str, networks: dict[str, str]) -> Iterator[Node]:
    """A lab with one node; `networks` of tenant `default`, with the options they are made with."""
    with Lab.up(f"test-cni-{what}-{os.getpid()}", hosts=1) as lab:
        node = Node(lab, lab.host("h1"))
        node.fabric("nvctl tenant create default")
        for network, options in networks.items():
            node.fabric(f"nvctl network create {network} -t default {options}")
        yield node


@contextmanager
def unchanged(node: Node) -> Iterator[None]:
    """After the block everything is as before, at the latest after some seconds."""
    before = node.state()
    yield
    settles_as(node, before)


def settles_as(node: Node, before: frozenset[str]) -> None:
    """Return when everything is as it was then; what is not is in the error."""

    def difference() -> str:
        now = node.state()
        lines = [f"    gone: {line}" for line in sorted(before - now)]
        return "\n".join(lines + [f"    left: {line}" for line in sorted(now - before)])

    until(
        lambda: node.state() == before,
        what="not all is as it was",
        timeout_s=SETTLED_WITHIN_S,
        explain=difference,
    )


def _documents(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects that stand one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        yield document
        while at < len(text) and text[at].isspace():
            at += 1


def _network_of(host: Host, netns: str | None) -> Iterator[str]:
    """Links, addresses and routes of the host, or of a namespace there."""
    place = netns or "host"
    for link in _ip(host, netns, "addr", "show"):
        shown = {key: link.get(key) for key in ("ifindex", "address", "mtu", "link_index")}
        up = "UP" in link["flags"]
        yield f"{place}: link {link['ifname']} {'up' if up else 'down'} {json.dumps(shown)}"
        for address in link["addr_info"]:
            # The kernel gives a link its own address when it finds the time.
            if address["scope"] != "link":
                yield f"{place}: {link['ifname']} has {address['local']}/{address['prefixlen']}"
    for family in ("-4", "-6"):
        for route in _ip(host, netns, family, "route", "show"):
            keys = ("dst", "gateway", "dev", "metric")
            if not str(route["dst"]).startswith("fe80:"):
                yield f"{place}: route {json.dumps({key: route.get(key) for key in keys})}"


def _ip(host: Host, netns: str | None, *arguments: str) -> Sequence[dict[str, Any]]:
    done = host.run(["ip", "-j", *arguments], netns=netns)
    return [entry for entry in json.loads(done.stdout or "[]") if entry]
