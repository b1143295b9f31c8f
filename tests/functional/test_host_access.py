"""Hosts in tenants' networks: who reaches whom, by which address, and what Services need."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tests.functional.places import Place, device, is_in, own_port, place
from tests.functional.tenants import Container, Fabric, agent_state, pinging, pinging_from

pytestmark = pytest.mark.functional

GATEWAY = "10.1.0.1"
# A Service's address is on no link; kube-proxy's rules translate it.
SERVICE, SERVICES = "10.96.0.10", "10.96.0.0/16"
NODE_PORT = 30080


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with Lab.up(f"test-host-access-{os.getpid()}", hosts=2) as lab:
        fabric = Fabric(lab)
        for tenant, cidr, options in (
            ("red", "10.1.0.0/24", "--host-access"),
            ("green", "10.2.0.0/24", "--host-access --overlay gre"),
            ("blue", "10.1.0.0/24", ""),
        ):
            fabric(f"nvctl tenant create {tenant}")
            fabric(f"nvctl network create front -t {tenant} --cidr {cidr} {options}")
        for host in (lab.host("h1"), lab.host("h2")):
            # As a node's default route would, of which a lab has none.
            host.run(["ip", "route", "add", SERVICES, "via", str(lab.ctl.address)])
            for tenant in ("red", "green"):
                until(
                    lambda h=host, t=tenant: is_in(fabric, h, t),  # type: ignore[misc]
                    what="the host is not in the network",
                    timeout_s=10,
                )
        yield fabric


@pytest.fixture(scope="module")
def a(fabric: Fabric) -> Container:
    """Red's on h1."""
    return fabric.container("h1", "red", "front", "a")


@pytest.fixture(scope="module")
def b(fabric: Fabric) -> Container:
    """Red's on h2."""
    return fabric.container("h2", "red", "front", "b")


@pytest.fixture(scope="module")
def g(fabric: Fabric) -> Container:
    """Green's on h1, in another network with host access."""
    return fabric.container("h1", "green", "front", "g")


@pytest.fixture(scope="module")
def n(fabric: Fabric) -> Container:
    """Blue's on h1, in a network without."""
    return fabric.container("h1", "blue", "front", "n", "10.1.0.50")


@pytest.fixture
def h1(fabric: Fabric) -> Host:
    return fabric.lab.host("h1")


@pytest.fixture
def h2(fabric: Fabric) -> Host:
    return fabric.lab.host("h2")


@pytest.fixture
def ctl(fabric: Fabric) -> Host:
    """A machine that is in no tenant's network: the outside."""
    return fabric.lab.ctl


# Who reaches whom


def test_a_host_reaches_the_containers_of_all_hosts(
    fabric: Fabric, a: Container, b: Container, h1: Host
) -> None:
    own = own_port(fabric, h1)["addresses"][0]

    for container in (a, b):
        assert Place(h1).ping(container.ip) == 3
        with place(container).serving(container.ip):
            assert Place(h1).call(container.ip) == own


def test_a_container_reaches_the_gateway_and_its_host_by_every_address(
    fabric: Fabric, a: Container, b: Container, h1: Host, h2: Host
) -> None:
    for container, host in ((a, h1), (b, h2)):
        for ip in (GATEWAY, str(host.address), own_port(fabric, host)["addresses"][0]):
            assert container.ping(ip) == 3, ip
            with Place(host).serving(ip):
                assert place(container).call(ip) == container.ip


def test_a_container_reaches_the_outside_with_its_hosts_address(
    a: Container, b: Container, h1: Host, h2: Host, ctl: Host
) -> None:
    with Place(ctl).serving(str(ctl.address)):
        assert place(a).call(str(ctl.address)) == str(h1.address)
        assert place(b).call(str(ctl.address)) == str(h2.address)


def test_a_container_reaches_another_host_by_its_own(a: Container, h1: Host, h2: Host) -> None:
    with Place(h2).serving(str(h2.address)):
        assert place(a).call(str(h2.address)) == str(h1.address)


def test_a_host_is_answered_whatever_its_source_address(
    a: Container, b: Container, h1: Host
) -> None:
    """A far container's answer would otherwise go to its own host, which knows of nothing."""
    for container in (a, b):
        assert Place(h1).ping(container.ip, "-I", str(h1.address)) == 3


def test_packets_of_the_networks_mtu_pass_unbroken(
    fabric: Fabric, a: Container, b: Container, h1: Host, ctl: Host
) -> None:
    mtu = fabric("nvctl network get front -t red")["mtu"]
    whole = ("-M", "do", "-s", str(mtu - 28))

    assert place(a).ping(str(ctl.address), *whole) == 3
    assert place(a).ping(GATEWAY, *whole) == 3
    assert Place(h1).ping(b.ip, *whole) == 3
    assert Place(h1).ping(b.ip, "-M", "do", "-s", str(mtu - 27)) == 0


def test_broadcasts_and_own_addresses_of_hosts_arrive_as_of_any_port(
    fabric: Fabric, a: Container, h2: Host
) -> None:
    far = own_port(fabric, h2)

    assert a.ping(far["addresses"][0]) == 3
    assert far["mac"] in a.run(f"ip neigh show {far['addresses'][0]}")


# Who does not


def test_a_network_without_host_access_knows_no_host_and_no_host_knows_it(
    fabric: Fabric, n: Container, h1: Host, ctl: Host
) -> None:
    n.run(f"ip route replace default via {GATEWAY}")

    for ip in (GATEWAY, str(h1.address), str(ctl.address), own_port(fabric, h1)["addresses"][0]):
        assert n.ping(ip, count=2) == 0, ip
    received = n.received()
    assert Place(h1).ping(n.ip, count=2) == 0
    assert n.received() == received


def test_networks_with_host_access_are_not_joined_by_the_host(
    a: Container, g: Container, h1: Host
) -> None:
    assert Place(h1).ping(g.ip) == 3

    assert a.ping(g.ip) == 0
    assert g.ping(a.ip) == 0


SPOOFED = {
    "ip-source": 'Ether(src="{mac}", dst="0a:76:6b:00:00:01") / IP(src="10.9.9.9", dst="{out}")',
    "mac-source": 'Ether(src="0a:00:00:00:00:99", dst="0a:76:6b:00:00:01") '
    '/ IP(src="{ip}", dst="{out}")',
    "arp-source": 'Ether(src="{mac}", dst="ff:ff:ff:ff:ff:ff") '
    '/ ARP(op=2, hwsrc="{mac}", psrc="10.1.0.1", pdst="{ip}")',
}
SEND = """
    import sys
    from scapy.all import ARP, IP, ICMP, Ether, sendp
    sendp({frame} / ICMP(), iface="eth0", verbose=False, count=5)
"""


@pytest.mark.parametrize("reason", SPOOFED)
def test_what_is_not_a_containers_own_does_not_get_to_the_host(
    fabric: Fabric, a: Container, h1: Host, ctl: Host, reason: str
) -> None:
    before = fabric.drops(h1)

    frame = SPOOFED[reason].format(mac=a.mac, ip=a.ip, out=ctl.address)
    a.python(SEND.format(frame=frame))

    assert fabric.dropped_since(before, h1, reason, 5)[reason] == 5


def test_a_container_does_not_get_to_the_host_by_its_link(
    a: Container, h1: Host, ctl: Host
) -> None:
    """The kernel has forwarding on; the links of ports are none of its."""

    def forwards(place: str) -> bool:
        return h1.run(["sysctl", "-n", f"net/ipv4/{place}"]).stdout == "1\n"

    assert not forwards(f"conf/{a.link}/forwarding")
    # Setting it to what it is changes nothing; setting it anew does, for all links.
    h1.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])

    until(lambda: forwards("ip_forward"), what="the host does not forward", timeout_s=5)
    until(lambda: not forwards(f"conf/{a.link}/forwarding"), what="the link forwards", timeout_s=5)
    assert a.ping(str(ctl.address)) == 3


def test_a_container_does_not_get_to_the_hosts_loopback(a: Container, h1: Host) -> None:
    """Which kube-proxy has the kernel route."""
    receive = """
        import socket
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("127.0.0.1", 9999))
        receiver.settimeout(60)
        print("listening", flush=True)
        while (message := receiver.recv(100).decode()) != "end":
            print(message)
    """
    send = """
        import sys
        from scapy.all import IP, UDP, Ether, Raw, sendp
        headers = Ether(src=sys.argv[1], dst="0a:76:6b:00:00:01")
        packet = headers / IP(src=sys.argv[2], dst="127.0.0.1")
        sendp(packet / UDP(dport=9999) / Raw(b"hello"), iface="eth0", verbose=False)
    """
    end = """
        import socket
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"end", ("127.0.0.1", 9999))
    """

    def received() -> str:
        argv = [sys.executable, "-c", textwrap.dedent(receive)]
        process = h1.popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        a.python(send, a.mac, a.ip)
        # As long as any answer took in the other tests, many times over.
        time.sleep(0.5)
        h1.run([sys.executable, "-c", textwrap.dedent(end)])
        return str(process.communicate(timeout=30)[0]).strip()

    h1.run(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"])
    assert received() == ""
    # It is the rule that keeps it away.
    h1.kill("agent")
    try:
        h1.run(["nft", "delete", "chain", "inet", "virtkit", "prerouting"])
        assert received() == "hello"
    finally:
        h1.start("agent")
    until(lambda: "prerouting" in nft(h1), what="the rule stays away", timeout_s=10)


# Services, as kube-proxy has them


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def iptables(request: pytest.FixtureRequest, h1: Host) -> Iterator[str]:
    """The tool of h1's rules, and an end to them."""
    tool = str(request.param)
    # Marked by kube-proxy is what it wants to come back here.
    marked = ["-m", "mark", "--mark", "0x4000/0x4000", "-j", "MASQUERADE"]
    h1.run([tool, "-t", "nat", "-A", "POSTROUTING", *marked])
    yield tool
    h1.run([tool, "-t", "nat", "-F"])


def service(h1: Host, tool: str, backend: Container) -> None:
    """Translate the Service's address, for containers and for the host itself."""
    for chain in ("PREROUTING", "OUTPUT"):
        match = ["-d", SERVICE, "-p", "tcp", "--dport", "80"]
        target = ["-j", "DNAT", "--to-destination", f"{backend.ip}:8080"]
        h1.run([tool, "-t", "nat", "-A", chain, *match, *target])


@pytest.mark.parametrize("where", ["same host", "other host", "itself"])
def test_a_container_reaches_a_service(
    fabric: Fabric, a: Container, b: Container, h1: Host, iptables: str, where: str
) -> None:
    near = fabric.container("h1", "red", "front", f"near-{iptables}")
    backend = {"same host": near, "other host": b, "itself": a}[where]
    service(h1, iptables, backend)
    try:
        with place(backend).serving(backend.ip):
            assert place(a).call(SERVICE, 80) == own_port(fabric, h1)["addresses"][0]
    finally:
        fabric.remove(near)


def test_a_container_reaches_a_service_in_another_network(
    fabric: Fabric, a: Container, g: Container, h1: Host, iptables: str
) -> None:
    """Which no packet could do that is not translated."""
    service(h1, iptables, g)

    with place(g).serving(g.ip):
        assert place(a).call(SERVICE, 80) == own_port(fabric, h1, "green")["addresses"][0]


@pytest.mark.parametrize("where", ["same host", "other host"])
def test_a_host_reaches_a_service(
    fabric: Fabric, a: Container, b: Container, h1: Host, iptables: str, where: str
) -> None:
    backend = {"same host": a, "other host": b}[where]
    service(h1, iptables, backend)

    with place(backend).serving(backend.ip):
        assert Place(h1).call(SERVICE, 80) == own_port(fabric, h1)["addresses"][0]


@pytest.mark.parametrize("where", ["same host", "other host"])
def test_another_machine_reaches_a_port_of_the_host(
    fabric: Fabric,
    a: Container,
    b: Container,
    h1: Host,
    ctl: Host,
    iptables: str,
    where: str,
) -> None:
    """To a far container only with kube-proxy's mark; to a near one with the caller's address."""
    backend, seen = (a, str(ctl.address)) if where == "same host" else (b, "")
    match = ["-d", str(h1.address), "-p", "tcp", "--dport", str(NODE_PORT)]
    if where == "other host":
        mark = ["-j", "MARK", "--or-mark", "0x4000"]
        h1.run([iptables, "-t", "nat", "-A", "PREROUTING", *match, *mark])
        seen = own_port(fabric, h1)["addresses"][0]
    target = ["-j", "DNAT", "--to-destination", f"{backend.ip}:8080"]
    h1.run([iptables, "-t", "nat", "-A", "PREROUTING", *match, *target])

    with place(backend).serving(backend.ip):
        assert Place(ctl).call(str(h1.address), NODE_PORT) == seen


def test_where_forwarding_is_dropped_two_rules_let_containers_out(
    a: Container, h1: Host, ctl: Host
) -> None:
    """As docs/network.md has them, for hosts with Docker, say."""
    h1.run(["iptables", "-P", "FORWARD", "DROP"])
    try:
        assert a.ping(str(ctl.address), count=2) == 0
        for way in ("-i", "-o"):
            h1.run(["iptables", "-I", "FORWARD", way, "vh+", "-j", "ACCEPT"])
        assert a.ping(str(ctl.address)) == 3
    finally:
        h1.run(["iptables", "-P", "FORWARD", "ACCEPT"])
        h1.run(["iptables", "-F", "FORWARD"])


# What fails, and what comes back


def test_nobody_notices_that_the_agent_is_killed(
    fabric: Fabric, a: Container, b: Container, h1: Host, ctl: Host
) -> None:
    flows, rules = fabric.flows(h1), nft(h1)

    with ExitStack() as stack:
        losses = [
            stack.enter_context(pinging_from(h1, b.ip)),
            stack.enter_context(pinging(a, str(ctl.address))),
            stack.enter_context(pinging(a, GATEWAY)),
        ]
        for _ in range(2):
            h1.kill("agent")
            h1.start("agent")
            assert agent_state(h1)["flow_mods_sent"] == 0

    assert losses == [[], [], []]
    assert fabric.flows(h1) == flows
    assert nft(h1) == rules


@pytest.mark.parametrize("how", ["crash", "stop", "clean up"])
def test_the_device_comes_back_with_the_switch(
    fabric: Fabric, a: Container, h1: Host, ctl: Host, how: str
) -> None:
    name = device(fabric, h1)
    before = index_of(h1, name)
    if how == "crash":
        h1.kill("ovs-vswitchd")
    elif how == "stop":
        h1.stop("ovs-vswitchd")
    else:
        h1.run(["ovs-appctl", "exit", "--cleanup"])
        until(lambda: not h1.is_running("ovs-vswitchd"), what="it runs", timeout_s=10)
        assert index_of(h1, name) is None
    h1.start("ovs-vswitchd")

    until(lambda: is_in(fabric, h1, "red"), what="the device is not fitted", timeout_s=10)
    until(lambda: a.ping(str(ctl.address), count=1) == 1, what="nothing passes", timeout_s=10)
    assert Place(h1).ping(a.ip) == 3
    assert own_port(fabric, h1)["mac"] in h1.run(["ip", "link", "show", name]).stdout
    assert how != "clean up" or index_of(h1, name) != before


def test_a_device_that_somebody_deletes_is_made_anew(
    fabric: Fabric, a: Container, h1: Host
) -> None:
    """The switch by itself goes on with what is not there."""
    h1.run(["ip", "link", "delete", device(fabric, h1)])

    until(lambda: is_in(fabric, h1, "red"), what="the device stays away", timeout_s=15)
    until(lambda: a.ping(GATEWAY, count=1) == 1, what="nothing passes", timeout_s=10)
    assert Place(h1).ping(a.ip) == 3


def index_of(host: Host, name: str) -> int | None:
    """The kernel's number of a link, if there is such a one."""
    links = json.loads(host.run(["ip", "-j", "link"]).stdout)
    return next((link["ifindex"] for link in links if link["ifname"] == name), None)


def test_what_somebody_changes_is_put_back(
    fabric: Fabric, a: Container, h1: Host, ctl: Host
) -> None:
    rules, name = nft(h1), device(fabric, h1)

    h1.run(["nft", "flush", "ruleset"])
    h1.run(["ip", "address", "flush", "dev", name])

    until(lambda: nft(h1) == rules, what="the rules stay away", timeout_s=5)
    until(lambda: is_in(fabric, h1, "red"), what="the address stays away", timeout_s=10)
    assert a.ping(str(ctl.address)) == 3


def test_host_access_that_is_taken_away_leaves_nothing(fabric: Fabric, h1: Host) -> None:
    fabric("nvctl network create back -t red --cidr 10.3.0.0/24 --host-access")
    names = lambda: [p["name"] for p in fabric("nvctl port list -t red -n back")]  # noqa: E731
    until(lambda: names() == ["host-h1", "host-h2"], what="no hosts", timeout_s=10)
    until(lambda: "10.3.0." in addresses(h1), what="no address", timeout_s=10)

    fabric("nvctl network set back -t red --no-host-access")

    assert names() == []
    until(lambda: "10.3.0." not in addresses(h1), what="the address stays", timeout_s=10)
    until(lambda: nft(h1).count('"vh') == 6, what="the rules stay", timeout_s=10)
    fabric("nvctl network set back -t red --host-access")
    until(lambda: "10.3.0." in addresses(h1), what="no address", timeout_s=10)
    fabric.do("nvctl network delete back -t red --yes")
    until(lambda: "10.3.0." not in addresses(h1), what="the address stays", timeout_s=10)


def test_a_host_that_has_an_address_in_the_network_stays_out_and_says_so(
    fabric: Fabric, a: Container, h1: Host, ctl: Host
) -> None:
    h1.run(["ip", "address", "add", "10.4.0.77/32", "dev", "lo"])
    fabric("nvctl network create back -t red --cidr 10.4.0.0/24 --host-access")

    def problems(host: str) -> str:
        return str(fabric(f"nvctl host get {host}")["problems"])

    until(
        lambda: "covers 10.4.0.77, which the host has on lo" in problems("h1"),
        what="no problem",
        timeout_s=10,
    )
    assert problems("h2") == "[]"
    assert "10.4.0.0/24" not in h1.run(["ip", "route"]).stdout
    assert a.ping(str(ctl.address)) == 3
    h1.run(["ip", "address", "del", "10.4.0.77/32", "dev", "lo"])
    until(lambda: problems("h1") == "[]", what="it stays out", timeout_s=10)
    fabric.do("nvctl network delete back -t red --yes")


def test_without_nftables_nothing_gets_out_and_the_host_says_why(
    fabric: Fabric, a: Container, h1: Host, ctl: Host
) -> None:
    (library,) = {found.resolve() for found in Path("/usr/lib").glob("*/libnftables.so.1")}
    h1.kill("agent")
    h1.run(["mount", "--bind", "/dev/null", str(library)])
    h1.start("agent")

    def problems() -> str:
        return str(fabric("nvctl host get h1")["problems"])

    until(lambda: "do not get out by this host" in problems(), what="no problem", timeout_s=10)
    assert "apt-get install python3-nftables" in problems()
    assert Place(h1).ping(a.ip) == a.ping(GATEWAY) == 3
    assert a.ping(str(ctl.address), count=2) == 0

    h1.run(["umount", str(library)])
    until(lambda: problems() == "[]", what="it is still missing", timeout_s=10)
    assert a.ping(str(ctl.address)) == 3


def test_a_host_whose_ports_name_is_taken_says_so(fabric: Fabric, h2: Host) -> None:
    """By a port that was made when the host was not known."""
    h2.kill("agent")
    fabric.do("nvctl host delete h2 --force --yes")
    assert all(port["name"] != "host-h2" for port in fabric("nvctl port list"))
    fabric("nvctl port create host-h2 -t green -n front")
    h2.start("agent")

    def problems() -> str:
        return str(fabric("nvctl host get h2")["problems"])

    until(
        lambda: "port host-h2 of network front exists" in problems(),
        what="no problem",
        timeout_s=15,
    )
    until(lambda: is_in(fabric, h2, "red"), what="it is not in the other", timeout_s=10)
    fabric.do("nvctl port delete host-h2 -t green -n front --yes")
    until(lambda: problems() == "[]", what="it stays out", timeout_s=15)
    assert is_in(fabric, h2, "green")


def test_refusals_say_what_to_do(fabric: Fabric, h1: Host) -> None:
    create = "nvctl network create back -t blue --host-access --cidr"

    assert "overlap 10.1.0.0/24 of network front of tenant red" in fabric.refused(
        f"{create} 10.1.0.0/16"
    )
    assert "would cover 10.77.0.11, the tunnel endpoint of host h1" in fabric.refused(
        f"{create} 10.77.0.0/24"
    )
    for verb in ("delete host-h1 --yes", "plug host-h1 --tap", "unplug host-h1"):
        said = fabric.refused(f"nvctl port {verb} -t red -n front", h1)
        assert "is a host's own and can't be" in said, said


def nft(host: Host) -> str:
    """The rules for host access."""
    return host.run(["nft", "list", "table", "inet", "virtkit"], check=False).stdout


def addresses(host: Host) -> str:
    return host.run(["ip", "-4", "address"]).stdout
