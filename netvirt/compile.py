"""From what a host knows to the flows of its switch. Pure: one function per kind of object.

Each function's flows depend on its arguments alone, which is what lets the agent recompute only
what a change touches.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from netvirt.model import GATEWAY_MAC, Mac, Network, Overlay, Port, PortKind
from netvirt.pipeline import fields as f
from netvirt.pipeline import ipv6
from netvirt.pipeline import tables as t
from netvirt.pipeline.flow import (
    IN_PORT_RESERVED,
    Action,
    Category,
    Condition,
    Copy,
    Flow,
    Goto,
    Meter,
    Output,
    OutputTo,
    Punt,
    SetField,
)

ETH_ARP = 0x0806
ETH_IPV4 = 0x0800
UDP = 17
DHCP_CLIENT, DHCP_SERVER = 68, 67
GROUP_BIT = 1 << 40

# Segment ids of networks begin at 1.
GREETING_SEGMENT = 0

IS_ARP = Condition(f.ETH_TYPE, ETH_ARP)
IS_IPV4 = Condition(f.ETH_TYPE, ETH_IPV4)
IS_UDP = (IS_IPV4, Condition(f.IP_PROTO, UDP))
TO_DHCP_SERVER = (
    *IS_UDP,
    Condition(f.UDP_SRC, DHCP_CLIENT),
    Condition(f.UDP_DST, DHCP_SERVER),
)


@dataclass(frozen=True, slots=True)
class Local:
    """A port on this host: the OpenFlow port of its interface."""

    ofport: int


@dataclass(frozen=True, slots=True)
class Remote:
    """A port on another host: that host's tunnel endpoint."""

    endpoint: IPv4Address


Location = Local | Remote


def base(tunnels: Mapping[Overlay, int]) -> Iterator[Flow]:
    """Flows that every host has. `tunnels` gives the OpenFlow port of each tunnel interface."""
    for table in t.ALL_TABLES:
        if isinstance(table.miss, t.Reason):
            yield _flow(table, 0, (), t.drop(table.miss))
        elif table.miss is not None:
            yield _flow(table, 0, (), (Goto(table.miss.id),))
    yield from drop_counters().values()

    for ofport in tunnels.values():
        mark = SetField(f.FLAGS, f.FROM_TUNNEL)
        came_in = (Condition(f.IN_PORT, ofport),)
        yield _flow(t.CLASSIFY, 100, came_in, (mark, Goto(t.TUNNEL.id)))
    # A greeting (see `greeting`) has done its work when it arrives; it is no loss.
    yield _flow(t.TUNNEL, 200, (Condition(f.TUN_ID, GREETING_SEGMENT),), ())

    # What no flow of a port has let through by now is false ARP, not merely a false MAC.
    yield _flow(t.GUARD_MAC, 50, (IS_ARP,), t.drop(t.Reason.ARP_SOURCE))
    yield _flow(t.GUARD_IP, 10, (IS_IPV4,), t.drop(t.Reason.IP_SOURCE))
    # Before it has an address a client asks from 0.0.0.0 (RFC 2131, 4.1).
    yield _flow(t.GUARD_IP, 110, (*TO_DHCP_SERVER, Condition(f.IPV4_SRC, 0)), (Goto(t.PUNT.id),))
    # Whatever port it is sent from: clients look at where it goes to (RFC 2131 asks no more).
    yield _flow(
        t.GUARD_IP,
        120,
        (*IS_UDP, Condition(f.UDP_DST, DHCP_CLIENT)),
        t.drop(t.Reason.DHCP_SERVER),
    )
    yield from ipv6.base()
    # An ARP reply or an announcement goes its way; a request that nothing answered ends here.
    yield _flow(t.ARP, 20, (IS_ARP, Condition(f.ARP_OP, 1)), t.drop(t.Reason.ARP_UNKNOWN))
    yield _flow(t.L2, 50, (Condition(f.ETH_DST, GROUP_BIT, GROUP_BIT),), (Goto(t.FLOOD.id),))
    yield _flow(t.OUTPUT, 1, (), (OutputTo(f.OUTPUT),))


def greeting(tunnel: int, endpoint: IPv4Address) -> tuple[Action, ...]:
    """What to do with a frame so that the switch resolves an endpoint's underlay address.

    The userspace datapath drops the first packet to an endpoint while it asks for the MAC; this
    makes that packet one that nobody misses.
    """
    return (
        SetField(f.TUN_ID, GREETING_SEGMENT),
        SetField(f.TUN_DST, int(endpoint)),
        Output(tunnel),
    )


def drop_counters() -> dict[t.Reason, Flow]:
    """The flow that drops for each reason; what it counts is the number of drops."""
    return {reason: _flow(t.DROP, 1, (Condition(f.REASON, reason),), ()) for reason in t.Reason}


def network(
    network: Network,
    tunnel: int | None,
    local: Collection[int],
    remote: Collection[IPv4Address],
) -> Iterator[Flow]:
    """Flows of a network that this host holds, apart from its ports'.

    `local` are OpenFlow ports, `remote` the endpoints of the other hosts that hold it, `tunnel`
    the OpenFlow port of its overlay's tunnel interface, if there is one.
    """
    segment = Condition(f.METADATA, network.segment_id)
    if tunnel is not None:
        yield _flow(
            t.TUNNEL,
            100,
            (Condition(f.IN_PORT, tunnel), Condition(f.TUN_ID, network.segment_id)),
            (SetField(f.METADATA, network.segment_id), Goto(t.L2.id)),
            Category.NETWORK,
        )
    subnet = network.subnet(4)
    if subnet is None:
        for table, is_ipv4 in ((t.GUARD_MAC, IS_ARP), (t.GUARD_IP, IS_IPV4)):
            not_here = t.drop(t.Reason.IP_VERSION)
            yield _flow(table, 130, (segment, is_ipv4), not_here, Category.NETWORK)
    elif isinstance(subnet.gateway, IPv4Address):
        # The gateway's address is the DHCP server's as well: a client that renews asks for its MAC.
        yield _arp_responder(segment, subnet.gateway, GATEWAY_MAC, Category.NETWORK)
    if network.subnet(6) is None:
        not_here = t.drop(t.Reason.IP_VERSION)
        yield _flow(t.GUARD_IP, 130, (segment, ipv6.IS_IPV6), not_here, Category.NETWORK)
    if subnet is not None and subnet.dhcp:
        yield _flow(
            t.PUNT,
            100,
            (segment, *TO_DHCP_SERVER),
            (Meter(t.PUNT_METER), Punt()),
            Category.NETWORK,
        )

    here = tuple(Output(ofport) for ofport in sorted(local))
    away: list[Action] = []
    if tunnel is not None and remote:
        away.append(Copy(f.METADATA, f.TUN_ID))
        for endpoint in sorted(remote):
            away += [SetField(f.TUN_DST, int(endpoint)), Output(tunnel)]
    from_here = Condition(f.FLAGS, 0, f.FROM_TUNNEL)
    from_tunnel = Condition(f.FLAGS, f.FROM_TUNNEL, f.FROM_TUNNEL)
    yield _flow(t.FLOOD, 100, (segment, from_here), (*here, *away), Category.NETWORK)
    # What came out of a tunnel never goes into one again: replication is the source's work.
    yield _flow(t.FLOOD, 100, (segment, from_tunnel), here, Category.NETWORK)


def port(port: Port, network: Network, location: Location, tunnel: int | None) -> Iterator[Flow]:
    """Flows of one port, wherever it is."""
    segment = Condition(f.METADATA, network.segment_id)
    to_port = (segment, Condition(f.ETH_DST, port.mac))
    if isinstance(location, Local):
        yield from _guards(port, network, location.ofport)
        yield _flow(
            t.L2,
            100,
            to_port,
            (SetField(f.OUTPUT, location.ofport), Goto(t.OUTPUT.id)),
            Category.LOCAL_PORT,
        )
        if port.kind is PortKind.HOST:
            yield _gateway(port, segment, location.ofport)
            yield from ipv6.gateway(port, network)
        category = Category.LOCAL_PORT
    else:
        category = Category.REMOTE_PORT
        if tunnel is not None:
            yield _flow(
                t.L2,
                100,
                (*to_port, Condition(f.FLAGS, 0, f.FROM_TUNNEL)),
                (
                    SetField(f.TUN_DST, int(location.endpoint)),
                    Copy(f.METADATA, f.TUN_ID),
                    SetField(f.OUTPUT, tunnel),
                    Goto(t.OUTPUT.id),
                ),
                category,
            )
    for address in port.addresses:
        if isinstance(address, IPv4Address):
            yield _arp_responder(segment, address, port.mac, category)
    yield from ipv6.solicitations(port, network, category)


def _guards(port: Port, network: Network, ofport: int) -> Iterator[Flow]:
    """Flows that let in what carries the port's own addresses; the tables' misses drop the rest."""
    came_in = Condition(f.IN_PORT, ofport)
    own_mac = Condition(f.ETH_SRC, port.mac)
    own_arp = (came_in, own_mac, IS_ARP, Condition(f.ARP_SHA, port.mac))

    def local(
        table: t.Table, priority: int, match: tuple[Condition, ...], *actions: Action
    ) -> Flow:
        return _flow(table, priority, match, actions, Category.LOCAL_PORT)

    yield local(
        t.CLASSIFY,
        100,
        (came_in,),
        SetField(f.METADATA, network.segment_id),
        Goto(t.GUARD_MAC.id),
    )
    # 0.0.0.0 asks whether an address is in use before taking it (RFC 5227). A host may also ask
    # from the gateway's address, which it has.
    is_gateway = port.kind is PortKind.HOST
    gateways = [subnet.gateway for subnet in network.subnets if is_gateway]
    own_ipv4 = [address for address in port.addresses if isinstance(address, IPv4Address)]
    for sender in (IPv4Address(0), *own_ipv4, *gateways):
        if isinstance(sender, IPv4Address):
            match = (*own_arp, Condition(f.ARP_SPA, int(sender)))
            yield local(t.GUARD_MAC, 100, match, Goto(t.ARP.id))
    yield local(t.GUARD_MAC, 40, (came_in, own_mac), Goto(t.GUARD_IP.id))
    if is_gateway:
        # What a host forwards keeps the source that it has.
        yield local(t.GUARD_IP, 100, (came_in, IS_IPV4), Goto(t.PUNT.id))
    for address in own_ipv4:
        if not is_gateway:
            own_ip = (came_in, IS_IPV4, Condition(f.IPV4_SRC, int(address)))
            yield local(t.GUARD_IP, 100, own_ip, Goto(t.PUNT.id))
        # Asking for one's own address is an announcement or a probe for a rival: the others must
        # hear it, and an answer from the switch would be taken for the rival's.
        own = (came_in, IS_ARP, Condition(f.ARP_OP, 1), Condition(f.ARP_TPA, int(address)))
        yield local(t.ARP, 110, own, Goto(t.L2.id))
    yield from ipv6.guards(port, network, ofport)


def _gateway(port: Port, segment: Condition, ofport: int) -> Flow:
    """Give what goes to the gateway to this host's own port, never to another host's.

    The host's network stack takes in only what carries its own MAC address.
    """
    return _flow(
        t.L2,
        100,
        (
            segment,
            Condition(f.ETH_DST, GATEWAY_MAC),
            Condition(f.FLAGS, 0, f.FROM_TUNNEL),
        ),
        (
            SetField(f.ETH_DST, port.mac),
            SetField(f.OUTPUT, ofport),
            Goto(t.OUTPUT.id),
        ),
        Category.LOCAL_PORT,
    )


def _arp_responder(segment: Condition, address: IPv4Address, mac: Mac, category: Category) -> Flow:
    """Turn an ARP request for the address into its reply, and send it back (RFC 826)."""
    match = (segment, IS_ARP, Condition(f.ARP_OP, 1), Condition(f.ARP_TPA, int(address)))
    actions = (
        Copy(f.ETH_SRC, f.ETH_DST),
        SetField(f.ETH_SRC, mac),
        SetField(f.ARP_OP, 2),
        Copy(f.ARP_SHA, f.ARP_THA),
        Copy(f.ARP_SPA, f.ARP_TPA),
        SetField(f.ARP_SHA, mac),
        SetField(f.ARP_SPA, int(address)),
        Output(IN_PORT_RESERVED),
    )
    return _flow(t.ARP, 100, match, actions, category)


def _flow(
    table: t.Table,
    priority: int,
    match: tuple[Condition, ...],
    actions: tuple[Action, ...],
    category: Category = Category.BASE,
) -> Flow:
    return Flow(table.id, priority, match, actions, category)
