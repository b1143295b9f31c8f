"""New ports without blocking, on a real database: choosing, racing, and being refused."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from uuid import UUID

import ovs.poller
import pytest

from netvirt import allocate
from netvirt.agent.allocation import Allocator, PortOrder, PortPlan
from netvirt.agent.knowledge import Knowledge
from netvirt.allocate import PoolExhausted
from netvirt.model import Mac, Network, Port, PortKind
from netvirt.rows import AGENT_COLUMNS
from netvirt.service import networks, ports
from netvirt.service.networks import NetworkRequest
from netvirt.service.ports import PortRequest
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.backends.requests import Requests
from tenancy.errors import AlreadyExists, BackendUnavailable, NotFound, QuotaExceeded, VirtkitError
from tenancy.model import Resource

PATIENCE_S = 20.0


class Side:
    """An agent, as far as it allocates: what it knows of the database, and how it writes."""

    def __init__(self, host: str, fabric: Fabric, remote: str) -> None:
        self.host = host
        self.requests = Requests(remote)
        self.knowledge = Knowledge(host)
        self.allocator = Allocator(self.knowledge)
        self._fabric = fabric
        self._known: dict[tuple[str, UUID], None] = {}

    def learn(self) -> None:
        """Know of everything there is."""
        found = {
            (table, row.id): row for table in AGENT_COLUMNS for row in self._fabric.select(table)
        }
        for table, row_id in self._known.keys() - found.keys():
            self.knowledge.set_row(table, row_id, None)
        for (table, row_id), row in found.items():
            self.knowledge.set_row(table, row_id, row)
        self._known = dict.fromkeys(found)
        self.knowledge.refresh()

    def order(self, network: Network, container: str = "c1", **changes: Any) -> PortOrder:
        plan = PortPlan(
            tenant_name="red",
            network=network,
            name=f"port-{self.host}-{container}",
            kind=PortKind.CONTAINER,
            host=self.host,
            attachment={
                "conflist": "list",
                "container": container,
                "interface": "eth0",
                "netns": "/run/netns/x",
            },
        )
        return PortOrder(self.requests, self.allocator, replace(plan, **changes))


@pytest.fixture(autouse=True)
def red(fabric: Fabric) -> None:
    tenants.create(fabric, "red")


@pytest.fixture
def sides(fabric: Fabric, fabric_remote: str) -> Iterator[list[Side]]:
    sides = [Side(host, fabric, fabric_remote) for host in ("h1", "h2")]
    turn_until(lambda: all(side.requests.connected for side in sides), sides)
    yield sides
    for side in sides:
        side.requests.close()


def turn_until(holds: Callable[[], bool], sides: list[Side]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for side in sides:
            side.requests.run()
        if holds():
            return
        assert time.monotonic() < deadline, "it takes too long"
        poller = ovs.poller.Poller()
        for side in sides:
            side.requests.wait(poller)
        poller.timer_wait(10)
        poller.block()


def outcomes(sides: list[Side], *orders: PortOrder) -> list[Port | VirtkitError]:
    """What becomes of orders that are worked at side by side."""
    found: dict[int, Port | VirtkitError] = {}

    def all_done() -> bool:
        for number, order in enumerate(orders):
            if number not in found:
                try:
                    if order.stored():
                        found[number] = order.port
                except VirtkitError as error:
                    found[number] = error
        return len(found) == len(orders)

    turn_until(all_done, sides)
    return [found[number] for number in range(len(orders))]


def stored(sides: list[Side], order: PortOrder) -> Port:
    [outcome] = outcomes(sides, order)
    assert isinstance(outcome, Port), outcome
    return outcome


def refused(sides: list[Side], order: PortOrder, kind: type[VirtkitError], *names: str) -> None:
    """The order is refused so, and leaves nothing."""
    [outcome] = outcomes(sides, order)
    assert isinstance(outcome, kind), outcome
    for name in names:
        assert name in str(outcome)


def network_of(fabric: Fabric, *cidrs: str, pool: str | None = None, name: str = "n") -> Network:
    request = NetworkRequest(name=name, cidrs=cidrs, pools=[pool] if pool else ())
    return networks.create(fabric, "red", request)


def available(fabric: Fabric) -> dict[str, int]:
    return {row["resource"]: row["available"] for row in fabric.select("Quota")}


def counts(fabric: Fabric) -> dict[str, int]:
    return {
        table: len(fabric.select(table)) for table in ("Port", "Address", "Binding", "Attachment")
    }


def texts(port: Port) -> list[str]:
    return [str(address) for address in port.addresses]


# What is stored


def test_everything_is_written_at_once(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/24", "fd00::/64")
    before = available(fabric)
    [cfg] = [row["cfg"] for row in fabric.select("Fabric")]
    order = sides[0].order(network, labels={"pod": "web"})
    promised = order.port

    port = stored(sides, order)

    assert port == promised
    assert port == ports.get_by_id(fabric, port.id).port
    assert port.mac == allocate.mac_of(port.addresses[0])
    [binding] = fabric.select("Binding")
    assert (binding["port"], binding["host"], binding["claim"]) == (port.id, "h1", 1)
    [attachment] = fabric.select("Attachment")
    assert (attachment["port"], attachment["host"], attachment["container"]) == (
        *(port.id, "h1", "c1"),
    )
    used = {
        one: before[one] - left for one, left in available(fabric).items() if before[one] > left
    }
    assert used == {Resource.PORTS: 1, Resource.ADDRESSES: 2}
    assert order.cfg == cfg + 1


def test_who_is_not_charged_and_not_acknowledged_costs_nobody(
    fabric: Fabric, sides: list[Side]
) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    before = available(fabric)

    order = sides[0].order(network, charged=False, acknowledged=False, attachment=None)
    stored(sides, order)

    assert available(fabric) == before
    assert order.cfg == 0
    assert counts(fabric) == {"Port": 1, "Address": 1, "Binding": 1, "Attachment": 0}


def test_what_is_asked_for_is_given(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/24", "fd00::/64")
    mac = Mac.parse("0a:00:00:00:00:01")
    given = (ip_address("fd00::7"), ip_address("10.1.0.7"))

    port = stored(sides, sides[0].order(network, addresses=given, mac=mac))

    assert (texts(port), port.mac) == (["10.1.0.7", "fd00::7"], mac)


def test_one_family_may_be_asked_for_and_the_other_is_chosen(
    fabric: Fabric, sides: list[Side]
) -> None:
    network = network_of(fabric, "10.1.0.0/24", "fd00::/64")

    port = stored(sides, sides[0].order(network, addresses=(ip_address("fd00::7"),)))

    assert texts(port)[1] == "fd00::7"
    assert port.addresses[0] in network.subnets[0].cidr


def test_orders_of_one_host_side_by_side_do_not_meet(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    orders = [sides[0].order(network, f"c{number}") for number in range(20)]

    found = outcomes(sides, *orders)

    assert len({texts(port)[0] for port in found if isinstance(port, Port)}) == 20


def test_an_address_given_back_is_the_last_to_be_given_again(
    fabric: Fabric, sides: list[Side]
) -> None:
    network = network_of(fabric, "10.1.0.0/24", pool="10.1.0.10-10.1.0.13")
    seen = []
    for number in range(8):
        sides[0].learn()
        port = stored(sides, sides[0].order(network, f"c{number}"))
        seen += texts(port)
        ports.delete(fabric, "red", "n", port.name, force=True)

    assert sorted(seen[:4]) == [f"10.1.0.{number}" for number in range(10, 14)]
    assert seen[4:] == seen[:4]


# Races


def test_two_hosts_race_for_the_last_addresses(fabric: Fabric, sides: list[Side]) -> None:
    """Every address is given once, and whoever gets none is told so, and leaves nothing."""
    network = network_of(fabric, "10.1.0.0/24", pool="10.1.0.10-10.1.0.14")
    before = available(fabric)
    orders = [side.order(network, f"c{number}") for number in range(4) for side in sides]

    found = outcomes(sides, *orders)

    given = sorted(text for port in found if isinstance(port, Port) for text in texts(port))
    assert given == [f"10.1.0.{number}" for number in range(10, 15)]
    errors = [error for error in found if isinstance(error, VirtkitError)]
    assert [type(error) for error in errors] == [PoolExhausted] * 3
    assert counts(fabric) == dict.fromkeys(("Port", "Address", "Binding", "Attachment"), 5)
    assert before[Resource.PORTS] - available(fabric)[Resource.PORTS] == 5
    assert before[Resource.ADDRESSES] - available(fabric)[Resource.ADDRESSES] == 5


def test_an_address_that_nobody_here_knows_to_be_taken_is_avoided(
    fabric: Fabric, sides: list[Side]
) -> None:
    """The host holds no port of the network, so it knows of none: it asks, and chooses again."""
    network = network_of(fabric, "10.1.0.0/24", pool="10.1.0.10-10.1.0.19")
    for number in range(10, 19):
        request = PortRequest(name=f"p{number}", addresses=[f"10.1.0.{number}"])
        ports.create(fabric, "red", "n", request)
    order = sides[0].order(network)
    first_choice = order.port

    port = stored(sides, order)

    assert texts(port) == ["10.1.0.19"]
    assert port.id == first_choice.id
    assert port.mac == allocate.mac_of(port.addresses[0])


def test_what_is_known_to_be_taken_is_not_tried(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/24", pool="10.1.0.10-10.1.0.11")
    ports.create(fabric, "red", "n", PortRequest(name="p", addresses=["10.1.0.10"]))
    sides[0].learn()

    assert texts(sides[0].order(network).port) == ["10.1.0.11"]


def test_hosts_begin_at_different_places(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/16")
    assert len({texts(side.order(network).port)[0] for side in sides}) == 2


# Refusals


def test_an_address_that_was_asked_for_and_is_taken_is_refused(
    fabric: Fabric, sides: list[Side]
) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    ports.create(fabric, "red", "n", PortRequest(name="p", addresses=["10.1.0.7"]))
    before = counts(fabric), available(fabric)

    order = sides[0].order(network, addresses=(ip_address("10.1.0.7"),))

    refused(sides, order, AlreadyExists, "10.1.0.7", "network n", "Choose another")
    assert (counts(fabric), available(fabric)) == before


def test_one_of_two_who_ask_for_the_same_address_gets_it(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    wanted = (ip_address("10.1.0.7"),)

    found = outcomes(sides, *(side.order(network, addresses=wanted) for side in sides))

    assert sorted(type(one).__name__ for one in found) == ["AlreadyExists", "Port"]


def test_a_mac_that_was_asked_for_and_is_taken_is_refused(
    fabric: Fabric, sides: list[Side]
) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    ports.create(fabric, "red", "n", PortRequest(name="p", mac="0a:00:00:00:00:01"))

    order = sides[0].order(network, mac=Mac.parse("0a:00:00:00:00:01"))

    refused(sides, order, AlreadyExists, "0a:00:00:00:00:01", "network n", "Choose another")


def test_a_mac_that_follows_from_the_address_and_is_taken_is_chosen_otherwise(
    fabric: Fabric, sides: list[Side]
) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    order = sides[0].order(network)
    taken = str(order.port.mac)
    ports.create(fabric, "red", "n", PortRequest(name="p", mac=taken))

    port = stored(sides, order)

    assert str(port.mac) != taken
    assert port == ports.get_by_id(fabric, port.id).port


@pytest.mark.parametrize("resource", [Resource.PORTS, Resource.ADDRESSES])
def test_a_quota_that_is_used_up_refuses(
    fabric: Fabric, sides: list[Side], resource: Resource
) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    tenants.set_quota(fabric, "red", {resource: 0})

    refused(sides, sides[0].order(network), QuotaExceeded, "tenant red", resource)

    assert counts(fabric) == dict.fromkeys(("Port", "Address", "Binding", "Attachment"), 0)


def test_a_network_that_was_deleted_meanwhile_is_not_found(
    fabric: Fabric, sides: list[Side]
) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    order = sides[0].order(network)
    networks.delete(fabric, "red", "n")

    refused(sides, order, NotFound, "network n", "deleted")

    assert counts(fabric) == dict.fromkeys(("Port", "Address", "Binding", "Attachment"), 0)


def test_a_container_is_attached_once(fabric: Fabric, sides: list[Side]) -> None:
    """To whichever network; and on another host it is another container."""
    network = network_of(fabric, "10.1.0.0/24")
    other = network_of(fabric, "10.2.0.0/24", name="other")
    stored(sides, sides[0].order(network))

    for again in (network, other):
        refused(sides, sides[0].order(again), AlreadyExists, "container c1", "eth0", "DEL")
    stored(sides, sides[1].order(network))


def test_a_name_that_is_somebody_elses_is_refused(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    ports.create(fabric, "red", "n", PortRequest(name="web"))

    refused(sides, sides[0].order(network, name="web"), AlreadyExists, "port web", "network n")


def test_a_pool_that_is_known_to_be_empty_is_told_at_once(
    fabric: Fabric, sides: list[Side]
) -> None:
    network = network_of(fabric, "10.1.0.0/24", pool="10.1.0.10-10.1.0.10")
    ports.create(fabric, "red", "n", PortRequest(name="p"))
    sides[0].learn()

    with pytest.raises(PoolExhausted, match=r"network n \(10\.1\.0\.0/24\)"):
        sides[0].order(network)


def test_an_address_outside_the_pools_may_be_asked_for(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/24", pool="10.1.0.10-10.1.0.10")

    port = stored(sides, sides[0].order(network, addresses=(ip_address("10.1.0.200"),)))

    assert texts(port) == ["10.1.0.200"]


# Without the database


def test_without_the_database_an_order_fails(fabric: Fabric, sides: list[Side]) -> None:
    network = network_of(fabric, "10.1.0.0/24")
    sides[0].requests.close()
    lost = Requests("unix:/nonexistent/fabric.sock")
    order = PortOrder(lost, sides[0].allocator, sides[0].order(network).plan)
    try:
        # The first look sends, the second finds that it could not.
        assert order.stored() is False
        with pytest.raises(BackendUnavailable, match="does not answer"):
            order.stored()
    finally:
        lost.close()


def test_a_connection_that_is_lost_leaves_the_outcome_open(
    fabric: Fabric, sides: list[Side]
) -> None:
    """The port may be stored all the same; its id is known, and so it can be taken back."""
    network = network_of(fabric, "10.1.0.0/24")
    order = sides[0].order(network)
    assert order.stored() is False

    sides[0].requests._session.force_reconnect()
    [outcome] = outcomes(sides, order)

    assert isinstance(outcome, BackendUnavailable), outcome
    assert {row.id for row in fabric.select("Port")} <= {order.port.id}
