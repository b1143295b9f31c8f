"""The incremental topology must always equal compiling everything at once."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from netvirt.agent.topology import Topology, compile_all
from netvirt.compile import Local, Location, Remote
from netvirt.diff import difference
from netvirt.model import (
    Mac,
    Network,
    NetworkId,
    Overlay,
    Port,
    PortId,
    PortKind,
    Subnet,
    SubnetId,
)
from tenancy.model import TenantId

TENANT = TenantId(UUID(int=1))
BOTH_TUNNELS = {Overlay.VXLAN: 1, Overlay.GRE: 2}


def network(number: int, *, mtu: int = 1450, dhcp: bool = True) -> Network:
    """Of the three, one has IPv4, one has IPv6, and one has both."""
    network_id = NetworkId(UUID(int=100 + number))
    cidrs = IPv4Network(f"10.{number}.0.0/24"), IPv6Network(f"fd00:{number}::/64")
    subnets = tuple(
        Subnet(
            id=SubnetId(UUID(int=200 + 10 * number + cidr.version)),
            network=network_id,
            cidr=cidr,
            gateway=cidr[1],
            pools=(),
            dhcp=dhcp,
        )
        for cidr in (cidrs[:1], cidrs[1:], cidrs)[number]
    )
    return Network(
        id=network_id,
        tenant=TENANT,
        name=f"n{number}",
        overlay=Overlay.VXLAN if number % 2 else Overlay.GRE,
        segment_id=1000 + number,
        mtu_bytes=mtu,
        subnets=subnets,
    )


def port(number: int, network_number: int) -> Port:
    return Port(
        id=PortId(UUID(int=1000 + number)),
        tenant=TENANT,
        network=NetworkId(UUID(int=100 + network_number)),
        name=f"p{number}",
        mac=Mac(0x0A0000000000 + number),
        # The last port of each network is the host's own.
        kind=PortKind.HOST if number > 2 else PortKind.CONTAINER,
        addresses=tuple(subnet.cidr[10 + number] for subnet in network(network_number).subnets),
    )


def locations(number: int) -> st.SearchStrategy[Location | None]:
    return st.one_of(
        st.none(),
        st.just(Local(10 + number)),
        st.integers(1, 3).map(lambda host: Remote(IPv4Address(f"192.0.2.{host}"))),
    )


tunnels = st.sampled_from([{}, {Overlay.VXLAN: 1}, BOTH_TUNNELS])
network_changes = st.tuples(st.just("network"), st.integers(0, 2), st.none() | st.booleans())
port_changes = st.integers(0, 5).flatmap(
    lambda number: st.tuples(st.just("port"), st.just(number), locations(number))
)
tunnel_changes = st.tuples(st.just("tunnels"), st.just(0), tunnels)
steps = st.lists(st.one_of(network_changes, port_changes, tunnel_changes, st.just("look")))


@settings(max_examples=300, deadline=None)
@given(steps)
def test_incremental_equals_full_recompute(script: list) -> None:
    topology = Topology()
    networks: dict[int, Network] = {}
    placed: dict[int, tuple[Port, Location]] = {}
    present: dict[Overlay, int] = {}
    switch: set[int] = set()

    def look() -> None:
        changes = topology.changes()
        assert not switch & {flow.cookie for flow in changes.add}
        assert switch.issuperset(changes.delete)
        switch.update(flow.cookie for flow in changes.add)
        switch.difference_update(changes.delete)

    for step in script:
        match step:
            case "look":
                look()
            case "network", number, dhcp:
                new = None if dhcp is None else network(number, dhcp=dhcp)
                networks.pop(number, None)
                if new is not None:
                    networks[number] = new
                if new is not None or topology._networks.get(NetworkId(UUID(int=100 + number))):
                    topology.set_network(NetworkId(UUID(int=100 + number)), new)
            case "port", number, location:
                new_port = port(number, number % 3)
                placed.pop(number, None)
                if location is not None:
                    placed[number] = (new_port, location)
                topology.set_port(new_port.id, new_port, location)
            case "tunnels", _, mapping:
                present = mapping
                topology.set_tunnels(mapping)
    look()

    everything = compile_all(present, list(networks.values()), placed.values())
    assert topology.wanted.keys() == everything.keys()
    assert switch == everything.keys()


def test_a_remote_port_costs_the_same_however_many_there_are() -> None:
    topology = Topology()
    topology.set_tunnels(BOTH_TUNNELS)
    topology.set_network(network(1).id, network(1))
    endpoint = Remote(IPv4Address("192.0.2.1"))
    for number in range(500):
        one = port(0, 1)
        many = Port(
            id=PortId(UUID(int=5000 + number)),
            tenant=TENANT,
            network=one.network,
            name=f"p{number}",
            mac=Mac(0x0A0000001000 + number),
            kind=PortKind.VM,
        )
        topology.set_port(many.id, many, endpoint)
    topology.changes()
    before = topology.objects_compiled

    topology.set_port(port(1, 1).id, port(1, 1), endpoint)
    topology.changes()

    assert topology.objects_compiled - before == 1


def test_nothing_changed_is_nothing_to_send() -> None:
    flows = compile_all(BOTH_TUNNELS, [network(1)], [(port(1, 1), Local(7))])

    assert not difference(flows, set(flows))


def test_no_two_flows_of_a_switch_match_alike_at_one_priority() -> None:
    flows = compile_all(
        BOTH_TUNNELS,
        [network(0), network(1), network(2)],
        [(port(number, number % 3), Local(10 + number)) for number in range(6)]
        + [(port(number, number % 3), Remote(IPv4Address("192.0.2.9"))) for number in range(6, 9)],
    )

    keys = [(flow.table, flow.priority, frozenset(flow.match)) for flow in flows.values()]

    assert len(keys) == len(set(keys))
