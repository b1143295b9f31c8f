"""IPv6 in the pipeline: whatever a port sends, what leaves the switch is its own and reaches only
whom it is for.
"""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netvirt import compile as compiler
from netvirt.compile import Local, Remote
from netvirt.model import (
    GATEWAY_MAC,
    IPAddress,
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
from netvirt.pipeline import fields as f
from netvirt.pipeline import ipv6
from netvirt.pipeline.fields import Field
from netvirt.pipeline.flow import Flow
from netvirt.pipeline.tables import L2, Reason
from tenancy.model import TenantId
from tests.unit.flow_table import Outcome, Packet, send

TUNNEL = 1
ENDPOINT = IPv4Address("192.0.2.2")
IPV4, IPV6 = IPv4Network("10.1.0.0/24"), IPv6Network("fd00:1::/64")
ALL_NODES = 0x333300000001
SOLICITED = 0x3333FF000000


def network(*cidrs: IPv4Network | IPv6Network, host_access: bool = False) -> Network:
    network_id = NetworkId(UUID(int=1))
    return Network(
        id=network_id,
        tenant=TenantId(UUID(int=2)),
        name="front",
        overlay=Overlay.VXLAN,
        segment_id=4711,
        mtu_bytes=1450,
        host_access=host_access,
        subnets=tuple(
            Subnet(
                id=SubnetId(UUID(int=cidr.version)),
                network=network_id,
                cidr=cidr,
                gateway=cidr[1],
                pools=(),
            )
            for cidr in cidrs
        ),
    )


def port(of: Network, number: int, kind: PortKind = PortKind.CONTAINER) -> Port:
    addresses: tuple[IPAddress, ...] = tuple(subnet.cidr[number] for subnet in of.subnets)
    return Port(
        id=PortId(UUID(int=100 + number)),
        tenant=of.tenant,
        network=of.id,
        name=f"p{number}",
        mac=Mac(0x0A0000000000 + number),
        kind=kind,
        addresses=addresses,
    )


def switch(of: Network, *hosts_own: Port) -> list[Flow]:
    """Ports 2 and 3 are here, behind OpenFlow ports 2 and 3; port 4 is elsewhere."""
    here = [port(of, 2), port(of, 3), *hosts_own]
    flows = list(compiler.base({Overlay.VXLAN: TUNNEL}))
    flows += compiler.network(of, TUNNEL, [ofport(one) for one in here], [ENDPOINT])
    for one in here:
        flows += compiler.port(one, of, Local(ofport(one)), TUNNEL)
    flows += compiler.port(port(of, 4), of, Remote(ENDPOINT), TUNNEL)
    return flows


def ofport(of: Port) -> int:
    return int(of.mac) & 0xFF


DUAL = network(IPV4, IPV6)
A, B, C = (port(DUAL, number) for number in (2, 3, 4))
HOST = port(replace(DUAL, host_access=True), 9, PortKind.HOST)
DUAL_SWITCH = switch(DUAL)
HOST_SWITCH = switch(replace(DUAL, host_access=True), HOST)


def ip6(one: Port) -> int:
    (address,) = (address for address in one.addresses if isinstance(address, IPv6Address))
    return int(address)


def packet(source: Port, protocol: int = 6, **values: int) -> dict[Field, int]:
    """What a port sends to port 4, honest but for the values given by the name of their field."""
    made: dict[Field, int] = {
        f.IN_PORT: ofport(source),
        f.ETH_SRC: source.mac,
        f.ETH_DST: C.mac,
        f.ETH_TYPE: 0x86DD,
        f.IPV6_SRC: ip6(source),
        f.IP_PROTO: protocol,
        f.IP_FRAGMENT: f.WHOLE,
    }
    by_name = {field.name: field for field in f.ALL_FIELDS}
    return made | {by_name[name]: value for name, value in values.items()}


def discovery(source: Port, kind: int, target: int, lla: int, **values: int) -> dict[Field, int]:
    """A solicitation or an advertisement, with the MAC address that it tells or 0."""
    told = {"nd_sll" if kind == ipv6.NEIGHBOUR_SOLICITATION else "nd_tll": lla}
    return packet(source, 58, icmpv6_type=kind, nd_target=target, **told, **values)


def leaves_by(outcome: Outcome) -> list[int]:
    return [by for by, _ in outcome.outputs]


# Addresses, MACs and kinds that mean something here, own and others'; those of discovery, and what
# is true, often enough that all false ones meet a message that is true but for them.
ADDRESSES = [0, *(ip6(one) for one in (A, B, C)), *(int(one.mac.link_local) for one in (A, B, C))]
addresses = st.sampled_from([0, *ADDRESSES, int(IPV6[1]), int(IPV6[77])])
macs = st.sampled_from(
    [A.mac, A.mac, A.mac, 0, B.mac, C.mac, GATEWAY_MAC, 0, ALL_NODES, SOLICITED | 4]
)
kinds = st.sampled_from([0, 128, 131, 132, 133, 134, 137, 143, *[135] * 8, *[136] * 8])
ports = st.sampled_from([0, 68, 546, 547, 4000])
fragments = st.sampled_from([f.WHOLE, f.WHOLE, f.FIRST_FRAGMENT])


@st.composite
def anything(draw: st.DrawFn) -> dict[Field, int]:
    """Anything of IPv6 that port 2 might send, as a switch sees it."""
    protocol = draw(st.sampled_from([0, 6, 17, 17, 44, 59, *[58] * 8]))
    made = packet(
        A,
        protocol,
        eth_src=draw(st.sampled_from([A.mac, A.mac, A.mac, B.mac])),
        eth_dst=draw(macs),
        ipv6_src=draw(addresses),
        nw_frag=f.LATER_FRAGMENT if protocol == 44 else draw(fragments),
    )
    if protocol == 17:
        made |= {f.UDP_SRC: draw(ports), f.UDP_DST: draw(ports)}
    if protocol == 58:
        made[f.ICMPV6_TYPE] = kind = draw(kinds)
        if kind in (135, 136):
            made[f.ND_TARGET] = draw(addresses)
            made[f.ND_SLL if kind == 135 else f.ND_TLL] = draw(macs)
    return made


@settings(max_examples=1500, deadline=None)
@given(anything())
def test_what_leaves_is_true_and_what_does_not_is_counted(sent: Packet) -> None:
    outcome = send(DUAL_SWITCH, sent)

    own = (ip6(A), int(A.mac.link_local))
    kind = sent.get(f.ICMPV6_TYPE)
    if not outcome.outputs:
        assert outcome.dropped is not None or kind == ipv6.ROUTER_SOLICITATION
        return
    assert outcome.dropped is None
    assert not outcome.punted
    assert sent[f.ETH_SRC] == A.mac
    assert sent[f.IP_PROTO] not in (0, 59)
    if sent[f.IPV6_SRC] not in own:
        assert sent[f.IPV6_SRC] == 0
        assert kind in (131, 132, 143) or (kind == 135 and sent[f.ND_TARGET] in own)
    assert kind not in (0, 133, 134, 137)
    assert sent.get(f.UDP_DST) != 546
    assert sent.get(f.UDP_SRC) != 547
    if kind == ipv6.NEIGHBOUR_ADVERTISEMENT:
        assert sent[f.ND_TARGET] in own
        assert sent[f.ND_TLL] in (A.mac, 0)
        assert sent[f.IP_FRAGMENT] == f.WHOLE
    if kind == ipv6.NEIGHBOUR_SOLICITATION:
        assert sent[f.ND_SLL] in (A.mac, 0)
        assert sent[f.IP_FRAGMENT] == f.WHOLE
        if sent[f.ND_TARGET] not in own:
            (found,) = outcome.outputs
            (asked,) = (one for one in (B, C) if sent[f.ND_TARGET] in ADDRESSES_OF[one.name])
            assert found[1][f.ETH_DST] == asked.mac
            assert found[0] == (TUNNEL if asked is C else ofport(asked))


ADDRESSES_OF = {one.name: (ip6(one), int(one.mac.link_local)) for one in (A, B, C)}


@settings(max_examples=500, deadline=None)
@given(anything(), st.sampled_from([network(IPV4), network(IPV4, host_access=True)]))
def test_a_network_without_ipv6_lets_none_of_it_out(sent: Packet, of: Network) -> None:
    outcome = send(switch(of), sent)

    false_mac = sent[f.ETH_SRC] != A.mac
    assert outcome.dropped is (Reason.MAC_SOURCE if false_mac else Reason.IP_VERSION)


@pytest.mark.parametrize("eth_type", [0x0800, 0x0806])
def test_a_network_without_ipv4_lets_none_of_it_out(eth_type: int) -> None:
    sent: Packet = {
        f.IN_PORT: 2,
        f.ETH_SRC: A.mac,
        f.ETH_DST: 0xFFFFFFFFFFFF,
        f.ETH_TYPE: eth_type,
        f.IPV4_SRC: 0,
        f.IP_PROTO: 17,
        f.UDP_SRC: 68,
        f.UDP_DST: 67,
        f.ARP_OP: 1,
        f.ARP_SPA: 0,
        f.ARP_TPA: 0,
        f.ARP_SHA: A.mac,
    }

    outcome = send(switch(network(IPV6)), sent)

    assert outcome.dropped is Reason.IP_VERSION
    assert not outcome.punted


@pytest.mark.parametrize("target", ["given", "link-local"])
@pytest.mark.parametrize(("asked", "leaves"), [(B, ofport(B)), (C, TUNNEL)])
def test_a_solicitation_goes_to_the_port_asked_for(target: str, asked: Port, leaves: int) -> None:
    address = ip6(asked) if target == "given" else int(asked.mac.link_local)
    multicast = SOLICITED | address & 0xFFFFFF

    outcome = send(DUAL_SWITCH, discovery(A, 135, address, A.mac, eth_dst=multicast))

    assert leaves_by(outcome) == [leaves]
    assert outcome.outputs[0][1][f.ETH_DST] == asked.mac


def test_a_solicitation_for_nobody_is_dropped() -> None:
    outcome = send(DUAL_SWITCH, discovery(A, 135, int(IPV6[77]), A.mac, eth_dst=SOLICITED | 0x77))

    assert outcome.dropped is Reason.ND_UNKNOWN


def test_a_probe_for_ones_own_address_is_heard_by_all() -> None:
    probe = discovery(A, 135, ip6(A), 0, eth_dst=SOLICITED | 2, ipv6_src=0)

    assert leaves_by(send(DUAL_SWITCH, probe)) == [ofport(A), ofport(B), TUNNEL]


@pytest.mark.parametrize("kind", [131, 132, 143])
def test_who_has_no_address_yet_may_tell_what_he_listens_to(kind: int) -> None:
    report = packet(A, 58, icmpv6_type=kind, ipv6_src=0, eth_dst=0x333300000016)

    assert leaves_by(send(DUAL_SWITCH, report)) == [ofport(A), ofport(B), TUNNEL]


def test_what_comes_out_of_a_tunnel_goes_to_the_port_alone() -> None:
    arrived = discovery(C, 135, ip6(A), C.mac, eth_dst=A.mac, in_port=TUNNEL, tun_id=4711)

    outcome = send(DUAL_SWITCH, arrived)

    assert leaves_by(outcome) == [ofport(A)]


# A host's own port


def test_who_asks_for_the_gateway_reaches_the_own_port_of_the_host() -> None:
    outcome = send(HOST_SWITCH, discovery(A, 135, int(IPV6[1]), A.mac, eth_dst=SOLICITED | 1))

    assert leaves_by(outcome) == [ofport(HOST)]
    assert outcome.outputs[0][1][f.ETH_DST] == HOST.mac


def test_without_host_access_nobody_is_the_gateway() -> None:
    outcome = send(DUAL_SWITCH, discovery(A, 135, int(IPV6[1]), A.mac, eth_dst=SOLICITED | 1))

    assert outcome.dropped is Reason.ND_UNKNOWN


def test_a_host_speaks_for_the_gateway_with_the_gateways_mac() -> None:
    claim = discovery(HOST, 136, int(IPV6[1]), HOST.mac, eth_dst=A.mac, ipv6_src=int(IPV6[1]))
    question = discovery(HOST, 135, ip6(A), HOST.mac, eth_dst=A.mac, ipv6_src=int(IPV6[1]))

    answers = [send(HOST_SWITCH, one).outputs for one in (claim, question)]

    for (by, found), field in zip([one for (one,) in answers], (f.ND_TLL, f.ND_SLL), strict=True):
        assert by == ofport(A)
        assert (found[field], found[f.ETH_SRC]) == (GATEWAY_MAC, GATEWAY_MAC)


def test_a_host_forwards_what_others_sent_but_names_no_others_address() -> None:
    forwarded = packet(HOST, ipv6_src=int(IPv6Address("2001:db8::1")), eth_dst=A.mac)
    false = discovery(HOST, 136, ip6(B), HOST.mac, eth_dst=A.mac)

    assert leaves_by(send(HOST_SWITCH, forwarded)) == [ofport(A)]
    assert send(HOST_SWITCH, false).dropped is Reason.ND_SOURCE


def test_only_table_l2_leads_out() -> None:
    """What the tests above take for leaving has gone through all guards."""
    outcome = send(DUAL_SWITCH, packet(A))

    assert outcome.tables[-2:] == [L2.id, 80]
    assert leaves_by(outcome) == [TUNNEL]


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        ("0a:00:00:00:00:02", "fe80::800:ff:fe00:2"),
        ("52:54:00:12:34:56", "fe80::5054:ff:fe12:3456"),
    ],
)
def test_the_link_local_address_of_a_mac(mac: str, address: str) -> None:
    assert str(Mac.parse(mac).link_local) == address
