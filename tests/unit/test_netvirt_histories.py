"""Whatever happened, in whatever order: the flows are those of what is there now.

Rows of the fabric database and interfaces of the switch come and go at random, some several
times before anybody looks; what an agent then has is compared with one that has only just started.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from netvirt.agent.knowledge import Knowledge
from netvirt.agent.learning import learn
from netvirt.agent.topology import Topology, compile_all
from netvirt.model import Overlay
from netvirt.observed import Interface
from tenancy.backends.codec import Row

HERE = "h1"
NETWORKS, PORTS, HOSTS = range(3), range(6), range(1, 4)
TENANT = UUID(int=1)
TUNNELS = {Overlay.VXLAN: 1, Overlay.GRE: 2}

Key = tuple[str, UUID]
Interfaces = Mapping[str, Interface]


def network_id(number: int) -> UUID:
    return UUID(int=100 + number)


def port_id(number: int) -> UUID:
    return UUID(int=1000 + number)


def network_row(number: int, overlay: str, cfg: int) -> Row:
    columns: dict[str, Any] = {"tenant": TENANT, "name": f"n{number}", "overlay": overlay}
    columns |= {"segment_id": 1 + number, "mtu": 1400, "cfg": cfg, "labels": {}}
    return Row("Network", network_id(number), {**columns, "host_access": False})


def subnet_row(number: int, version: int, dhcp: bool) -> Row:
    cidr = f"10.{number}.0.0/24" if version == 4 else f"fd00:{number}::/64"
    columns = {"network": network_id(number), "cidr": cidr, "gateway": None, "dhcp": dhcp}
    sets = {"pools": frozenset[str](), "dns": frozenset[str]()}
    return Row("Subnet", UUID(int=200 + 10 * number + version), {**columns, **sets})


def port_row(number: int, only: str | None, label: str) -> Row:
    columns: dict[str, Any] = {"tenant": TENANT, "network": network_id(number % 3)}
    columns |= {"name": f"p{number}", "mac": f"0a:00:00:00:00:{number:02x}", "kind": "container"}
    return Row("Port", port_id(number), {**columns, "host": only, "labels": {"of": label}})


def address_row(number: int, version: int, only: str | None) -> Row:
    network = number % 3
    ip = f"10.{network}.0.{10 + number}" if version == 4 else f"fd00:{network}::{10 + number}"
    columns = {"network": network_id(network), "port": port_id(number), "ip": ip, "host": only}
    return Row("Address", UUID(int=2000 + 10 * number + version), columns)


def binding_row(number: int, host: int, claim: int) -> Row:
    columns = {"port": port_id(number), "network": network_id(number % 3), "host": f"h{host}"}
    return Row(
        "Binding", UUID(int=3000 + 10 * number + host), {**columns, "claim": claim, "active": True}
    )


def host_row(number: int, last_byte: int, overlays: frozenset[str]) -> Row:
    columns: dict[str, Any] = {"name": f"h{number}", "tunnel_ip": f"192.0.2.{last_byte}"}
    columns |= {"overlays": overlays, "underlay_mtu": None, "crush_host": None, "cfg": 0}
    columns |= {"heartbeat": 0, "problems": frozenset(), "version": "", "labels": {}}
    return Row("Host", UUID(int=4000 + number), columns)


versions, onlys = st.sampled_from([4, 6]), st.sampled_from([None, HERE, "h2"])
numbers = st.sampled_from(PORTS)
rows = st.one_of(
    st.builds(
        network_row,
        st.sampled_from(NETWORKS),
        st.sampled_from(["vxlan", "gre"]),
        st.integers(0, 3),
    ),
    st.builds(subnet_row, st.sampled_from(NETWORKS), versions, st.booleans()),
    st.builds(port_row, numbers, onlys, st.sampled_from("ab")),
    st.builds(address_row, numbers, versions, onlys),
    st.builds(binding_row, numbers, st.sampled_from(HOSTS), st.integers(1, 3)),
    st.builds(
        host_row,
        st.sampled_from(HOSTS),
        st.integers(1, 4),
        st.frozensets(st.sampled_from(["vxlan", "gre"])),
    ),
)


def interfaces(openflow_ports: Mapping[int, int]) -> Interfaces:
    return {
        f"if{number}": Interface(name=f"if{number}", ofport=10 + ofport, iface_id=port_id(number))
        for number, ofport in openflow_ports.items()
    }


steps = st.one_of(
    st.tuples(st.just("set"), rows),
    st.tuples(st.just("remove"), rows),
    st.tuples(st.just("plug"), st.dictionaries(numbers, st.integers(0, 9), max_size=4)),
    st.tuples(st.just("look"), st.none()),
)


def a_world() -> list[Row]:
    """What histories begin with, so that a single step has something to change."""
    both = frozenset({"vxlan", "gre"})
    return [
        *(network_row(number, "vxlan", 0) for number in NETWORKS),
        *(subnet_row(number, 4, dhcp=True) for number in NETWORKS),
        *(host_row(number, number, both) for number in HOSTS),
        *(port_row(number, None, "a") for number in PORTS),
        *(address_row(number, 4, None) for number in PORTS),
        *(binding_row(number, 2, 1) for number in PORTS),
    ]


def known(found: Iterable[Row], there: Interfaces) -> Knowledge:
    """What an agent knows that has only just started."""
    knowledge = Knowledge(HERE)
    for row in found:
        knowledge.set_row(row.table, row.id, row)
    knowledge.set_interfaces(there)
    knowledge.refresh()
    return knowledge


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=30))
def test_any_history_ends_in_the_flows_of_what_is_there_now(history: list[Any]) -> None:
    knowledge, topology = Knowledge(HERE), Topology()
    topology.set_tunnels(TUNNELS)
    there: Interfaces = {}
    found: dict[Key, Row] = {}
    switch: set[int] = set()

    def look() -> None:
        learn(knowledge, topology)
        changes = topology.changes()
        switch.difference_update(changes.delete)
        switch.update(flow.cookie for flow in changes.add)

    beginning: list[Any] = [("set", row) for row in a_world()]
    for step, subject in [*beginning, ("look", None), *history]:
        match step:
            case "set":
                found[subject.table, subject.id] = subject
                knowledge.set_row(subject.table, subject.id, subject)
            case "remove":
                found.pop((subject.table, subject.id), None)
                knowledge.set_row(subject.table, subject.id, None)
            case "plug":
                there = interfaces(subject)
                knowledge.set_interfaces(there)
            case "look":
                look()
    look()

    fresh = known(found.values(), there)
    assert (knowledge.ports, knowledge.networks) == (fresh.ports, fresh.networks)
    assert knowledge.held_networks() == fresh.held_networks()
    assert knowledge.remote_hosts() == fresh.remote_hosts()
    placed = [(port, fresh.location(number)) for number, port in fresh.ports.items()]
    everything = compile_all(
        TUNNELS,
        list(fresh.networks.values()),
        [(port, location) for port, location in placed if location is not None],
    )
    assert topology.wanted.keys() == everything.keys() == switch


def test_what_is_asked_of_a_network_is_asked_of_who_holds_it() -> None:
    """`Fabric.cfg` alone asks nothing: somebody waits for hosts of another network."""
    knowledge = known([network_row(0, "vxlan", 1)], {})

    knowledge.set_row("Fabric", TENANT, Row("Fabric", TENANT, {"cfg": 7}))
    knowledge.refresh()
    assert (knowledge.cfg, knowledge.asked_cfg) == (7, 0)

    knowledge.set_row("Network", network_id(0), network_row(0, "vxlan", 2))
    knowledge.set_row("Fabric", TENANT, Row("Fabric", TENANT, {"cfg": 8}))
    knowledge.refresh()
    assert (knowledge.cfg, knowledge.asked_cfg) == (8, 8)
