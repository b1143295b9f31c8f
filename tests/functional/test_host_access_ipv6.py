"""Hosts in tenants' networks of IPv6, and of both families."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from lab import ovs, underlay
from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tests.functional.places import Place, device, is_in, own_port, place
from tests.functional.tenants import Container, Fabric, pinging, pinging_from

pytestmark = pytest.mark.functional

GATEWAY = "fd00:1::1"
GATEWAY_MAC = "0a:76:6b:00:00:01"
SERVICE, SERVICES = "fd00:96::10", "fd00:96::/64"
# The underlay's own addresses of IPv6, of which a lab has none.
OUTSIDE = {"ctl": "fd77::1", "h1": "fd77::11", "h2": "fd77::12"}


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with Lab.up(f"test-host-access-ipv6-{os.getpid()}", hosts=2) as lab:
        fabric = Fabric(lab)
        for host in (lab.ctl, lab.host("h1"), lab.host("h2")):
            give_address(host)
        for tenant, cidrs, options in (
            ("red", "--cidr 10.1.0.0/24 --cidr fd00:1::/64", "--host-access"),
            ("green", "--cidr fd00:2::/64", "--host-access"),
            ("blue", "--cidr fd00:1::/64", ""),
        ):
            fabric(f"nvctl tenant create {tenant}")
            fabric(f"nvctl network create front -t {tenant} {cidrs} {options}")
        for host in (lab.host("h1"), lab.host("h2")):
            host.run(["ip", "route", "add", SERVICES, "via", OUTSIDE["ctl"]])
            for tenant in ("red", "green"):
                until(
                    lambda h=host, t=tenant: is_in(fabric, h, t),  # type: ignore[misc]
                    what="the host is not in the network",
                    timeout_s=10,
                )
        yield fabric


def give_address(host: Host) -> None:
    link = underlay.BRIDGE if host.name == "ctl" else ovs.PHYSICAL_BRIDGE
    address = f"{OUTSIDE[host.name]}/64"
    host.run(["ip", "address", "replace", address, "dev", link, "nodad"])


def ip_of(fabric: Fabric, container: Container) -> str:
    addresses = fabric(f"nvctl port get {container.port_id}")["addresses"]
    (ip,) = [address for address in addresses if ":" in address]
    return str(ip)


def own_ip(fabric: Fabric, host: Host, tenant: str = "red") -> str:
    (ip,) = [ip for ip in own_port(fabric, host, tenant)["addresses"] if ":" in ip]
    return str(ip)


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
    """Green's on h1, in a network of IPv6 alone."""
    return fabric.container("h1", "green", "front", "g")


@pytest.fixture
def h1(fabric: Fabric) -> Host:
    return fabric.lab.host("h1")


@pytest.fixture
def h2(fabric: Fabric) -> Host:
    return fabric.lab.host("h2")


@pytest.fixture
def ctl(fabric: Fabric) -> Host:
    return fabric.lab.ctl


def test_a_host_reaches_the_containers_of_all_hosts(
    fabric: Fabric, a: Container, b: Container, g: Container, h1: Host
) -> None:
    for container in (a, b, g):
        ip = ip_of(fabric, container)
        assert Place(h1).ping(ip) == 3
        with place(container).serving(ip):
            assert Place(h1).call(ip) == own_ip(fabric, h1, container.tenant)


def test_a_container_reaches_the_gateway_and_its_host_by_every_address(
    fabric: Fabric, a: Container, b: Container, h1: Host, h2: Host
) -> None:
    for container, host in ((a, h1), (b, h2)):
        for ip in (GATEWAY, OUTSIDE[host.name], own_ip(fabric, host)):
            assert container.ping(ip) == 3, ip
            with Place(host).serving(ip):
                assert place(container).call(ip) == ip_of(fabric, container)


def test_the_gateway_has_the_same_mac_address_on_every_host(
    fabric: Fabric, a: Container, b: Container, h1: Host, h2: Host
) -> None:
    """Also for one whom the gateway asks, as it does to answer."""
    for container, host in ((a, h1), (b, h2)):
        container.run("ip neigh flush all")
        host.run(["ip", "neigh", "flush", "dev", device(fabric, host)])
        assert container.ping(GATEWAY) == 3
        assert Place(host).ping(ip_of(fabric, container), "-I", GATEWAY) == 3
        assert GATEWAY_MAC in container.run(f"ip neigh show {GATEWAY}")
        assert container.ping(GATEWAY) == 3


def test_a_container_reaches_the_outside_with_its_hosts_address(
    a: Container, b: Container, g: Container, ctl: Host
) -> None:
    with Place(ctl).serving(OUTSIDE["ctl"]):
        for container in (a, b, g):
            assert place(container).call(OUTSIDE["ctl"]) == OUTSIDE[container.host.name]


def test_both_families_get_out(a: Container, h1: Host, ctl: Host) -> None:
    with Place(ctl).serving(str(ctl.address)):
        assert place(a).call(str(ctl.address)) == str(h1.address)
    assert a.ping(OUTSIDE["ctl"]) == 3


def test_a_host_is_answered_whatever_its_source_address(
    fabric: Fabric, a: Container, b: Container, h1: Host
) -> None:
    for container in (a, b):
        assert Place(h1).ping(ip_of(fabric, container), "-I", OUTSIDE["h1"]) == 3


def test_packets_of_the_networks_mtu_pass_unbroken(
    fabric: Fabric, a: Container, b: Container, h1: Host
) -> None:
    mtu = fabric("nvctl network get front -t red")["mtu"]

    for size, passed in ((mtu - 48, 3), (mtu - 47, 0)):
        whole = ("-M", "do", "-s", str(size))
        assert place(a).ping(OUTSIDE["ctl"], *whole) == passed
        assert Place(h1).ping(ip_of(fabric, b), *whole) == passed


def test_networks_with_host_access_are_not_joined_by_the_host(
    fabric: Fabric, a: Container, g: Container, h1: Host
) -> None:
    assert Place(h1).ping(ip_of(fabric, g)) == 3

    assert a.ping(ip_of(fabric, g)) == 0
    assert g.ping(ip_of(fabric, a)) == 0


def test_a_network_without_host_access_knows_no_host(
    fabric: Fabric, h1: Host, a: Container
) -> None:
    n = fabric.container("h1", "blue", "front", "n", "fd00:1::50")
    n.run(f"ip -6 route replace default via {GATEWAY} dev eth0")

    for ip in (GATEWAY, OUTSIDE["h1"], OUTSIDE["ctl"], own_ip(fabric, h1), ip_of(fabric, a)):
        assert n.ping(ip, count=2) == 0, ip
    assert Place(h1).ping("fd00:1::50", count=2) == 0
    fabric.remove(n)


def test_a_host_that_forwards_still_listens_to_routers(h1: Host) -> None:
    def setting(place: str) -> str:
        return h1.run(["sysctl", "-n", f"net/ipv6/conf/{place}"]).stdout.strip()

    assert setting("all/forwarding") == "1"
    assert setting(f"{ovs.PHYSICAL_BRIDGE}/accept_ra") == "2"


@pytest.mark.parametrize("where", ["same host", "other host", "itself", "other network"])
def test_a_container_and_its_host_reach_a_service(
    fabric: Fabric, a: Container, b: Container, g: Container, h1: Host, where: str
) -> None:
    near = fabric.container("h1", "red", "front", "near")
    backends = {"same host": near, "other host": b, "itself": a, "other network": g}
    backend = backends[where]
    ip = ip_of(fabric, backend)
    for chain in ("PREROUTING", "OUTPUT"):
        rule = ["-d", SERVICE, "-p", "tcp", "--dport", "80", "-j", "DNAT"]
        target = ["--to-destination", f"[{ip}]:8080"]
        h1.run(["ip6tables", "-t", "nat", "-A", chain, *rule, *target])
    try:
        with place(backend).serving(ip):
            seen = own_ip(fabric, h1, backend.tenant)
            assert place(a).call(SERVICE, 80) == seen
            assert Place(h1).call(SERVICE, 80) == seen
    finally:
        h1.run(["ip6tables", "-t", "nat", "-F"])
        fabric.remove(near)


def test_nobody_notices_that_the_agent_is_killed(
    fabric: Fabric, a: Container, b: Container, h1: Host
) -> None:
    with ExitStack() as stack:
        losses = [
            stack.enter_context(pinging_from(h1, ip_of(fabric, b))),
            stack.enter_context(pinging(a, OUTSIDE["ctl"])),
            stack.enter_context(pinging(a, GATEWAY)),
        ]
        for _ in range(2):
            h1.kill("agent")
            h1.start("agent")

    assert losses == [[], [], []]


def test_the_device_comes_back_with_the_switch(fabric: Fabric, a: Container, h1: Host) -> None:
    h1.kill("ovs-vswitchd")
    h1.start("ovs-vswitchd")
    give_address(h1)

    until(lambda: is_in(fabric, h1, "red"), what="the device is not fitted", timeout_s=10)
    until(lambda: a.ping(OUTSIDE["ctl"], count=1) == 1, what="nothing passes", timeout_s=10)
    assert Place(h1).ping(ip_of(fabric, a)) == 3
