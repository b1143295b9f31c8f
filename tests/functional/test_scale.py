"""What a host has to do with networks that it does not hold: nothing. And with those it does.

Two hosts are real; the others, and what is bound to them, are rows of the database.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import ovs.poller
import pytest

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from netvirt.agent import interest
from netvirt.agent.knowledge import Knowledge
from netvirt.rows import AGENT_COLUMNS
from netvirt.service import hosts, port_batches, ports
from netvirt.service.ports import PortRequest, PortState
from tenancy.backends.fabric import Fabric as Database
from tenancy.backends.watch import FabricWatch
from tests.functional.tenants import Fabric, agent_state

pytestmark = pytest.mark.functional

NETWORKS, PORTS, HELD = 1000, 10, 20
SIMULATED_HOSTS = 98
FOR_EVER = 2**62
OF_NETWORKS = ("Network", "Subnet", "Port", "Address", "Binding")


class Breadth:
    """A lab with the rows of many networks; real ports of some of them on h1."""

    def __init__(self, lab: Lab) -> None:
        self.fabric = Fabric(lab)
        self.h1, self.h2 = lab.hosts
        self.database = Database.connect(f"unix:{lab.ctl.path('/run/virtkit/fabric.sock')}")
        self.fabric(f"nvctl tenant create red {' '.join(f'--quota {q}' for q in QUOTAS)}")
        self._write()
        self.held = self._networks()[:HELD]

    def _write(self) -> None:
        """Rows as commands and agents would have written them; one network has all its ports on
        ten hosts."""
        database = self.database
        tenant = database.find("Tenant", name="red")
        assert tenant is not None
        transaction = database.transaction()
        for number in range(SIMULATED_HOSTS):
            columns: dict[str, Any] = {"name": f"s{number}", "tunnel_ip": f"192.0.2.{number + 100}"}
            transaction.insert(
                "Host", {**columns, "overlays": frozenset({"vxlan", "gre"}), "cfg": FOR_EVER}
            )
        transaction.commit()
        for start in range(0, NETWORKS, 100):
            transaction = database.transaction()
            for number in range(start, start + 100):
                self._add_network(transaction, tenant.id, number)
            transaction.commit()

    def _add_network(self, transaction: Any, tenant: UUID, number: int) -> None:
        columns: dict[str, Any] = {"tenant": tenant, "name": f"n{number:04}", "overlay": "vxlan"}
        network = transaction.insert(
            "Network", {**columns, "segment_id": number + 1, "mtu": 1400, "host_access": False}
        )
        of_network = {"network": network}
        gateway = {"cidr": "10.1.0.0/24", "gateway": "10.1.0.1", "dhcp": True}
        pools = {"pools": frozenset({"10.1.0.2-10.1.0.254"})}
        subnet = transaction.insert("Subnet", {**of_network, **gateway, **pools})
        for index in range(PORTS):
            host = f"s{(number + index) % SIMULATED_HOSTS}"
            port = transaction.insert(
                "Port",
                {
                    **of_network,
                    "tenant": tenant,
                    "name": f"p{index}",
                    "kind": "container",
                    "mac": f"0a:01:{number >> 8:02x}:{number & 255:02x}:00:{index:02x}",
                },
            )
            ip = f"10.1.0.{100 + index}"
            transaction.insert("Address", {**of_network, "subnet": subnet, "port": port, "ip": ip})
            transaction.insert(
                "Binding", {**of_network, "port": port, "host": host, "claim": 1, "active": True}
            )

    def _networks(self) -> list[str]:
        return sorted(row["name"] for row in self.database.select("Network"))

    def plug(self, host: Host, network: str) -> PortState:
        """A port of a network whose interface the switch makes itself."""
        request = PortRequest(name=f"real-{host.name}")
        state = ports.create(self.database, "red", network, request)
        ids = f"external_ids:iface-id={state.port.id}"
        kind = "type=internal"
        add = f"ovs-vsctl add-port br-int r-{network} -- set Interface r-{network} {kind} {ids}"
        host.run(add.split())
        return state

    def flows_for(self, host: Host, mac: str) -> int:
        return sum(mac in flow for flow in self.fabric.flows(host))


QUOTAS = ("ports=100000", "addresses=100000", "networks=10000")


@pytest.fixture(scope="module")
def breadth() -> Iterator[Breadth]:
    with Lab.up(f"test-scale-{os.getpid()}", hosts=2) as lab:
        breadth = Breadth(lab)
        for network in breadth.held:
            breadth.plug(breadth.h1, network)
        until(
            lambda: hosts.bound_ports(breadth.database).get("h1") == HELD,
            what="not all ports are bound",
            timeout_s=120,
        )
        yield breadth


class Replica:
    """What an agent of this name is sent: it asks as the agent does, and counts what comes."""

    def __init__(self, remote: str, host: str, own: list[UUID]) -> None:
        self.watch = FabricWatch(remote, AGENT_COLUMNS)
        self.watch.set_interest_in_all("Fabric")
        self.seen: set[tuple[str, UUID]] = set()
        self.knowledge = Knowledge(host)
        self._own = own

    def settle(self) -> None:
        def is_at_rest() -> bool:
            for table, row_id in self.watch.run():
                self.seen.add((table, row_id))
                self.knowledge.set_row(table, row_id, self.watch.row(table, row_id))
            self.knowledge.refresh()
            held = {
                self.knowledge.ports[port].network  # type: ignore[index]
                for port in self._own
                if port in self.knowledge.ports
            }
            wanted = interest.clauses(
                self.knowledge.host_name,
                [port for port in self._own if port not in self.knowledge.ports],  # type: ignore[misc]
                held,
                self.knowledge.remote_hosts(),
            )
            for table, clauses in wanted.items():
                self.watch.set_interest(table, clauses)
            poller = ovs.poller.Poller()
            self.watch.wait(poller)
            poller.timer_wait(20)
            poller.block()
            return self.watch.settled and len(held) == HELD and bool(self.knowledge.hosts)

        until(is_at_rest, what="the replica does not settle", timeout_s=120)


def test_a_host_is_sent_the_rows_of_its_networks_and_no_others(breadth: Breadth) -> None:
    """Of a thousand networks it holds twenty: of every table it is sent a fiftieth."""
    own = [row["port"] for row in breadth.database.select("Binding", host="h1")]
    replica = Replica(breadth.database.remote, "h1", own)

    replica.settle()
    replica.watch.close()

    sent = Counter(table for table, _ in replica.seen)
    assert {table: sent[table] for table in OF_NETWORKS} == {
        "Network": HELD,
        "Subnet": HELD,
        **dict.fromkeys(("Port", "Address", "Binding"), HELD * (PORTS + 1)),
    }
    held = {row.id for row in breadth.database.select("Network") if row["name"] in breadth.held}
    assert {row_id for table, row_id in replica.seen if table == "Network"} == held
    # Its own row, and the hosts that those ports are bound to.
    assert sent["Host"] == 1 + HELD + PORTS - 1


def test_the_agent_itself_has_flows_of_its_networks_and_of_no_others(breadth: Breadth) -> None:
    """The agent started anew, which has to ask for everything again, finds them right."""
    breadth.h1.stop("agent")
    breadth.h1.start("agent")
    assert agent_state(breadth.h1)["flow_mods_sent"] == 0

    flows = breadth.fabric.flows(breadth.h1)

    segments = {
        flow.partition("metadata=")[2].partition(",")[0].partition(" ")[0]
        for flow in flows
        if "metadata=" in flow
    }
    assert segments == {hex(number + 1) for number in range(HELD)}
    foreign = [flow for flow in flows if "0a:01:" in flow and int(flow_number(flow)) >= HELD]
    assert foreign == []


def flow_number(flow: str) -> int:
    """Of which network the simulated MAC address in a flow is."""
    _, _, rest = flow.partition("0a:01:")
    high, low = rest.split(":")[:2]
    return int(high, 16) << 8 | int(low, 16)


def test_a_change_in_a_network_that_it_does_not_hold_costs_a_host_nothing(
    breadth: Breadth,
) -> None:
    """No flow, and nobody waits for it: only who holds the network is waited for."""
    database = breadth.database
    breadth.plug(breadth.h2, "n0900")
    until(lambda: hosts.bound_ports(database).get("h2") == 1, what="it is not bound", timeout_s=60)
    before = breadth.fabric.flows(breadth.h1)
    breadth.h1.pause("agent")
    try:
        state = ports.create(database, "red", "n0900", PortRequest(name="new"), wait_s=60)
        transaction = database.transaction()
        columns = {"port": state.port.id, "network": state.network.id, "claim": 1}
        transaction.insert("Binding", {**columns, "host": "s1", "active": True})
        transaction.request_acknowledgement(state.network.id)
        transaction.commit()
        assert "h1" not in transaction.holders
        assert not database.wait_for_hosts(transaction.cfg or 0, transaction.holders, 60)
    finally:
        breadth.h1.resume("agent")

    assert breadth.flows_for(breadth.h2, str(state.port.mac))
    assert breadth.fabric.flows(breadth.h1) == before


def test_ports_by_the_thousand_are_in_both_switches_and_go_again(breadth: Breadth) -> None:
    """In a network that both hold: written in batches, bound, removed one by one."""
    database, network = breadth.database, "n0000"
    breadth.plug(breadth.h2, network)
    until(lambda: hosts.bound_ports(database).get("h2") == 2, what="it is not bound", timeout_s=60)
    requests = [PortRequest(name=f"many-{number}") for number in range(200)]

    states = port_batches.create_many(database, "red", network, requests)
    transaction = database.transaction()
    for state in states:
        columns = {"port": state.port.id, "network": state.network.id, "claim": 1}
        transaction.insert("Binding", {**columns, "host": "s3", "active": True})
    transaction.request_acknowledgement(states[0].network.id)
    transaction.commit()

    assert {"h1", "h2"} <= transaction.holders
    assert not database.wait_for_hosts(transaction.cfg or 0, transaction.holders, 120)
    last = str(states[-1].port.mac)
    for host in (breadth.h1, breadth.h2):
        assert breadth.flows_for(host, last) > 0
    ports.delete(database, "red", network, states[-1].port.name, force=True, wait_s=120)
    for host in (breadth.h1, breadth.h2):
        assert breadth.flows_for(host, last) == 0
        assert breadth.flows_for(host, str(states[0].port.mac)) > 0
