"""Containers of podman with its CNI backend, in tenant networks."""

import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from lab.host import Host
from lab.waiting import until
from tests.functional.runtimes import conflist
from tests.functional.runtimes.cluster import Cluster, cluster, fetch, joins
from tests.functional.runtimes.images import BUSYBOX
from tests.functional.runtimes.leftovers import nothing_left
from tests.functional.runtimes.podman import Podman, PodmanContainer

pytestmark = pytest.mark.functional

NETWORKS = {
    "pods": "--cidr 10.244.0.0/24 --host-access",
    "second": "--cidr 10.246.0.0/24 --cidr fd00:246::/64 --overlay gre",
}
# What `nvctl cni install` writes for network `pods`.
DEFAULT = "virtkit"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("images")
    with cluster(f"test-podman-{os.getpid()}", directory, NETWORKS) as nodes:
        for host in nodes.lab.hosts:
            conflist.write(host, joins("second"))
        yield nodes


@pytest.fixture(scope="module")
def podmen(nodes: Cluster) -> dict[str, Podman]:
    """podman on either node. A first container of each, since a node keeps its own port."""
    found = {host.name: Podman.install(host, nodes.archive) for host in nodes.lab.hosts}
    for podman in found.values():
        podman.run_container("first", DEFAULT).remove()
    return found


@pytest.fixture(autouse=True)
def all_is_as_before(nodes: Cluster, podmen: dict[str, Podman]) -> Iterator[None]:
    with nothing_left(nodes.lab):
        yield
        for podman in podmen.values():
            podman("rm", "--all", "--force", "--time", "0")


@pytest.fixture
def h1(podmen: dict[str, Podman]) -> Podman:
    return podmen["h1"]


@pytest.fixture
def h2(podmen: dict[str, Podman]) -> Podman:
    return podmen["h2"]


@pytest.mark.parametrize("network", [DEFAULT, "second"])
def test_containers_on_two_hosts_reach_each_other_with_the_first_packet(
    h1: Podman, h2: Podman, network: str
) -> None:
    a, b = h1.run_container("a", network), h2.run_container("b", network)

    assert b.answers_first_ping_to(a.ip)
    assert a.answers_first_ping_to(b.ip)


def test_podman_and_the_fabric_agree_on_address_and_mac(nodes: Cluster, h1: Podman) -> None:
    a = h1.run_container("a", DEFAULT)

    port = nodes.port_of("a")

    assert (port["addresses"], port["mac"], port["host"]) == ([a.ip], a.mac, "h1")
    assert ip_address(a.ip) in ip_network("10.244.0.0/24")


def test_a_container_has_the_address_and_mac_that_it_asks_for(
    nodes: Cluster, h1: Podman, h2: Podman
) -> None:
    wanted = ("--ip", "10.244.0.77", "--mac-address", "02:11:22:33:44:55")
    a, b = h1.run_container("a", DEFAULT, *wanted), h2.run_container("b", DEFAULT)

    assert (a.ip, a.mac) == ("10.244.0.77", "02:11:22:33:44:55")
    assert b.answers_first_ping_to("10.244.0.77")
    assert nodes.port_of("a")["mac"] == "02:11:22:33:44:55"


def test_a_container_may_ask_for_an_address_of_either_family(h1: Podman, h2: Podman) -> None:
    wanted = ("--ip", "10.246.0.77", "--ip6", "fd00:246::77")
    a, b = h1.run_container("a", "second", *wanted), h2.run_container("b", "second")

    known = h1.inspect("a")["NetworkSettings"]["Networks"]["second"]
    assert (known["IPAddress"], known["GlobalIPv6Address"]) == ("10.246.0.77", "fd00:246::77")
    assert b.answers_first_ping_to("10.246.0.77")
    assert b.answers_first_ping_to("fd00:246::77")
    assert a.answers_first_ping_to(b.ip)


def test_an_address_that_is_taken_on_another_host_is_refused(
    nodes: Cluster, h1: Podman, h2: Podman
) -> None:
    h1.run_container("a", DEFAULT, "--ip", "10.244.0.77")

    with nothing_left(nodes.lab):
        said = h2.refused("run", "--network", DEFAULT, "--ip", "10.244.0.77", BUSYBOX, "true")

        assert "10.244.0.77" in said
        assert "network pods" in said, said
        h2("rm", "--all", "--force")


def test_a_published_port_is_reached_on_the_host_and_from_another(
    nodes: Cluster, h1: Podman
) -> None:
    web = h1.run_container("web", DEFAULT, "--publish", "8080:80")
    web.serve(80, "published")
    url = f"http://{h1.host.address}:8080/"

    for host in nodes.lab.hosts:
        assert fetch(host, url) == "published", host.name


def test_a_container_joins_two_networks(h1: Podman, h2: Podman) -> None:
    both = h1.run_container("both", DEFAULT, "--network", "second")
    peers = [h2.run_container(f"in-{name}", name) for name in (DEFAULT, "second")]

    assert all(both.answers_first_ping_to(peer.ip) for peer in peers)
    assert _interfaces(both) == ["eth0", "eth1"]


def test_a_running_container_joins_a_network_and_leaves_it(
    nodes: Cluster, h1: Podman, h2: Podman
) -> None:
    a, peer = h1.run_container("a", DEFAULT), h2.run_container("peer", "second")
    assert not a.answers_first_ping_to(peer.ip)

    with nothing_left(nodes.lab):
        h1("network", "connect", "second", "a")
        assert a.answers_first_ping_to(peer.ip)
        assert _interfaces(a) == ["eth0", "eth1"]
        h1("network", "disconnect", "second", "a")

    assert _interfaces(a) == ["eth0"]


def test_a_container_that_is_started_again_has_one_port(
    nodes: Cluster, h1: Podman, h2: Podman
) -> None:
    a, b = h1.run_container("a", DEFAULT), h2.run_container("b", DEFAULT)

    h1("restart", "--time", "0", "a")

    again = h1.inspect("a")["NetworkSettings"]["Networks"][DEFAULT]["IPAddress"]
    assert nodes.port_of("a")["addresses"] == [again]
    assert a.answers_first_ping_to(b.ip)


def test_a_container_that_ends_by_itself_gives_its_address_back(nodes: Cluster, h1: Podman) -> None:
    with nothing_left(nodes.lab):
        h1("run", "--detach", "--rm", "--network", DEFAULT, BUSYBOX, "sleep", "0.5")

        until(lambda: not h1("ps", "--all", "--quiet"), what="it does not end", timeout_s=10)


def test_a_network_that_podman_has_is_left_as_it_is(h1: Podman) -> None:
    """podman lists what is in its directory, and writes only what it is asked to make."""
    files = _files(h1.host)
    h1.run_container("a", DEFAULT).remove()

    names = h1("network", "ls", "--format", "{{.Name}}").split()

    assert {DEFAULT, "second"} <= set(names)
    assert h1("network", "inspect", DEFAULT)
    assert _files(h1.host) == files


def test_containers_are_removed_while_the_agent_is_away(nodes: Cluster, h1: Podman) -> None:
    with nothing_left(nodes.lab):
        a = h1.run_container("a", DEFAULT)
        h1.host.stop("agent")

        a.remove()

        h1.host.start("agent")


def test_without_an_agent_a_container_is_refused_with_a_reason(nodes: Cluster, h1: Podman) -> None:
    h1.host.stop("agent")
    with nothing_left(nodes.lab):
        said = h1.refused("run", "--network", DEFAULT, BUSYBOX, "true")
        h1("rm", "--all", "--force")
        h1.host.start("agent")

    assert "/run/virtkit/cni.sock" in said


def _interfaces(container: PodmanContainer) -> list[str]:
    links = container.run("ls", "/sys/class/net").split()
    return sorted(link for link in links if link.startswith("eth"))


def _files(host: Host) -> dict[str, str]:
    directory = host.path(conflist.DIRECTORY)
    return {file.name: file.read_text() for file in directory.iterdir() if file.is_file()}
