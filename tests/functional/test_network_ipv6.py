"""IPv6 and dual stack between real hosts: who reaches whom, who hears it, what is not let out."""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp6 import DHCP6_Advertise
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, GRE, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap

from lab.guest import build
from lab.lab import Lab
from lab.machine import Machine, Nic, file_disk
from lab.vm import VirtualMachine
from lab.waiting import until
from netvirt.model import Mac
from tests.functional.tenants import Container, Fabric, pinging

pytestmark = pytest.mark.functional

OVERLAYS = {"red": "vxlan", "blue": "gre"}
OVERHEAD = {"red": 50, "blue": 42}
DUAL = "--cidr 10.1.0.0/24 --cidr fd00:1::/64"

SEND = """
    import socket, sys
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for frame in sys.argv[1:]:
            wire.send(bytes.fromhex(frame))
"""

# Prints a line when it listens, and one for each message of neighbour discovery that it hears.
LISTEN = """
    import socket, struct
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD))
    wire.bind(("eth0", 0x86DD))
    print("listening", flush=True)
    while True:
        frame, (_, _, kind, *_) = wire.recvfrom(65535)
        if kind != socket.PACKET_OUTGOING and frame[20] == 58 and frame[54] in (135, 136):
            print(frame[54], socket.inet_ntop(socket.AF_INET6, frame[62:78]), flush=True)
"""


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with Lab.up(f"test-ipv6-{os.getpid()}", hosts=2) as lab:
        fabric = Fabric(lab)
        for tenant, overlay in OVERLAYS.items():
            fabric(f"nvctl tenant create {tenant}")
            fabric(f"nvctl network create front -t {tenant} {DUAL} --overlay {overlay}")
        fabric("nvctl network create six -t red --cidr fd00:6::/64")
        fabric("nvctl network create four -t red --cidr 10.4.0.0/24")
        yield fabric


@pytest.fixture(scope="module")
def containers(fabric: Fabric) -> dict[str, Container]:
    """Of either tenant `a` on h1, `b` and `c` on h2, with the same addresses."""
    return {
        f"{tenant}-{name}": fabric.container(host, tenant, "front", name, f"fd00:1::{name}")
        for tenant in OVERLAYS
        for name, host in (("a", "h1"), ("b", "h2"), ("c", "h2"))
    }


def addresses(fabric: Fabric, container: Container) -> list[str]:
    found: list[str] = fabric(f"nvctl port get {container.port_id}")["addresses"]
    return found


def six(container: Container) -> str:
    """The IPv6 address of a container of network `front`."""
    return f"fd00:1::{container.name}"


def link_local(container: Container) -> str:
    return str(Mac.parse(container.mac).link_local)


def send(container: Container, *frames: Packet) -> None:
    container.python(SEND, *(bytes(frame).hex() for frame in frames))


@contextmanager
def listening(container: Container) -> Iterator[list[str]]:
    """What the container hears of neighbour discovery during the block; filled at its end."""
    heard: list[str] = []
    process = container.host.popen(
        [sys.executable, "-c", textwrap.dedent(LISTEN)],
        netns=container.netns,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "listening\n"
    try:
        yield heard
    finally:
        process.terminate()
        heard += process.communicate(timeout=10)[0].splitlines()


def inner_frames(capture: Path) -> list[Packet]:
    """Tenants' frames out of a capture of the underlay."""
    frames = rdpcap(str(capture))
    vxlan = [frame[VXLAN].payload for frame in frames if VXLAN in frame]
    return vxlan + [Ether(bytes(frame[GRE].payload)) for frame in frames if GRE in frame]


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_the_first_packet_of_either_family_is_answered_both_ways(
    fabric: Fabric, tenant: str
) -> None:
    a = fabric.container("h1", tenant, "front", "first")
    b = fabric.container("h2", tenant, "front", "second")
    reach = [(a, addresses(fabric, b)), (b, addresses(fabric, a))]

    answered = [one.ping(ip, count=1) for one, ips in reach for ip in ips]

    assert [len(ips) for _, ips in reach] == [2, 2]
    assert answered == [1, 1, 1, 1]
    fabric.remove(a)
    fabric.remove(b)


def test_containers_of_one_host_reach_each_other(containers: dict[str, Container]) -> None:
    assert containers["red-b"].ping(six(containers["red-c"]), count=1) == 1
    assert containers["red-c"].ping(six(containers["red-b"])) == 3


def test_a_network_may_have_ipv6_only(fabric: Fabric) -> None:
    a = fabric.container("h1", "red", "six", "a")
    b = fabric.container("h2", "red", "six", "b")

    assert (a.ip, b.ip) == ("fd00:6::2", "fd00:6::3")
    assert a.ping(b.ip, count=1) == 1
    assert b.ping(a.ip) == 3

    before = fabric.drops(a.host)
    send(a, *[Ether(src=a.mac, dst=b.mac) / IP(src="10.6.0.1", dst="10.6.0.2")] * 3)
    send(a, *[Ether(src=a.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(pdst="10.6.0.2")] * 2)
    assert fabric.dropped_since(before, a.host, "ip-version", 5)["ip-version"] == 5
    fabric.remove(a)
    fabric.remove(b)


def test_a_network_without_ipv6_lets_none_of_it_pass(fabric: Fabric) -> None:
    a = fabric.container("h1", "red", "four", "a")
    b = fabric.container("h2", "red", "four", "b")
    a.run("sysctl -q net.ipv6.conf.eth0.disable_ipv6=1")
    before, received = fabric.drops(a.host), b.received()

    send(a, *[Ether(src=a.mac, dst=b.mac) / IPv6(src="fd00::1", dst="fd00::2")] * 3)

    assert fabric.dropped_since(before, a.host, "ip-version", 3)["ip-version"] == 3
    assert b.received() == received
    assert a.ping(b.ip) == 3
    fabric.remove(a)
    fabric.remove(b)


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_the_mtu_fills_the_underlay_exactly(
    fabric: Fabric, containers: dict[str, Container], tenant: str
) -> None:
    a, b = containers[f"{tenant}-a"], containers[f"{tenant}-b"]
    mtu = fabric(f"nvctl network get front -t {tenant}")["mtu"]

    assert mtu == 1500 - OVERHEAD[tenant]
    assert a.ping(six(b), size=mtu - 48, fragment=False) == 3
    assert a.ping(six(b), size=mtu - 47, fragment=False) == 0
    assert a.ping(six(b), size=4000) == 3


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_a_tcp_stream_arrives_whole(containers: dict[str, Container], tenant: str) -> None:
    a, b = containers[f"{tenant}-a"], containers[f"{tenant}-b"]
    serve = """
        import hashlib, socket, sys
        listener = socket.create_server((sys.argv[1], 7000), family=socket.AF_INET6)
        listener.settimeout(20)
        print("listening", flush=True)
        stream, _ = listener.accept()
        digest = hashlib.sha256()
        while data := stream.recv(65536):
            digest.update(data)
        print(digest.hexdigest())
    """
    server = b.host.popen(
        [sys.executable, "-c", textwrap.dedent(serve), six(b)],
        netns=b.netns,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout and server.stdout.readline() == "listening\n"

    sent = a.python(
        """
        import hashlib, os, socket, sys
        data = os.urandom(20_000_000)
        with socket.create_connection((sys.argv[1], 7000), timeout=20) as stream:
            stream.sendall(data)
        print(hashlib.sha256(data).hexdigest())
        """,
        six(b),
    )

    assert server.communicate(timeout=30)[0] == sent


def test_the_same_address_in_two_tenants_is_two_places(containers: dict[str, Container]) -> None:
    blue = [containers["blue-a"], containers["blue-b"]]
    before = [container.received() for container in blue]
    red_before = containers["red-b"].received()

    assert containers["red-a"].ping("fd00:1::b", count=4) == 4

    assert containers["red-b"].received() >= red_before + 4
    assert [container.received() for container in blue] == before


def test_who_asks_for_a_neighbour_is_heard_by_that_neighbour_alone(
    fabric: Fabric, containers: dict[str, Container], tmp_path: Path
) -> None:
    a, b, c = (containers[f"red-{name}"] for name in "abc")
    a.run("ip neigh flush all")

    with (
        listening(b) as at_b,
        listening(c) as at_c,
        fabric.lab.capture(tmp_path / "wire.pcap"),
    ):
        assert a.ping(six(b), count=1) == 1

    assert f"135 {six(b)}" in at_b
    assert at_c == []
    frames = inner_frames(tmp_path / "wire.pcap")
    solicitations = [frame for frame in frames if ICMPv6ND_NS in frame]
    assert {(frame[Ether].dst, frame[IPv6].hlim) for frame in solicitations} == {(b.mac, 255)}
    assert {frame[ICMPv6ND_NA].tgt for frame in frames if ICMPv6ND_NA in frame} <= {six(a), six(b)}
    assert b.mac in a.run(f"ip neigh show {six(b)}")


def test_who_asks_whether_his_own_address_is_in_use_is_heard_by_all(
    containers: dict[str, Container],
) -> None:
    a, b, c = (containers[f"red-{name}"] for name in "abc")

    with listening(b) as at_b, listening(c) as at_c:
        link = Ether(src=a.mac, dst="33:33:ff:00:00:0a")
        send(a, link / IPv6(src="::", dst="ff02::1:ff00:a", hlim=255) / ICMPv6ND_NS(tgt=six(a)))
        # What comes later has come after it.
        assert a.ping(six(b), count=1) == a.ping(six(c), count=1) == 1

    assert f"135 {six(a)}" in at_b
    assert f"135 {six(a)}" in at_c


@dataclass(frozen=True)
class Scene:
    """Who says something false to whom, and with whose addresses."""

    a: Container
    b: Container
    c: Container

    def to_b(self, **changed: Any) -> Packet:
        """The honest headers of what `a` sends to `b`, but for what is given."""
        link = {"src": changed.pop("mac", self.a.mac), "dst": changed.pop("to", self.b.mac)}
        return Ether(**link) / IPv6(**{"src": six(self.a), "dst": six(self.b), **changed})

    def to_all(self, **changed: Any) -> Packet:
        """The same to everybody, as discovery is spoken."""
        link = Ether(src=self.a.mac, dst="33:33:00:00:00:01")
        return link / IPv6(**{"src": six(self.a), "dst": "ff02::1", "hlim": 255, **changed})

    def as_router(self) -> Packet:
        return self.to_all(src=link_local(self.a))


ADVERTISEMENTS: dict[str, Callable[[Scene], Packet]] = {
    "of another's address": lambda s: (
        s.to_b(hlim=255) / ICMPv6ND_NA(tgt=six(s.c)) / ICMPv6NDOptDstLLAddr(lladdr=s.a.mac)
    ),
    "with another's MAC": lambda s: (
        s.to_b(hlim=255) / ICMPv6ND_NA(tgt=six(s.a)) / ICMPv6NDOptDstLLAddr(lladdr=s.c.mac)
    ),
    "to all with another's MAC": lambda s: (
        s.to_all() / ICMPv6ND_NA(tgt=six(s.a)) / ICMPv6NDOptDstLLAddr(lladdr=s.c.mac)
    ),
    "with two MACs": lambda s: (
        s.to_b(hlim=255)
        / ICMPv6ND_NA(tgt=six(s.a))
        / ICMPv6NDOptDstLLAddr(lladdr=s.a.mac)
        / ICMPv6NDOptDstLLAddr(lladdr=s.c.mac)
    ),
    "whose MAC comes in another piece": lambda s: (
        s.to_b(hlim=255) / IPv6ExtHdrFragment(m=1, id=7, nh=58) / ICMPv6ND_NA(tgt=six(s.a), cksum=1)
    ),
}

SPOOFED: dict[str, tuple[str, Callable[[Scene], Packet]]] = {
    "another's source": ("ip-source", lambda s: s.to_b(src=six(s.c)) / UDP(dport=9)),
    "another's link-local source": (
        "ip-source",
        lambda s: s.to_b(src=link_local(s.c)) / UDP(dport=9),
    ),
    "no source": ("ip-source", lambda s: s.to_b(src="::") / UDP(dport=9)),
    "another's MAC": ("mac-source", lambda s: s.to_b(mac=s.c.mac) / UDP(dport=9)),
    "nobody's MAC": (
        "unknown-destination",
        lambda s: s.to_b(to="0a:00:00:00:00:77") / UDP(dport=9),
    ),
    **{f"advertisement {what}": ("nd-source", make) for what, make in ADVERTISEMENTS.items()},
    "solicitation with another's MAC": (
        "nd-source",
        lambda s: (
            s.to_b(hlim=255) / ICMPv6ND_NS(tgt=six(s.b)) / ICMPv6NDOptSrcLLAddr(lladdr=s.c.mac)
        ),
    ),
    "solicitation behind options": (
        "nd-source",
        lambda s: (
            s.to_b(hlim=255)
            / IPv6ExtHdrHopByHop()
            / IPv6ExtHdrDestOpt()
            / ICMPv6ND_NS(tgt=six(s.b))
            / ICMPv6NDOptSrcLLAddr(lladdr=s.c.mac)
        ),
    ),
    "probe for another's address": (
        "ip-source",
        lambda s: s.to_all(src="::") / ICMPv6ND_NS(tgt=six(s.b)),
    ),
    "solicitation for nobody": (
        "nd-unknown",
        lambda s: s.to_all() / ICMPv6ND_NS(tgt="fd00:1::77") / ICMPv6NDOptSrcLLAddr(lladdr=s.a.mac),
    ),
    "router advertisement": (
        "router",
        lambda s: s.as_router() / ICMPv6ND_RA() / ICMPv6NDOptPrefixInfo(prefix="fd66::"),
    ),
    "router advertisement behind options": (
        "router",
        lambda s: s.as_router() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / ICMPv6ND_RA(),
    ),
    "router advertisement in pieces": (
        "router",
        lambda s: s.as_router() / IPv6ExtHdrFragment(m=1, id=7) / ICMPv6ND_RA(cksum=1),
    ),
    "router advertisement in the second piece": (
        "ipv6-headers",
        lambda s: (
            s.as_router() / IPv6ExtHdrFragment(m=1, id=7, nh=60) / IPv6ExtHdrDestOpt(nh=58, len=0)
        ),
    ),
    "headers without an end": (
        "ipv6-headers",
        lambda s: s.to_b(nh=60) / Raw(b"\x3a\x20" + bytes(14)),
    ),
    "redirect": (
        "router",
        lambda s: s.to_b(hlim=255) / ICMPv6ND_Redirect(tgt=six(s.a), dst=six(s.c)),
    ),
    "DHCPv6 server": (
        "dhcp-server",
        lambda s: s.to_b() / UDP(sport=547, dport=546) / DHCP6_Advertise(),
    ),
    "DHCPv6 server from another port": (
        "dhcp-server",
        lambda s: s.to_b() / UDP(sport=1547, dport=546) / DHCP6_Advertise(),
    ),
    "DHCPv6 server to another port": (
        "dhcp-server",
        lambda s: s.to_b() / UDP(sport=547, dport=1546) / DHCP6_Advertise(),
    ),
    "DHCPv6 server whose ports come in another piece": (
        "ipv6-headers",
        lambda s: s.to_b() / IPv6ExtHdrFragment(m=1, id=7, nh=60) / IPv6ExtHdrDestOpt(nh=17, len=0),
    ),
}


@pytest.mark.parametrize("what", SPOOFED)
def test_what_is_not_the_ports_own_is_dropped_and_counted(
    fabric: Fabric, containers: dict[str, Container], what: str
) -> None:
    scene = Scene(*(containers[f"red-{name}"] for name in "abc"))
    reason, make = SPOOFED[what]
    before, received = fabric.drops(scene.a.host), scene.b.received()

    send(scene.a, *[make(scene)] * 5)

    assert fabric.dropped_since(before, scene.a.host, reason, 5) == {reason: 5}
    assert scene.b.received() == received


def test_an_advertisement_of_ones_own_is_let_out(containers: dict[str, Container]) -> None:
    """The spoofed ones are dropped for what they say, not for how they were made."""
    a, b = containers["red-a"], containers["red-b"]

    with listening(b) as heard:
        honest = Scene(a, b, containers["red-c"]).to_b(hlim=255) / ICMPv6ND_NA(tgt=six(a))
        send(a, *[honest / ICMPv6NDOptDstLLAddr(lladdr=a.mac)] * 5)
        assert a.ping(six(b), count=1) == 1

    assert heard.count(f"136 {six(a)}") >= 5


def test_a_container_uses_its_address_at_once_and_listens_to_no_router(
    containers: dict[str, Container],
) -> None:
    a = containers["red-a"]

    shown = a.run("ip -6 -o addr show dev eth0")

    assert "tentative" not in shown
    assert f"{six(a)}/64" in shown
    assert a.run("sysctl -n net.ipv6.conf.eth0.accept_ra").strip() == "0"
    routes = a.run("ip -6 route show dev eth0")
    assert "default" not in routes
    assert "fd00:1::/64" in routes


def test_neighbours_are_found_while_the_agent_is_away(
    containers: dict[str, Container],
) -> None:
    a, b = containers["red-a"], containers["red-b"]
    for container in (a, b):
        container.host.stop("agent")
        container.run("ip neigh flush all")

    answered = a.ping(six(b), count=1)

    for container in (a, b):
        container.host.start("agent")
    assert answered == 1


def test_a_port_that_moves_takes_its_ipv6_address_along(
    fabric: Fabric, containers: dict[str, Container]
) -> None:
    a = containers["red-a"]
    moving = fabric.container("h2", "red", "front", "moving", "fd00:1::50")
    h1, h2 = fabric.lab.host("h1"), fabric.lab.host("h2")
    assert a.ping("fd00:1::50") == 3

    fabric.do(f"nvctl port unplug {moving.port_id}", h2)
    h1.add_netns(moving.netns)
    fabric(f"nvctl port plug {moving.port_id} --netns {moving.netns}", h1)

    assert a.ping("fd00:1::50", count=1) == 1
    assert containers["red-b"].ping("fd00:1::50", count=1) == 1
    fabric.do(f"nvctl port unplug {moving.port_id}", h1)
    fabric.do(f"nvctl port delete {moving.port_id} --yes")
    for host in (h1, h2):
        host.delete_netns(moving.netns)


def test_a_guest_speaks_ipv6_and_nothing_honest_is_dropped(
    fabric: Fabric, containers: dict[str, Container]
) -> None:
    """From its first probe on, made before it has an address, to the one given by hand."""
    a, h2 = containers["red-a"], fabric.lab.host("h2")
    port = fabric("nvctl port create vm -t red -n front --kind vm --ip fd00:1::d")
    link = fabric(f"nvctl port plug {port['id']} --tap", h2)["link"]
    workplace = Path("/run/virtkit/vm")
    h2.path(workplace).mkdir(exist_ok=True)
    guest = build()
    shutil.copy(guest.qcow2, h2.path(workplace / "disk.qcow2"))
    before = fabric.drops(h2)

    disk = file_disk(workplace / "disk.qcow2", "qcow2")
    nics = (Nic(tap=link, mac=port["mac"]),)
    machine = Machine(name="vm", guest=guest, disk=disk, nics=nics)
    with VirtualMachine.start(machine, workplace / "vm", h2) as vm:
        vm.wait_for_boot(timeout_s=180)
        vm.check("ip -6 addr add fd00:1::d/64 dev eth0")
        until(
            lambda: "tentative" not in vm.check("ip -6 addr show dev eth0"),
            what="the guest is not sure of its addresses",
            timeout_s=30,
        )
        assert a.ping("fd00:1::d", count=1) == 1
        assert "3 packets received" in vm.check(f"ping6 -c 3 {six(a)}")
        own = str(Mac.parse(port["mac"]).link_local)
        assert containers["red-b"].ping(f"{own}%eth0") == 3

    assert fabric.drops(h2) == before
    fabric.do(f"nvctl port unplug {port['id']}", h2)
    fabric.do(f"nvctl port delete {port['id']} --yes")


def test_plugging_again_loses_no_packet(fabric: Fabric, containers: dict[str, Container]) -> None:
    a, b = containers["red-a"], containers["red-b"]
    flows = fabric.flows(a.host)

    with pinging(a, six(b)) as lost:
        fabric(f"nvctl port plug {a.port_id} --netns {a.netns}", a.host)

    assert lost == []
    assert fabric.flows(a.host) == flows


def test_what_was_unplugged_leaves_nothing(fabric: Fabric) -> None:
    h1, h2 = fabric.lab.host("h1"), fabric.lab.host("h2")
    before = fabric.flows(h1), fabric.flows(h2)

    container = fabric.container("h2", "red", "front", "short")
    assert fabric.flows(h1) != before[0]
    fabric.remove(container)

    fabric("nvctl network set front -t red --label seen=by-all --wait")
    until(
        lambda: (fabric.flows(h1), fabric.flows(h2)) == before,
        what="flows of a port that is gone are still there",
        timeout_s=10,
    )
