"""Tenant networks between real hosts: who reaches whom, who does not, what guests are told."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import ARP, GRE
from scapy.layers.vxlan import VXLAN
from scapy.utils import rdpcap

from lab.lab import Lab
from lab.waiting import until
from tests.functional.tenants import Container, Fabric

pytestmark = pytest.mark.functional

CIDR = "10.1.0.0/24"
OVERLAYS = {"red": "vxlan", "blue": "gre"}
OVERHEAD = {"red": 50, "blue": 42}

SEND = """
    import sys
    from scapy.all import ARP, IP, UDP, BOOTP, DHCP, ICMP, Ether, Raw, sendp
    sendp({frame}, iface="eth0", verbose=False, count={count})
"""


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with Lab.up(f"test-network-{os.getpid()}", hosts=3) as lab:
        fabric = Fabric(lab)
        for tenant, overlay in OVERLAYS.items():
            fabric(f"nvctl tenant create {tenant}")
            fabric(f"nvctl network create front -t {tenant} --cidr {CIDR} --overlay {overlay}")
        yield fabric


@pytest.fixture(scope="module")
def containers(fabric: Fabric) -> dict[str, Container]:
    """Of either tenant `a` on h1 and `b` on h2, with the same addresses; h3 has none."""
    return {
        f"{tenant}-{name}": fabric.container(host, tenant, "front", name, ip)
        for tenant in OVERLAYS
        for name, host, ip in (("a", "h1", "10.1.0.10"), ("b", "h2", "10.1.0.11"))
    }


def send(container: Container, frame: str, count: int = 3) -> None:
    container.python(SEND.format(frame=frame, count=count))


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_containers_on_two_hosts_reach_each_other(
    containers: dict[str, Container], tenant: str
) -> None:
    a, b = containers[f"{tenant}-a"], containers[f"{tenant}-b"]

    assert a.ping(b.ip, count=5) == 5
    assert b.ping(a.ip, count=5) == 5


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_the_mtu_fills_the_underlay_exactly(
    fabric: Fabric, containers: dict[str, Container], tenant: str
) -> None:
    a, b = containers[f"{tenant}-a"], containers[f"{tenant}-b"]
    mtu = fabric(f"nvctl network get front -t {tenant}")["mtu"]

    assert mtu == 1500 - OVERHEAD[tenant]
    assert a.ping(b.ip, size=mtu - 28, fragment=False) == 3
    assert a.ping(b.ip, size=mtu - 27, fragment=False) == 0


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_a_tcp_stream_arrives_whole(containers: dict[str, Container], tenant: str) -> None:
    a, b = containers[f"{tenant}-a"], containers[f"{tenant}-b"]
    serve = """
        import hashlib, socket, sys
        listener = socket.create_server((sys.argv[1], 7000))
        listener.settimeout(20)
        print("listening", flush=True)
        stream, _ = listener.accept()
        digest = hashlib.sha256()
        while data := stream.recv(65536):
            digest.update(data)
        print(digest.hexdigest())
    """
    server = b.host.popen(
        [sys.executable, "-c", textwrap.dedent(serve), b.ip],
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
        b.ip,
    )

    assert server.communicate(timeout=30)[0] == sent


def test_the_same_address_in_two_tenants_is_two_places(
    containers: dict[str, Container],
) -> None:
    before = {name: container.received() for name, container in containers.items()}

    assert containers["red-a"].ping("10.1.0.11", count=4) == 4

    after = {name: container.received() for name, container in containers.items()}
    assert after["red-b"] >= before["red-b"] + 4
    assert (after["blue-a"], after["blue-b"]) == (before["blue-a"], before["blue-b"])


def test_segment_ids_are_on_the_wire(
    fabric: Fabric, containers: dict[str, Container], tmp_path: Path
) -> None:
    segments = {
        tenant: fabric(f"nvctl network get front -t {tenant}")["segment_id"] for tenant in OVERLAYS
    }

    with fabric.lab.capture(tmp_path / "wire.pcap"):
        for tenant in OVERLAYS:
            assert containers[f"{tenant}-a"].ping("10.1.0.11", count=2) == 2

    frames = rdpcap(str(tmp_path / "wire.pcap"))
    vxlan = {frame[VXLAN].vni for frame in frames if VXLAN in frame and frame[VXLAN].haslayer(IP)}
    gre = {frame[GRE].key for frame in frames if GRE in frame and frame[GRE].haslayer(IP)}
    assert vxlan == {segments["red"]}
    assert gre == {segments["blue"]}


def test_arp_is_answered_in_the_switch_and_never_crosses(
    fabric: Fabric, containers: dict[str, Container], tmp_path: Path
) -> None:
    a, b = containers["red-a"], containers["red-b"]
    a.run("ip neigh flush all")

    with fabric.lab.capture(tmp_path / "wire.pcap"):
        assert a.ping(b.ip, count=2) == 2

    frames = rdpcap(str(tmp_path / "wire.pcap"))
    tunnelled = [frame[VXLAN] for frame in frames if VXLAN in frame]
    assert any(IP in frame for frame in tunnelled)
    assert not any(ARP in frame for frame in tunnelled)
    assert b.mac in a.run(f"ip neigh show {b.ip}")


def test_broadcast_reaches_every_port_of_the_network_once_and_no_other_host(
    fabric: Fabric, containers: dict[str, Container], tmp_path: Path
) -> None:
    red, blue = containers["red-b"], containers["blue-b"]
    before, blue_before = red.received(), blue.received()

    with fabric.lab.capture(tmp_path / "wire.pcap"):
        a = containers["red-a"]
        frame = f'Ether(src="{a.mac}", dst="ff:ff:ff:ff:ff:ff")'
        send(a, f'{frame} / IP(src="{a.ip}", dst="10.1.0.255") / UDP(dport=9) / Raw(b"hello")')

    assert red.received() == before + 3
    assert blue.received() == blue_before
    h3 = str(fabric.lab.host("h3").address)
    outer = [frame[IP].dst for frame in rdpcap(str(tmp_path / "wire.pcap")) if VXLAN in frame]
    assert outer.count(str(red.host.address)) >= 3
    assert h3 not in outer


SPOOFED = {
    "ip-source": 'Ether(src="{mac}", dst="{peer}") / IP(src="10.1.0.99", dst="10.1.0.11") / ICMP()',
    "mac-source": 'Ether(src="0a:00:00:00:00:99", dst="{peer}") '
    '/ IP(src="{ip}", dst="10.1.0.11") / ICMP()',
    "arp-source": 'Ether(src="{mac}", dst="ff:ff:ff:ff:ff:ff") '
    '/ ARP(op=2, hwsrc="{mac}", psrc="10.1.0.1", hwdst="{peer}", pdst="10.1.0.11")',
    "dhcp-server": 'Ether(src="{mac}", dst="ff:ff:ff:ff:ff:ff") '
    '/ IP(src="{ip}", dst="255.255.255.255") / UDP(sport=67, dport=68) / BOOTP(op=2)',
    "arp-unknown": 'Ether(src="{mac}", dst="ff:ff:ff:ff:ff:ff") '
    '/ ARP(op=1, hwsrc="{mac}", psrc="{ip}", pdst="10.1.0.77")',
    "unknown-destination": 'Ether(src="{mac}", dst="0a:00:00:00:00:77") '
    '/ IP(src="{ip}", dst="10.1.0.77") / ICMP()',
    "ethertype": 'Ether(src="{mac}", dst="{peer}", type=0x88b5) / Raw(b"x" * 46)',
}


@pytest.mark.parametrize("reason", SPOOFED)
def test_what_is_not_the_ports_own_is_dropped_and_counted(
    fabric: Fabric, containers: dict[str, Container], reason: str
) -> None:
    a, b = containers["red-a"], containers["red-b"]
    frame = SPOOFED[reason].format(mac=a.mac, peer=b.mac, ip=a.ip)
    before, received = fabric.drops(a.host), b.received()

    send(a, frame, count=5)

    assert fabric.dropped_since(before, a.host, reason, 5)[reason] == 5
    assert b.received() == received


def test_a_dhcp_answer_is_dropped_from_whatever_port_it_is_sent(
    fabric: Fabric, containers: dict[str, Container]
) -> None:
    """Clients look at the port it is sent to, and not at the other."""
    a, b = containers["red-a"], containers["red-b"]
    before, received = fabric.drops(a.host), b.received()

    headers = f'Ether(src="{a.mac}", dst="{b.mac}") / IP(src="{a.ip}", dst="{b.ip}")'
    send(a, f"{headers} / UDP(sport=1067, dport=68) / BOOTP(op=2)")

    assert fabric.dropped_since(before, a.host, "dhcp-server", 3)["dhcp-server"] == 3
    assert b.received() == received


def test_a_dhcp_answer_in_fragments_is_dropped(
    fabric: Fabric, containers: dict[str, Container]
) -> None:
    """The first of them, without which the others are nothing."""
    a, b = containers["red-a"], containers["red-b"]
    before, received = fabric.drops(a.host), b.received()

    headers = f'Ether(src="{a.mac}", dst="{b.mac}") / IP(src="{a.ip}", dst="{b.ip}", flags="MF")'
    send(a, f'{headers} / UDP(sport=67, dport=68, len=248) / Raw(b"x" * 16)')

    assert fabric.dropped_since(before, a.host, "dhcp-server", 3)["dhcp-server"] == 3
    assert b.received() == received
    assert a.ping(b.ip, size=4000) == 3


def test_dhcp_tells_a_guest_its_address_and_mtu(containers: dict[str, Container]) -> None:
    for tenant in OVERLAYS:
        container = containers[f"{tenant}-a"]
        script = container.host.path("/run/virtkit/told")
        script.write_text('#!/bin/sh\n[ "$1" = bound ] && env\nexit 0\n')
        script.chmod(0o755)

        told = container.run("busybox udhcpc -i eth0 -f -q -n -O mtu -s /run/virtkit/told")

        values = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
        assert values["ip"] == "10.1.0.10"
        assert values["subnet"] == "255.255.255.0"
        assert values["serverid"] == "10.1.0.1"
        assert values["mtu"] == str(1500 - OVERHEAD[tenant])
        assert values["hostname"] == "a"
        assert "router" not in values


def test_an_interface_that_names_its_port_is_bound_whoever_made_it(
    fabric: Fabric, containers: dict[str, Container]
) -> None:
    h3 = fabric.lab.host("h3")
    port = fabric("nvctl port create hand -t red -n front --ip 10.1.0.33")
    h3.add_netns("by-hand")
    for line in (
        "ip link add hand0 type veth peer name eth0 netns by-hand",
        "ip link set hand0 up",
        f"ip -n by-hand link set eth0 address {port['mac']} mtu 1450 up",
        "ip -n by-hand address add 10.1.0.33/24 dev eth0",
        "ip netns exec by-hand ethtool -K eth0 tx off",
        "ovs-vsctl add-port br-int hand0 -- set interface hand0 "
        f"external_ids:iface-id={port['id']}",
    ):
        h3.run(line.split())

    def host_of_port() -> str | None:
        return fabric(f"nvctl port get {port['id']}")["host"]

    until(lambda: host_of_port() == "h3", what="the agent has not bound the port", timeout_s=10)
    fabric("nvctl network set front -t red --dns 10.1.0.53 --wait")

    ping = h3.run(["ping", "-c", "3", "-W", "1", containers["red-a"].ip], netns="by-hand")
    assert " 3 received" in ping.stdout
    said = fabric.refused(f"nvctl port unplug {port['id']}", h3)
    assert said.startswith("port hand: interface hand0 on br-int holds it")
    assert host_of_port() == "h3"
    h3.run(["ovs-vsctl", "del-port", "hand0"])
    h3.run(["ip", "link", "delete", "hand0"])
    until(lambda: host_of_port() is None, what="the agent still holds the port", timeout_s=10)
    fabric.do(f"nvctl port delete {port['id']} --yes")
    h3.delete_netns("by-hand")


def test_a_port_that_moves_takes_its_address_along(
    fabric: Fabric, containers: dict[str, Container]
) -> None:
    moving = fabric.container("h2", "red", "front", "moving")
    h2, h3 = fabric.lab.host("h2"), fabric.lab.host("h3")
    assert containers["red-a"].ping(moving.ip) == 3
    assert "is in use on h2" in fabric.refused(
        f"nvctl port plug {moving.port_id} --netns elsewhere", h3
    )

    fabric.do(f"nvctl port unplug {moving.port_id}", h2)
    h3.add_netns(moving.netns)
    fabric(f"nvctl port plug {moving.port_id} --netns {moving.netns}", h3)

    assert containers["red-a"].ping(moving.ip) == 3
    assert fabric(f"nvctl port get {moving.port_id}")["host"] == "h3"
    fabric.do(f"nvctl port unplug {moving.port_id}", h3)
    fabric.do(f"nvctl port delete {moving.port_id} --yes")
    for host in (h2, h3):
        host.delete_netns(moving.netns)


def test_a_port_in_use_is_not_deleted_by_accident(
    fabric: Fabric, containers: dict[str, Container]
) -> None:
    said = fabric.refused("nvctl port delete a -t red -n front --yes")

    assert said.startswith("port a of network front is in use on h1. Unplug it there first")
    assert containers["red-a"].ping("10.1.0.11") == 3


def test_what_was_unplugged_leaves_nothing(fabric: Fabric) -> None:
    h3 = fabric.lab.host("h3")
    flows = fabric.flows(h3)
    links = h3.run(["ip", "-j", "link"]).stdout
    h1_flows = fabric.flows(fabric.lab.host("h1"))

    container = fabric.container("h3", "red", "front", "short")
    assert container.ping("10.1.0.10") == 3
    assert fabric.flows(h3) != flows
    fabric.remove(container)

    fabric("nvctl network set front -t red --label seen=by-all --wait")
    assert fabric.flows(h3) == flows
    assert h3.run(["ip", "-j", "link"]).stdout == links
    assert fabric.flows(fabric.lab.host("h1")) == h1_flows


def test_plugging_twice_is_plugging_once(fabric: Fabric, containers: dict[str, Container]) -> None:
    a = containers["red-a"]
    flows, agent_flows = fabric.flows(a.host), fabric.flows(a.host)

    again = fabric(f"nvctl port plug {a.port_id} --netns {a.netns}", a.host)

    assert again["link"] == a.link
    assert fabric.flows(a.host) == flows == agent_flows
    assert a.ping("10.1.0.11") == 3


def test_a_tap_gets_its_networks_mtu(fabric: Fabric) -> None:
    h3 = fabric.lab.host("h3")
    fabric("nvctl port create vm -t blue -n front --kind vm")
    plugged = fabric("nvctl port plug vm -t blue -n front --tap", h3)

    (link,) = json.loads(h3.run(["ip", "-d", "-j", "link", "show", plugged["link"]]).stdout)

    assert link["linkinfo"]["info_kind"] == "tun"
    assert link["mtu"] == 1458
    fabric.do("nvctl port unplug vm -t blue -n front", h3)
    fabric.do("nvctl port delete vm -t blue -n front --yes")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nvctl port plug a -t red -n front --netns nowhere", "nowhere"),
        ("nvctl port unplug nobody -t red -n front", "port nobody of network front"),
        ("nvctl agent drops --bridge br-none", "br-none"),
    ],
)
def test_bad_input_on_a_host(
    fabric: Fabric, containers: dict[str, Container], line: str, says: str
) -> None:
    h1 = fabric.lab.host("h1")
    flows = fabric.flows(h1)

    said = fabric.refused(line, h1)

    assert says in said
    assert len(said.splitlines()) == 1
    assert fabric.flows(h1) == flows
    assert containers["red-a"].ping("10.1.0.11") == 3
