"""What an agent asks for, learns and claims, on a real database without a switch."""

import time
from collections.abc import Callable
from uuid import UUID, uuid4

import ovs.poller
import pytest

from netvirt.agent import bindings, interest
from netvirt.agent.knowledge import Knowledge
from netvirt.compile import Local, Remote
from netvirt.model import Binding, BindingId, Network, NetworkId, PortId
from netvirt.observed import Interface
from netvirt.rows import AGENT_COLUMNS
from netvirt.service import networks, ports
from netvirt.service.networks import NetworkRequest
from netvirt.service.ports import PortRequest, PortState
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.backends.watch import Delete, FabricWatch, Insert

HOST = "h1"


class Follower:
    """An agent's receiving half: interest follows knowledge until both are at rest."""

    def __init__(self, remote: str) -> None:
        self.watch = FabricWatch(remote, AGENT_COLUMNS)
        self.watch.set_interest_in_all("Fabric")
        self.knowledge = Knowledge(HOST)
        self.seen: set[tuple[str, UUID]] = set()

    def plug(self, *states: PortState) -> None:
        self.knowledge.set_interfaces(
            {
                f"if{index}": Interface(
                    name=f"if{index}", ofport=10 + index, iface_id=state.port.id
                )
                for index, state in enumerate(states)
            }
        )
        self.settle()

    def settle(self, until: Callable[[], bool] = lambda: True) -> None:
        deadline = time.monotonic() + 10
        while True:
            for table, row_id in self.watch.run():
                self.seen.add((table, row_id))
                self.knowledge.set_row(table, row_id, self.watch.row(table, row_id))
            self.knowledge.refresh()
            wanted = interest.clauses(
                HOST,
                self.knowledge.interfaces.keys(),
                self.knowledge.held_networks(),
                self.knowledge.remote_hosts(),
            )
            for table, clauses in wanted.items():
                self.watch.set_interest(table, clauses)
            if self.watch.settled and not self.watch.writing and until():
                return
            assert time.monotonic() < deadline, "the replica does not settle"
            poller = ovs.poller.Poller()
            self.watch.wait(poller)
            poller.timer_wait(100)
            poller.block()

    def rows(self, table: str) -> int:
        return len(self.watch.rows(table))


@pytest.fixture
def follower(fabric_remote: str) -> Follower:
    follower = Follower(fabric_remote)
    yield follower  # type: ignore[misc]
    follower.watch.close()


@pytest.fixture
def world(fabric: Fabric) -> dict[int, list[PortState]]:
    """Ten networks of five ports each."""
    tenants.create(fabric, "red")
    made: dict[int, list[PortState]] = {}
    for number in range(10):
        request = NetworkRequest(name=f"n{number}", cidrs=[f"10.{number}.0.0/24"])
        networks.create(fabric, "red", request)
        made[number] = [
            ports.create(fabric, "red", f"n{number}", PortRequest(name=f"p{i}")) for i in range(5)
        ]
    return made


def bind(fabric: Fabric, state: PortState, host: str, claim: int = 1) -> None:
    transaction = fabric.transaction()
    columns = {"port": state.port.id, "network": state.network.id, "claim": claim}
    transaction.insert("Binding", {**columns, "host": host, "active": True})
    transaction.commit()


def enter_host(fabric: Fabric, name: str, tunnel_ip: str) -> None:
    transaction = fabric.transaction()
    columns = {"name": name, "tunnel_ip": tunnel_ip, "overlays": frozenset({"vxlan", "gre"})}
    transaction.insert("Host", columns)
    transaction.commit()


def test_a_host_receives_rows_of_the_networks_it_holds_and_no_others(
    fabric: Fabric, follower: Follower, world: dict[int, list[PortState]]
) -> None:
    follower.settle()
    assert follower.seen <= {("Fabric", row.id) for row in fabric.select("Fabric")}

    follower.plug(world[3][0], world[7][1])

    held = {world[3][0].network.id, world[7][1].network.id}
    assert {row_id for table, row_id in follower.seen if table == "Network"} == held
    assert follower.rows("Port") == follower.rows("Address") == 10
    assert follower.rows("Subnet") == 2
    assert set(follower.knowledge.networks) == held


def test_every_host_is_in_the_networks_with_host_access(
    fabric: Fabric, follower: Follower, world: dict[int, list[PortState]]
) -> None:
    network = networks.change(fabric, "red", "n4", host_access=True)

    follower.settle(lambda: follower.rows("Port") == 5)

    assert follower.knowledge.held_networks() == {network.id}
    assert follower.knowledge.networks_with_host_access() == [network]
    assert set(follower.knowledge.ports) == {state.port.id for state in world[4]}
    networks.change(fabric, "red", "n4", host_access=False)
    follower.settle(lambda: follower.rows("Network") == 0)
    assert follower.knowledge.held_networks() == frozenset()


def test_a_host_knows_its_own_port_from_the_others(fabric: Fabric, follower: Follower) -> None:
    tenants.create(fabric, "red")
    request = NetworkRequest(name="front", cidrs=["10.1.0.0/24"], host_access=True)
    network = networks.create(fabric, "red", request)
    made = {host: enter_host_port(fabric, network, host) for host in ("h2", HOST)}

    follower.settle(lambda: follower.rows("Port") == 2)

    own = follower.knowledge.own_port(network.id)
    assert own is not None
    assert own.id == made[HOST]
    networks.change(fabric, "red", "front", host_access=False)
    follower.settle(lambda: follower.rows("Port") == 0)
    assert follower.knowledge.own_port(network.id) is None


def enter_host_port(fabric: Fabric, network: Network, host: str) -> UUID:
    port_id = uuid4()
    transaction = fabric.transaction()
    columns = {"tenant": network.tenant, "network": network.id, "name": f"host-{host}"}
    mac = f"0a:00:00:00:00:{len(host) + ord(host[-1]):02x}"
    transaction.insert_as(port_id, "Port", {**columns, "mac": mac, "kind": "host"})
    transaction.commit()
    return port_id


def test_a_network_that_is_held_no_more_is_forgotten(
    follower: Follower, world: dict[int, list[PortState]]
) -> None:
    follower.plug(world[3][0], world[7][1])

    follower.plug(world[3][0])

    assert set(follower.knowledge.networks) == {world[3][0].network.id}
    assert follower.rows("Port") == 5
    follower.plug()
    assert [follower.rows(table) for table in ("Network", "Port", "Address")] == [0, 0, 0]


def test_only_hosts_that_share_a_network_are_known(
    fabric: Fabric, follower: Follower, world: dict[int, list[PortState]]
) -> None:
    for name, address in (("h2", "192.0.2.2"), ("h3", "192.0.2.3")):
        enter_host(fabric, name, address)
    bind(fabric, world[3][1], "h2")
    bind(fabric, world[5][1], "h3")

    follower.plug(world[3][0])

    assert set(follower.knowledge.hosts) == {"h2"}
    location = follower.knowledge.location(world[3][1].port.id)
    assert isinstance(location, Remote)
    assert str(location.endpoint) == "192.0.2.2"
    assert follower.knowledge.location(world[3][0].port.id) == Local(10)
    assert follower.knowledge.location(world[3][2].port.id) is None


def test_a_later_claim_elsewhere_takes_the_port_from_the_interface_here(
    fabric: Fabric, follower: Follower, world: dict[int, list[PortState]]
) -> None:
    enter_host(fabric, "h2", "192.0.2.2")
    moving = world[3][0]
    bind(fabric, moving, HOST, claim=1)
    follower.plug(moving)
    assert follower.knowledge.location(moving.port.id) == Local(10)

    bind(fabric, moving, "h2", claim=2)
    follower.settle(lambda: "h2" in follower.knowledge.hosts)

    assert isinstance(follower.knowledge.location(moving.port.id), Remote)


def test_a_database_that_comes_back_empty_of_a_row_is_believed(
    fabric: Fabric, follower: Follower, world: dict[int, list[PortState]]
) -> None:
    follower.plug(world[3][0])
    gone = world[3][4]

    follower.watch._idl.force_reconnect()
    ports.delete(fabric, "red", "n3", "p4")
    follower.settle(lambda: gone.port.id not in follower.knowledge.ports)

    assert len(follower.knowledge.ports) == 4


def test_what_the_watch_writes_arrives(
    fabric: Fabric, follower: Follower, world: dict[int, list[PortState]]
) -> None:
    state = world[3][0]
    follower.plug(state)
    columns = {"port": state.port.id, "network": state.network.id, "claim": 1}
    follower.watch.write([Insert("Binding", {**columns, "host": HOST, "active": True})])
    follower.settle(lambda: follower.rows("Binding") == 1)
    (row,) = fabric.select("Binding")
    assert (row["host"], row["port"]) == (HOST, state.port.id)

    follower.watch.write([Delete(row)])
    follower.settle(lambda: follower.rows("Binding") == 0)

    assert fabric.select("Binding") == []


# Claims

PORT, NETWORK = PortId(uuid4()), NetworkId(uuid4())


def claim_of(host: str, number: int) -> dict[UUID, Binding]:
    made = Binding(
        id=BindingId(uuid4()), port=PORT, network=NETWORK, host=host, claim=number, active=True
    )
    return {made.id: made}


@pytest.mark.parametrize(
    ("present", "attached", "held", "claims", "withdrawn"),
    [
        pytest.param(True, True, {}, [1], 0, id="a new port is claimed"),
        pytest.param(True, True, claim_of("h2", 4), [5], 0, id="above every earlier claim"),
        pytest.param(True, True, claim_of(HOST, 1), [], 0, id="once"),
        pytest.param(
            True, True, {**claim_of(HOST, 1), **claim_of("h2", 2)}, [], 0, id="and not again"
        ),
        pytest.param(False, False, claim_of(HOST, 1), [], 1, id="a port that is gone is given up"),
        pytest.param(False, True, claim_of(HOST, 1), [], 0, id="not while its switch restarts"),
        pytest.param(False, False, claim_of("h2", 1), [], 0, id="another's is left alone"),
    ],
)
def test_claims(
    present: bool, attached: bool, held: dict[UUID, Binding], claims: list[int], withdrawn: int
) -> None:
    made, given_up = bindings.decide(
        HOST,
        {PORT: NETWORK} if present else {},
        {PORT} if attached else set(),
        {PORT: held},
        {PORT},
    )

    assert [claim.number for claim in made] == claims
    assert len(given_up) == withdrawn
