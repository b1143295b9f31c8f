"""Networks and ports on a real database, also when many ask at once."""

import threading
import time
from collections.abc import Callable

import pytest

from netvirt.model import Host, Overlay, holder
from netvirt.rows import binding
from netvirt.service import hosts, networks, ports
from netvirt.service.networks import NetworkRequest
from netvirt.service.ports import PortRequest
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.errors import (
    AlreadyExists,
    BackendUnavailable,
    InvalidRequest,
    QuotaExceeded,
    Refused,
    VirtkitError,
)
from tenancy.model import Resource


@pytest.fixture(autouse=True)
def red(fabric: Fabric) -> None:
    tenants.create(fabric, "red")
    networks.create(fabric, "red", NetworkRequest(name="front", cidrs=["10.1.0.0/24"]))


def at_once(remote: str, number: int, act: Callable[[Fabric, int], None]) -> list[VirtkitError]:
    """Let that many act at the same moment, each on its own connection; the errors they met."""
    errors: list[VirtkitError] = []
    together = threading.Barrier(number)

    def one(index: int) -> None:
        with Fabric.connect(remote, timeout_s=30) as fabric:
            together.wait()
            try:
                act(fabric, index)
            except VirtkitError as error:
                errors.append(error)

    threads = [threading.Thread(target=one, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def addresses(fabric: Fabric) -> list[str]:
    return sorted(
        str(address) for state in ports.list_all(fabric, "red") for address in state.port.addresses
    )


def test_ports_made_at_once_get_different_addresses(fabric: Fabric, fabric_remote: str) -> None:
    errors = at_once(
        fabric_remote,
        30,
        lambda mine, index: void(ports.create(mine, "red", "front", PortRequest(name=f"p{index}"))),
    )

    assert errors == []
    assert len(set(addresses(fabric))) == 30
    usage = tenants.get(fabric, "red").quota
    assert (usage[Resource.PORTS].used, usage[Resource.ADDRESSES].used) == (30, 30)


def test_of_fifty_racing_for_the_last_port_one_wins(fabric: Fabric, fabric_remote: str) -> None:
    tenants.set_quota(fabric, "red", {Resource.PORTS: 1})

    errors = at_once(
        fabric_remote,
        50,
        lambda mine, index: void(ports.create(mine, "red", "front", PortRequest(name=f"p{index}"))),
    )

    assert len(errors) == 49
    assert {type(error) for error in errors} == {QuotaExceeded}
    assert len(addresses(fabric)) == 1


def test_networks_made_at_once_get_different_segments(fabric: Fabric, fabric_remote: str) -> None:
    errors = at_once(
        fabric_remote,
        20,
        lambda mine, index: void(
            networks.create(mine, "red", NetworkRequest(name=f"n{index}", cidrs=["10.2.0.0/24"]))
        ),
    )

    assert errors == []
    segments = {network.segment_id for _, network in networks.list_all(fabric)}
    assert segments == set(range(1, 22))


def test_a_segment_id_chosen_by_hand_is_passed_over(fabric: Fabric) -> None:
    networks.create(fabric, "red", NetworkRequest(name="two", cidrs=["10.2.0.0/24"], segment_id=2))

    third = networks.create(fabric, "red", NetworkRequest(name="three", cidrs=["10.3.0.0/24"]))

    assert third.segment_id == 3


def test_a_full_network_says_so_and_a_freed_address_is_found(fabric: Fabric) -> None:
    networks.create(fabric, "red", NetworkRequest(name="tiny", cidrs=["10.9.0.0/29"]))
    for index in range(5):
        ports.create(fabric, "red", "tiny", PortRequest(name=f"p{index}"))

    with pytest.raises(Refused, match=r"network tiny \(10\.9\.0\.0/29\) has no free address left"):
        ports.create(fabric, "red", "tiny", PortRequest(name="one-more"))
    ports.delete(fabric, "red", "tiny", "p1")
    again = ports.create(fabric, "red", "tiny", PortRequest(name="again"))

    assert [str(address) for address in again.port.addresses] == ["10.9.0.3"]


def test_an_address_just_given_back_is_the_last_to_be_given_out(fabric: Fabric) -> None:
    first = ports.create(fabric, "red", "front", PortRequest(name="first"))
    ports.delete(fabric, "red", "front", "first")

    second = ports.create(fabric, "red", "front", PortRequest(name="second"))

    assert second.port.addresses != first.port.addresses


def test_addresses_come_from_the_pools(fabric: Fabric) -> None:
    request = NetworkRequest(
        name="pooled", cidrs=["10.8.0.0/24"], pools=["10.8.0.50-10.8.0.51", "10.8.0.99-10.8.0.99"]
    )
    networks.create(fabric, "red", request)

    made = [
        str(ports.create(fabric, "red", "pooled", PortRequest(name=f"p{i}")).port.addresses[0])
        for i in range(3)
    ]

    assert made == ["10.8.0.50", "10.8.0.51", "10.8.0.99"]


def test_the_same_name_gets_the_same_mac_again(fabric: Fabric) -> None:
    first = ports.create(fabric, "red", "front", PortRequest(name="web"))
    ports.delete(fabric, "red", "front", "web")

    assert ports.create(fabric, "red", "front", PortRequest(name="web")).port.mac == first.port.mac


def test_the_mtu_is_what_the_smallest_underlay_leaves(fabric: Fabric) -> None:
    for name, mtu in (("h1", 9000), ("h2", 1600)):
        transaction = fabric.transaction()
        columns = {"name": name, "underlay_mtu": mtu, "overlays": frozenset({"vxlan", "gre"})}
        transaction.insert("Host", columns)
        transaction.commit()

    made = {
        overlay: networks.create(
            fabric, "red", NetworkRequest(name=overlay, cidrs=["10.4.0.0/24"], overlay=overlay)
        ).mtu_bytes
        for overlay in Overlay
    }

    assert made == {Overlay.VXLAN: 1550, Overlay.GRE: 1558}


def test_a_port_that_two_deleters_delete_is_refunded_once(
    fabric: Fabric, fabric_remote: str
) -> None:
    ports.create(fabric, "red", "front", PortRequest(name="web"))

    errors = at_once(fabric_remote, 10, lambda mine, _: ports.delete(mine, "red", "front", "web"))

    assert len(errors) == 9
    assert tenants.get(fabric, "red").quota[Resource.PORTS].used == 0


def bind(fabric: Fabric, port: ports.PortState, host: str, claim: int) -> None:
    transaction = fabric.transaction()
    columns = {"port": port.port.id, "network": port.network.id, "claim": claim}
    transaction.insert("Binding", {**columns, "host": host, "active": True})
    transaction.commit()


def test_the_latest_claim_holds_a_port(fabric: Fabric) -> None:
    port = ports.create(fabric, "red", "front", PortRequest(name="web"))
    bind(fabric, port, "h1", 1)
    bind(fabric, port, "h2", 2)

    held = holder([binding(row) for row in fabric.select("Binding")])

    assert held is not None
    assert held.host == "h2"
    assert ports.get(fabric, "red", "front", "web").binding == held


def test_a_lost_host_is_forgotten_with_its_bindings(fabric: Fabric) -> None:
    port = ports.create(fabric, "red", "front", PortRequest(name="web"))
    hosts.create(fabric, "h1")
    bind(fabric, port, "h1", 1)

    with pytest.raises(Refused, match="host h1 holds 1 bound port"):
        hosts.delete(fabric, "h1", now_s=1000)
    hosts.delete(fabric, "h1", now_s=1000, force=True)

    assert hosts.list_all(fabric) == []
    assert ports.get(fabric, "red", "front", "web").binding is None


def test_waiting_for_a_host_that_does_not_follow_ends_in_time(fabric: Fabric) -> None:
    port = ports.create(fabric, "red", "front", PortRequest(name="web"))
    hosts.create(fabric, "h1")
    bind(fabric, port, "h1", 1)

    with pytest.raises(BackendUnavailable, match=r"port two: stored, but h1 did not apply it"):
        ports.create(fabric, "red", "front", PortRequest(name="two"), wait_s=0.2)

    assert ports.get(fabric, "red", "front", "two").port.name == "two"


def test_waiting_ends_when_the_host_has_followed(fabric: Fabric, fabric_remote: str) -> None:
    port = ports.create(fabric, "red", "front", PortRequest(name="web"))
    hosts.create(fabric, "h1")
    bind(fabric, port, "h1", 1)

    def follow() -> None:
        with Fabric.connect(fabric_remote) as mine:
            asked = mine.wait_until("Fabric", lambda rows: rows[0]["cfg"] > 0, 10)
            assert asked
            (row,) = mine.select("Fabric")
            transaction = mine.transaction()
            transaction.update(hosts.find(mine, "h1"), {"cfg": row["cfg"]})
            transaction.commit()

    follower = threading.Thread(target=follow)
    follower.start()
    ports.create(fabric, "red", "front", PortRequest(name="two"), wait_s=10)
    follower.join()


def void(_: object) -> None:
    """For a lambda that is called for what it does."""


# What others do at the same moment


def test_a_network_that_two_delete_gives_its_quota_back_once(
    fabric: Fabric, fabric_remote: str
) -> None:
    errors = at_once(fabric_remote, 8, lambda mine, _: networks.delete(mine, "red", "front"))

    assert len(errors) == 7
    assert all("network front of tenant red does not exist" in str(error) for error in errors)
    assert tenants.get(fabric, "red").quota[Resource.NETWORKS].used == 0


def test_a_tenant_that_is_deleted_meanwhile_is_not_waited_for(fabric: Fabric) -> None:
    """Nor is one that has no account of a resource, because it is older than the resource."""
    tenants.create(fabric, "blue")
    (row,) = fabric.select("Quota", tenant=tenants.find(fabric, "blue").id, resource="networks")
    transaction = fabric.transaction()
    transaction.delete(row)
    transaction.commit()
    began = time.monotonic()

    with pytest.raises(QuotaExceeded, match="tenant blue has no quota of networks"):
        networks.create(fabric, "blue", NetworkRequest(name="back", cidrs=["10.2.0.0/24"]))

    assert time.monotonic() - began < 5


def test_a_host_that_reports_while_it_is_deleted_stays(
    fabric: Fabric, fabric_remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts.create(fabric, "h1")
    is_alive = hosts.is_alive

    def report_first(host: Host, now_s: int) -> bool:
        found = is_alive(host, now_s)
        with Fabric.connect(fabric_remote) as agent:
            transaction = agent.transaction()
            transaction.update(hosts.find(agent, "h1"), {"heartbeat": now_s})
            transaction.commit()
        return found

    monkeypatch.setattr(hosts, "is_alive", report_first)

    with pytest.raises(Refused, match="agent reported 0 s ago"):
        hosts.delete(fabric, "h1", now_s=1_000_000)


# What is asked twice, or for what is not to be had


def test_an_address_that_is_named_twice_is_given_once(fabric: Fabric) -> None:
    request = PortRequest(name="one", addresses=("10.1.0.9", "10.1.0.9"))

    state = ports.create(fabric, "red", "front", request)

    assert list(map(str, state.port.addresses)) == ["10.1.0.9"]


def test_the_gateways_mac_address_is_no_ports(fabric: Fabric) -> None:
    with pytest.raises(InvalidRequest, match="is the gateway's in every network"):
        ports.create(fabric, "red", "front", PortRequest(name="one", mac="0a:76:6b:00:00:01"))


def test_an_underlay_too_small_for_ipv4_is_named(fabric: Fabric) -> None:
    columns = {"name": "h1", "overlays": frozenset({"vxlan"}), "underlay_mtu": 600}
    transaction = fabric.transaction()
    transaction.insert("Host", columns)
    transaction.commit()

    with pytest.raises(InvalidRequest, match="an underlay MTU of 600 leaves 550 for vxlan"):
        networks.create(fabric, "red", NetworkRequest(name="back", cidrs=["10.2.0.0/24"]))


# Dual stack


@pytest.fixture
def dual(fabric: Fabric) -> None:
    request = NetworkRequest(
        name="dual",
        cidrs=["FD00:0001::/64", "10.2.0.0/24"],
        pools=["10.2.0.50-10.2.0.99"],
        dns=["fd00:1::53", "10.2.0.53", "fd00:1::54"],
    )
    networks.create(fabric, "red", request)


def texts(state: ports.PortState) -> list[str]:
    return [str(address) for address in state.port.addresses]


@pytest.mark.usefixtures("dual")
def test_what_is_said_of_a_network_goes_to_the_subnet_of_its_family(fabric: Fabric) -> None:
    ipv4, ipv6 = networks.get(fabric, "red", "dual").subnets

    assert (str(ipv4.cidr), str(ipv6.cidr)) == ("10.2.0.0/24", "fd00:1::/64")
    assert (str(ipv4.gateway), str(ipv6.gateway)) == ("10.2.0.1", "fd00:1::1")
    assert [str(pool) for pool in ipv4.pools] == ["10.2.0.50-10.2.0.99"]
    assert [str(pool) for pool in ipv6.pools] == ["fd00:1::1-fd00:1::ffff:ffff:ffff:ffff"]
    assert list(map(str, ipv4.dns)) == ["10.2.0.53"]
    assert list(map(str, ipv6.dns)) == ["fd00:1::53", "fd00:1::54"]

    networks.change(fabric, "red", "dual", dns=["fd00:1::55"])

    found = networks.get(fabric, "red", "dual")
    assert [list(map(str, subnet.dns)) for subnet in found.subnets] == [[], ["fd00:1::55"]]


@pytest.mark.usefixtures("dual")
def test_a_port_has_an_address_in_each_subnet(fabric: Fabric) -> None:
    state = ports.create(fabric, "red", "dual", PortRequest(name="web"))

    assert texts(state) == ["10.2.0.50", "fd00:1::2"]
    assert tenants.get(fabric, "red").quota[Resource.ADDRESSES].used == 2

    ports.delete(fabric, "red", "dual", "web")

    assert tenants.get(fabric, "red").quota[Resource.ADDRESSES].used == 0
    assert fabric.select("Address") == []


@pytest.mark.parametrize(
    ("given", "has"),
    [
        (["fd00:1::77"], ["10.2.0.50", "fd00:1::77"]),
        (["10.2.0.7"], ["10.2.0.7", "fd00:1::2"]),
        (["FD00:1:0::0:78", "10.2.0.8", "fd00:1::78"], ["10.2.0.8", "fd00:1::78"]),
        (["fd00:1::ffff:ffff:ffff:ffff"], ["10.2.0.50", "fd00:1::ffff:ffff:ffff:ffff"]),
    ],
)
@pytest.mark.usefixtures("dual")
def test_what_is_not_given_is_allocated(fabric: Fabric, given: list[str], has: list[str]) -> None:
    state = ports.create(fabric, "red", "dual", PortRequest(name="web", addresses=given))

    assert texts(state) == has
    assert sorted(row["ip"] for row in fabric.select("Address")) == sorted(has)


@pytest.mark.usefixtures("dual")
def test_an_address_is_taken_however_it_is_written(fabric: Fabric) -> None:
    first = PortRequest(name="first", addresses=["fd00:1::abc"])
    ports.create(fabric, "red", "dual", first)

    with pytest.raises(AlreadyExists, match="port second: address fd00:1::abc is taken"):
        second = PortRequest(name="second", addresses=["10.2.0.9", "FD00:1::0:0:ABC"])
        ports.create(fabric, "red", "dual", second)

    assert len(fabric.select("Address")) == 2


@pytest.mark.usefixtures("dual")
def test_many_at_once_get_an_address_of_either_family(fabric: Fabric, fabric_remote: str) -> None:
    """Half of them say which of IPv4 they want, and lose only what was chosen for them."""

    def make(mine: Fabric, index: int) -> None:
        given = [f"10.2.0.{100 + index}"] if index % 2 else []
        ports.create(mine, "red", "dual", PortRequest(name=f"p{index}", addresses=given))

    errors = at_once(fabric_remote, 20, make)

    assert errors == []
    assert len(set(addresses(fabric))) == 40


def test_the_smallest_ipv6_network_gives_out_all_it_has_but_its_own(fabric: Fabric) -> None:
    networks.create(fabric, "red", NetworkRequest(name="tiny", cidrs=["fd00:9::/124"]))
    made = [
        texts(ports.create(fabric, "red", "tiny", PortRequest(name=f"p{index}")))[0]
        for index in range(14)
    ]

    assert made == [f"fd00:9::{number:x}" for number in range(2, 16)]
    with pytest.raises(Refused, match=r"network tiny \(fd00:9::/124\) has no free address left"):
        ports.create(fabric, "red", "tiny", PortRequest(name="one-more"))
    ports.delete(fabric, "red", "tiny", "p5")
    again = ports.create(fabric, "red", "tiny", PortRequest(name="again"))
    assert texts(again) == ["fd00:9::7"]


def test_an_underlay_too_small_for_ipv6_is_named(fabric: Fabric) -> None:
    columns = {"name": "h1", "overlays": frozenset({"vxlan"}), "underlay_mtu": 1300}
    transaction = fabric.transaction()
    transaction.insert("Host", columns)
    transaction.commit()

    with pytest.raises(InvalidRequest, match="leaves 1250 for vxlan, and IPv6 needs 1280"):
        networks.create(fabric, "red", NetworkRequest(name="six", cidrs=["fd00::/64"]))
    assert (
        networks.create(fabric, "red", NetworkRequest(name="v4", cidrs=["10.3.0.0/24"])).mtu_bytes
        == 1250
    )
