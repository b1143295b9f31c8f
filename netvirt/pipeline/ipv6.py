"""Flows for IPv6 on ports: what they may send, and neighbour discovery without flooding. Pure.

A neighbour solicitation goes to the port that it asks for, and to nobody else: the switch knows
where every address is. The port answers itself, so that nothing waits for an agent, and all that
is needed of the datapath is to set a MAC address.
"""

from collections.abc import Iterator
from ipaddress import IPv6Address

from netvirt.model import GATEWAY_MAC, IPAddress, Network, Port, PortKind
from netvirt.pipeline import fields as f
from netvirt.pipeline import tables as t
from netvirt.pipeline.flow import Action, Category, Condition, Flow, Goto, SetField

ETH_IPV6 = 0x86DD
UDP, ICMPV6, NO_NEXT_HEADER = 17, 58, 59
DHCPV6_CLIENT, DHCPV6_SERVER = 546, 547
# RFC 4861; RFC 2710 and RFC 3810 for the reports of multicast listeners.
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT, REDIRECT = 133, 134, 137
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
LISTENER_REPORT, LISTENER_DONE, LISTENER_REPORT_V2 = 131, 132, 143

IS_IPV6 = Condition(f.ETH_TYPE, ETH_IPV6)
IS_UDP = (IS_IPV6, Condition(f.IP_PROTO, UDP))
FROM_NOBODY = Condition(f.IPV6_SRC, int(IPv6Address("::")))


def base() -> Iterator[Flow]:
    """Flows that every host has, for ports of any network with IPv6."""
    # What no flow can see, none can forbid. The switch takes headers that it can't read to their
    # end for protocol 0, in the kernel for 59, which has nothing to say; and a first fragment that
    # ends before its protocol's header for type 0 and ports 0. A first fragment must hold all
    # headers anyway (RFC 8200, 4.5); RFC 7113 tells what hides where it does not.
    for unreadable in (0, NO_NEXT_HEADER):
        protocol = Condition(f.IP_PROTO, unreadable)
        yield _drop(t.GUARD_IP, 125, (IS_IPV6, protocol), t.Reason.IPV6_HEADERS)
    no_ports = (*IS_UDP, Condition(f.UDP_SRC, 0), Condition(f.UDP_DST, 0))
    for cut_off in (_icmpv6(0), no_ports):
        yield _drop(t.GUARD_IP, 125, cut_off, t.Reason.IPV6_HEADERS)

    for routers_own in (ROUTER_ADVERTISEMENT, REDIRECT):
        yield _drop(t.GUARD_IP, 120, _icmpv6(routers_own), t.Reason.ROUTER)
    # Clients listen on 546, whatever port it is sent from (RFC 8415, 7.2).
    for port in (Condition(f.UDP_DST, DHCPV6_CLIENT), Condition(f.UDP_SRC, DHCPV6_SERVER)):
        yield _drop(t.GUARD_IP, 120, (*IS_UDP, port), t.Reason.DHCP_SERVER)

    # Before it has an address, a node tells from :: what it listens to (RFC 3590; RFC 3810, 5.2.13)
    # and asks for routers (RFC 4861, 4.1).
    for kind in (LISTENER_REPORT, LISTENER_DONE, LISTENER_REPORT_V2, ROUTER_SOLICITATION):
        match = (*_icmpv6(kind), FROM_NOBODY)
        yield _base(t.GUARD_IP, 100, match, Goto(t.GUARD_ND.id))
    yield _drop(t.GUARD_IP, 10, (IS_IPV6,), t.Reason.IP_SOURCE)

    for kind in (NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT):
        yield _drop(t.GUARD_ND, 50, _icmpv6(kind), t.Reason.ND_SOURCE)
    yield _drop(t.ND, 20, _icmpv6(NEIGHBOUR_SOLICITATION), t.Reason.ND_UNKNOWN)
    # No port may be a router, so nobody has to hear who looks for one; and to look is no fault.
    yield _base(t.ND, 20, _icmpv6(ROUTER_SOLICITATION))


def guards(port: Port, network: Network, ofport: int) -> Iterator[Flow]:
    """Flows that let in what carries the port's own addresses; those of `base` drop the rest."""
    came_in = Condition(f.IN_PORT, ofport)
    solicits = (came_in, *_icmpv6(NEIGHBOUR_SOLICITATION))
    advertises = (came_in, *_icmpv6(NEIGHBOUR_ADVERTISEMENT))
    # A message in pieces could say in a later one what its first does not: receivers discard it
    # (RFC 6980), and so does the switch.
    whole = Condition(f.IP_FRAGMENT, f.WHOLE)
    own = addresses(port, network)
    is_host = port.kind is PortKind.HOST

    def local(
        table: t.Table, priority: int, match: tuple[Condition, ...], *actions: Action
    ) -> Flow:
        return Flow(table.id, priority, match, actions, Category.LOCAL_PORT)

    if own and is_host:
        # What a host forwards keeps the source that it has.
        yield local(t.GUARD_IP, 100, (came_in, IS_IPV6), Goto(t.GUARD_ND.id))
        yield from _gateway_guards(port, network, (*solicits, whole), (*advertises, whole))
    for address in own:
        if not is_host:
            own_source = (came_in, IS_IPV6, Condition(f.IPV6_SRC, int(address)))
            yield local(t.GUARD_IP, 100, own_source, Goto(t.GUARD_ND.id))
            # A node that is about to take an address asks from :: whether it is in use (RFC 4862,
            # 5.4).
            probe = (*solicits, FROM_NOBODY, _target(address))
            yield local(t.GUARD_IP, 100, probe, Goto(t.GUARD_ND.id))
        # As with ARP, the others must hear who asks for his own address.
        yield local(t.ND, 110, (*solicits, _target(address)), Goto(t.L2.id))
    for mac in (port.mac, 0) if own else ():
        # 0 is no such option: it may be left out.
        sender = (*solicits, whole, Condition(f.ND_SLL, mac))
        yield local(t.GUARD_ND, 100, sender, Goto(t.ND.id))
        for address in own:
            told = (*advertises, whole, _target(address), Condition(f.ND_TLL, mac))
            yield local(t.GUARD_ND, 100, told, Goto(t.ND.id))


def gateway(port: Port, network: Network) -> Iterator[Flow]:
    """The flow that sends who asks for the gateway to this host's own port, and to no other's."""
    subnet = network.subnet(6)
    if subnet is not None and port.kind is PortKind.HOST:
        segment = Condition(f.METADATA, network.segment_id)
        match = (segment, *_icmpv6(NEIGHBOUR_SOLICITATION), _target(subnet.gateway))
        to_gateway = (SetField(f.ETH_DST, GATEWAY_MAC), Goto(t.L2.id))
        yield Flow(t.ND.id, 100, match, to_gateway, Category.LOCAL_PORT)


def _gateway_guards(
    port: Port,
    network: Network,
    solicits: tuple[Condition, ...],
    advertises: tuple[Condition, ...],
) -> Iterator[Flow]:
    """Flows that have a host speak for the gateway with the gateway's MAC address.

    The host's network stack knows only its own; but a VM that moves to another host must find the
    same gateway there.
    """
    subnet = network.subnet(6)
    assert subnet is not None
    claims = (*advertises, _target(subnet.gateway), Condition(f.ND_TLL, port.mac))
    asks = (*solicits, Condition(f.IPV6_SRC, int(subnet.gateway)), Condition(f.ND_SLL, port.mac))
    for match, field in ((claims, f.ND_TLL), (asks, f.ND_SLL)):
        as_gateway = (SetField(field, GATEWAY_MAC), SetField(f.ETH_SRC, GATEWAY_MAC))
        actions = (*as_gateway, Goto(t.ND.id))
        yield Flow(t.GUARD_ND.id, 110, match, actions, Category.LOCAL_PORT)


def solicitations(port: Port, network: Network, category: Category) -> Iterator[Flow]:
    """Flows that send who asks for one of the port's addresses to the port, wherever it is."""
    segment = Condition(f.METADATA, network.segment_id)
    to_port = (SetField(f.ETH_DST, port.mac), Goto(t.L2.id))
    for address in addresses(port, network):
        match = (segment, *_icmpv6(NEIGHBOUR_SOLICITATION), _target(address))
        yield Flow(t.ND.id, 100, match, to_port, category)


def addresses(port: Port, network: Network) -> tuple[IPv6Address, ...]:
    """The port's IPv6 addresses: the one it was given, and the one that it has on any link."""
    if network.subnet(6) is None:
        return ()
    given = [address for address in port.addresses if isinstance(address, IPv6Address)]
    return (*given, port.mac.link_local)


def _icmpv6(kind: int) -> tuple[Condition, ...]:
    return (IS_IPV6, Condition(f.IP_PROTO, ICMPV6), Condition(f.ICMPV6_TYPE, kind))


def _target(address: IPAddress) -> Condition:
    return Condition(f.ND_TARGET, int(address))


def _base(table: t.Table, priority: int, match: tuple[Condition, ...], *actions: Action) -> Flow:
    return Flow(table.id, priority, match, actions, Category.BASE)


def _drop(table: t.Table, priority: int, match: tuple[Condition, ...], reason: t.Reason) -> Flow:
    return _base(table, priority, match, *t.drop(reason))
