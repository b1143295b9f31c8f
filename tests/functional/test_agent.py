"""What an agent makes of a world that changes behind its back, in any order."""

import os
from collections.abc import Iterator

import pytest

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tests.functional.tenants import Container, Fabric, agent_state

pytestmark = pytest.mark.functional


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with Lab.up(f"test-agent-{os.getpid()}", hosts=2) as lab:
        fabric = Fabric(lab)
        fabric("nvctl tenant create red")
        fabric("nvctl network create front -t red --cidr 10.1.0.0/24")
        fabric("nvctl network create back -t red --cidr 10.2.0.0/24")
        yield fabric


@pytest.fixture
def pair(fabric: Fabric) -> Iterator[tuple[Container, Container]]:
    """`a` on h1 and `b` on h2."""
    a, b = (
        fabric.container(host, "red", "front", name) for host, name in (("h1", "a"), ("h2", "b"))
    )
    assert a.ping(b.ip) == 3
    yield a, b
    for container in (a, b):
        fabric.remove(container)


def meets(a: Container, b: Container) -> None:
    until(lambda: a.ping(b.ip, count=1) == 1, what="no ping is answered", timeout_s=10)


def is_at(fabric: Fabric, container: Container, host: str | None) -> None:
    def found() -> bool:
        return bool(fabric(f"nvctl port get {container.port_id}")["host"] == host)

    until(found, what=f"port {container.name} is not at {host}", timeout_s=10)


def assert_flows_are_complete(host: Host) -> None:
    """An agent started anew, which compiles everything afresh, finds nothing to change."""
    host.stop("agent")
    host.start("agent")
    assert agent_state(host)["flow_mods_sent"] == 0


def foreign_interface(host: Host, name: str, port_id: str) -> None:
    """An interface that somebody else puts on the switch for a port."""
    host.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-in"])
    host.run(["ip", "link", "set", name, "up"])
    ids = f"external_ids:iface-id={port_id}"
    host.run(["ovs-vsctl", "add-port", "br-int", name, "--", "set", "Interface", name, ids])


def remove_interface(host: Host, name: str) -> None:
    host.run(["ovs-vsctl", "del-port", "br-int", name])
    host.run(["ip", "link", "delete", name])


def test_a_switch_that_restarts_without_the_database_gets_its_flows(
    fabric: Fabric, pair: tuple[Container, Container]
) -> None:
    """Also when a network has gone from the host meanwhile, so that there is a new interest."""
    a, b = pair
    leaving = fabric.container("h1", "red", "back", "leaving")
    fabric.lab.ctl.kill("fabric")
    before = len(fabric.flows(a.host))
    a.host.run(["ovs-vsctl", "del-port", "br-int", leaving.link])
    until(lambda: len(fabric.flows(a.host)) < before, what="its flows stay", timeout_s=10)

    a.host.kill("ovs-vswitchd")
    a.host.start("ovs-vswitchd")

    meets(a, b)
    fabric.lab.ctl.start("fabric")
    is_at(fabric, leaving, None)
    fabric.remove(leaving)
    assert a.ping(b.ip) == 3
    assert_flows_are_complete(a.host)


def test_a_port_whose_namespace_went_is_given_up_and_can_be_plugged_in_again(
    fabric: Fabric, pair: tuple[Container, Container]
) -> None:
    a, b = pair
    a.host.delete_netns(a.netns)
    is_at(fabric, a, None)

    a.host.add_netns(a.netns)
    fabric(f"nvctl port plug {a.port_id} --netns {a.netns}", a.host)

    assert a.ping(b.ip) == 3
    assert b.ping(a.ip) == 3


def test_plugging_in_anew_at_once_reaches_the_new_device(
    fabric: Fabric, pair: tuple[Container, Container]
) -> None:
    """The switch still has the deleted device of the same name open."""
    a, b = pair
    a.host.delete_netns(a.netns)
    a.host.add_netns(a.netns)

    fabric(f"nvctl port plug {a.port_id} --netns {a.netns}", a.host)

    meets(a, b)


def test_a_port_claimed_elsewhere_comes_back_when_the_rival_goes(
    fabric: Fabric, pair: tuple[Container, Container]
) -> None:
    a, b = pair
    foreign_interface(b.host, "rival", a.port_id)
    is_at(fabric, a, "h2")

    remove_interface(b.host, "rival")

    is_at(fabric, a, "h1")
    meets(a, b)
    assert_flows_are_complete(a.host)


def test_a_second_interface_for_a_port_of_this_host_changes_nothing(
    fabric: Fabric, pair: tuple[Container, Container]
) -> None:
    a, b = pair
    flows = fabric.flows(a.host)
    foreign_interface(a.host, "second", a.port_id)

    assert a.ping(b.ip) == 3
    assert fabric.flows(a.host) == flows
    remove_interface(a.host, "second")
    assert a.ping(b.ip) == 3


def test_an_interface_may_change_its_port_and_its_number(
    fabric: Fabric, pair: tuple[Container, Container]
) -> None:
    a, b = pair
    other = fabric("nvctl port create other -t red -n front")["id"]

    def set_port(port: str) -> None:
        ids = f"external_ids:iface-id={port}"
        a.host.run(["ovs-vsctl", "set", "Interface", a.link, ids])

    set_port(other)
    is_at(fabric, a, None)
    set_port(a.port_id)
    is_at(fabric, a, "h1")
    a.host.run(["ovs-vsctl", "set", "Interface", a.link, "ofport_request=77"])

    meets(a, b)
    assert_flows_are_complete(a.host)
    fabric.do(f"nvctl port delete {other} --yes")


def test_a_host_that_is_forgotten_while_its_agent_runs_enters_itself_again(
    fabric: Fabric, pair: tuple[Container, Container]
) -> None:
    a, b = pair

    fabric.do("nvctl host delete h1 --yes --force")

    is_at(fabric, a, "h1")
    meets(b, a)
    assert "h1" in {host["name"] for host in fabric("nvctl host list")}


def test_a_port_deleted_under_its_interface_loses_its_flows(fabric: Fabric) -> None:
    a = fabric.container("h1", "red", "back", "a")

    fabric.do(f"nvctl port delete {a.port_id} --yes --force --wait")

    assert not [flow for flow in fabric.flows(a.host) if a.mac in flow]
    assert_flows_are_complete(a.host)
    a.host.run(["ovs-vsctl", "del-port", "br-int", a.link])
    a.host.delete_netns(a.netns)


def test_a_segment_id_may_be_used_again(fabric: Fabric) -> None:
    """By another network, with the same addresses, on interfaces that stayed."""
    segment = fabric("nvctl network create old -t red --cidr 10.3.0.0/24")["segment_id"]
    first, second = (fabric.container(host, "red", "old", host) for host in ("h1", "h2"))
    for container in (first, second):
        fabric.do(f"nvctl port delete {container.port_id} --yes --force")
    fabric.do("nvctl network delete old -t red --yes")
    fabric(f"nvctl network create new -t red --cidr 10.3.0.0/24 --segment-id {segment}")

    for container in (first, second):
        flags = f"--mac {container.mac} --ip {container.ip}"
        port = fabric(f"nvctl port create {container.name} -t red -n new {flags}")["id"]
        ids = f"external_ids:iface-id={port}"
        container.host.run(["ovs-vsctl", "set", "Interface", container.link, ids])

    meets(first, second)
    meets(second, first)
    for container in (first, second):
        assert_flows_are_complete(container.host)


def test_a_bridge_deleted_by_hand_is_made_again(fabric: Fabric) -> None:
    host = fabric.lab.host("h2")
    host.run(["ovs-vsctl", "del-br", "br-int"])

    def is_whole() -> bool:
        ports = host.run(["ovs-vsctl", "list-ports", "br-int"], check=False).stdout.split()
        return {"vk-vxlan", "vk-gre"} <= set(ports)

    until(is_whole, what="no bridge", timeout_s=10)
    a, b = (fabric.container(name, "red", "back", name) for name in ("h1", "h2"))
    assert a.ping(b.ip) == 3
