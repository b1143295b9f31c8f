"""Flows and their actions as bytes: bundles that change flows, the list of them, packets out.

Field headers, actions and struct formats are os-ken's; its message objects are not used here.
Building one per flow costs some fifteen times as much, and an agent sends and lists tens of
thousands of flows. tests/unit/test_netvirt_openflow.py compares the bytes with os-ken's own.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Any

from os_ken.ofproto import nicira_ext, ofproto_common
from os_ken.ofproto import ofproto_v1_5 as ofproto
from os_ken.ofproto import ofproto_v1_5_parser as parser

from netvirt.backends.openflow_messages import BUNDLE_FLAGS, DATAPATH, HEADER, VERSION, encode
from netvirt.observed import InstalledFlow
from netvirt.pipeline.fields import IP_FRAGMENT, Field, Kind
from netvirt.pipeline.flow import (
    Action,
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

# The names of ovs-fields(7) under which os-ken does not know the field.
_OXM_NAMES = {
    "nd_sll": "ipv6_nd_sll",
    "nd_target": "ipv6_nd_target",
    "nd_tll": "ipv6_nd_tll",
    "nw_dst": "ipv4_dst",
    "nw_frag": "ip_frag",
    "nw_proto": "ip_proto",
    "nw_src": "ipv4_src",
    "tun_dst": "tun_ipv4_dst",
    "tun_id": "tunnel_id",
    "tun_src": "tun_ipv4_src",
}


# A flow mod in a bundle: outer header, bundle id and flags, inner header, and the flow mod's
# fixed part; then follow match and instructions.
_FLOW_MOD = struct.Struct(
    ofproto_common.OFP_HEADER_PACK_STR
    + ofproto.OFP_BUNDLE_ADD_MSG_0_PACK_STR[1:]
    + ofproto_common.OFP_HEADER_PACK_STR[1:]
    + ofproto.OFP_FLOW_MOD_PACK_STR0[1:]
)
_OUTER_SIZE = HEADER.size + struct.calcsize(ofproto.OFP_BUNDLE_ADD_MSG_0_PACK_STR)
_PADDING = [bytes(-length % 8) for length in range(8)]
_MATCH = struct.Struct("!HH")
_INSTRUCTIONS = struct.Struct(ofproto.OFP_INSTRUCTION_ACTIONS_PACK_STR)
_NO_MATCH = _MATCH.pack(ofproto.OFPMT_OXM, _MATCH.size) + bytes(4)


def add_flow(xid: int, bundle_id: int, flow: Flow) -> bytes:
    """A bundle's message that adds a flow."""
    body = _match(flow.match) + _instructions(flow.actions)
    return _flow_mod(
        xid, bundle_id, flow.cookie, 0, flow.table, ofproto.OFPFC_ADD, flow.priority, body
    )


def delete_flows(xid: int, bundle_id: int, cookie: int) -> bytes:
    """A bundle's message that deletes the flows of all tables that have exactly this cookie."""
    every = 0xFFFF_FFFF_FFFF_FFFF
    return _flow_mod(
        xid, bundle_id, cookie, every, ofproto.OFPTT_ALL, ofproto.OFPFC_DELETE, 0, _NO_MATCH
    )


def _flow_mod(
    xid: int,
    bundle_id: int,
    cookie: int,
    cookie_mask: int,
    table: int,
    command: int,
    priority: int,
    body: bytes,
) -> bytes:
    length = _FLOW_MOD.size + len(body)
    # fmt: off
    return _FLOW_MOD.pack(
        VERSION, ofproto.OFPT_BUNDLE_ADD_MESSAGE, length, xid,
        bundle_id, BUNDLE_FLAGS,
        VERSION, ofproto.OFPT_FLOW_MOD, length - _OUTER_SIZE, xid,
        cookie, cookie_mask, table, command, 0, 0, priority,
        ofproto.OFP_NO_BUFFER, ofproto.OFPP_ANY, ofproto.OFPG_ANY, 0, 0,
    ) + body
    # fmt: on


def _match(conditions: tuple[Condition, ...]) -> bytes:
    # A field must come after those that it presupposes (eth_type before nw_src), and the order
    # of the numbers, which are the first bytes of the headers, is such an order: but for one.
    ordered = sorted([_oxm(c.field, c.value, c.mask) for c in conditions], key=_order)
    oxms = b"".join(ordered)
    length = _MATCH.size + len(oxms)
    return _MATCH.pack(ofproto.OFPMT_OXM, length) + oxms + _PADDING[length % 8]


def _order(oxm: bytes) -> tuple[bool, bytes]:
    """Open vSwitch's own nw_frag has a number below that of eth_type, which it presupposes."""
    return oxm.startswith(_IP_FRAG), oxm


def _oxm(field: Field, value: int, mask: int | None = None) -> bytes:
    octets = (field.bits + 7) >> 3
    if mask is None or mask == field.all_ones:
        return _oxm_header(field.name, octets, False) + value.to_bytes(octets, "big")
    # The switch refuses bits of the value that the mask leaves out.
    return (
        _oxm_header(field.name, octets, True)
        + (value & mask).to_bytes(octets, "big")
        + mask.to_bytes(octets, "big")
    )


@cache
def _oxm_header(name: str, octets: int, masked: bool) -> bytes:
    number, nothing, buffer = _oxm_number(name), bytes(octets), bytearray()
    ofproto.oxm_serialize(number, nothing, nothing if masked else None, buffer, 0)
    return bytes(buffer[: -octets * (2 if masked else 1)])


def _oxm_number(name: str) -> Any:
    return ofproto.oxm_from_user_header(_oxm_name(name))


def _oxm_name(name: str) -> str:
    return _OXM_NAMES.get(name, name)


_IP_FRAG = tuple(_oxm_header(IP_FRAGMENT.name, 1, masked)[:3] for masked in (False, True))


def _instructions(actions: tuple[Action, ...]) -> bytes:
    goto = b""
    if actions and isinstance(actions[-1], Goto):
        goto = _goto(actions[-1].table)
        actions = actions[:-1]
    if not actions:
        return goto
    encoded = b"".join([_set_field(a) if isinstance(a, SetField) else _action(a) for a in actions])
    length = _INSTRUCTIONS.size + len(encoded)
    return _INSTRUCTIONS.pack(ofproto.OFPIT_APPLY_ACTIONS, length) + encoded + goto


@cache
def _goto(table: int) -> bytes:
    buffer = bytearray()
    parser.OFPInstructionGotoTable(table).serialize(buffer, 0)
    return bytes(buffer)


def _set_field(action: SetField) -> bytes:
    oxm = _oxm(action.field, action.value)
    length = _MATCH.size + len(oxm)
    padding = _PADDING[length % 8]
    return _MATCH.pack(ofproto.OFPAT_SET_FIELD, length + len(padding)) + oxm + padding


@lru_cache(maxsize=4096)
def _action(action: Action) -> bytes:
    buffer = bytearray()
    _os_ken_action(action).serialize(buffer, 0)
    return bytes(buffer)


def _os_ken_action(action: Action) -> Any:
    match action:
        case Output(port):
            return parser.OFPActionOutput(port)
        case OutputTo(field):
            bits = nicira_ext.ofs_nbits(0, field.bits - 1)
            return parser.NXActionOutputReg2(bits, _oxm_name(field.name), 0xFFFF)
        case Copy(source, target):
            names = [_oxm_name(source.name), _oxm_name(target.name)]
            return parser.OFPActionCopyField(action.width, oxm_ids=names)
        case Punt():
            return parser.OFPActionOutput(ofproto.OFPP_CONTROLLER, ofproto.OFPCML_NO_BUFFER)
        case Meter(id):
            return parser.OFPActionMeter(id)
        case SetField(field, value):
            number = field.kind in (Kind.DECIMAL, Kind.HEX, Kind.FRAGMENT)
            told = value if number else field.text(value)
            return parser.OFPActionSetField(**{_oxm_name(field.name): told})
        case _:
            raise TypeError(f"{action} is not encoded here")


# Packets out


def packet_out(xid: int, actions: Sequence[Action], frame: bytes) -> bytes:
    return encode(
        parser.OFPPacketOut(
            DATAPATH,
            buffer_id=ofproto.OFP_NO_BUFFER,
            match=parser.OFPMatch(in_port=ofproto.OFPP_CONTROLLER),
            actions=[_os_ken_action(action) for action in actions],
            data=frame,
        ),
        xid,
    )


# Flow lists

_FLOW_DESC = struct.Struct(ofproto.OFP_FLOW_DESC_0_PACK_STR)
_STATISTIC = struct.Struct("!HBB")
_PACKETS, _BYTES = (
    ofproto.oxs_from_user_header(name) & 0x7F for name in ("packet_count", "byte_count")
)


def flows_request(xid: int) -> bytes:
    return encode(parser.OFPFlowDescStatsRequest(DATAPATH), xid)


def parse_flows(message: bytes) -> Iterator[InstalledFlow]:
    """The flows of one part of the answer to `flows_request`; matches and actions are skipped."""
    at = ofproto.OFP_MULTIPART_REPLY_SIZE
    while at < len(message):
        length, table, priority, _, _, _, _, cookie = _FLOW_DESC.unpack_from(message, at)
        statistics = at + _FLOW_DESC.size
        match_length = _MATCH.unpack_from(message, statistics)[1]
        packets, octets = _parse_statistics(message, statistics + (match_length + 7 & ~7))
        yield InstalledFlow(table, priority, cookie, packets, octets)
        if not length:
            raise struct.error("a flow description of length 0")
        at += length


def _parse_statistics(message: bytes, at: int) -> tuple[int, int]:
    packets = octets = 0
    end = at + _MATCH.unpack_from(message, at)[1]
    at += _MATCH.size
    while at < end:
        _, field, length = _STATISTIC.unpack_from(message, at)
        at += _STATISTIC.size
        if field >> 1 == _PACKETS:
            packets = int.from_bytes(message[at : at + length], "big")
        elif field >> 1 == _BYTES:
            octets = int.from_bytes(message[at : at + length], "big")
        at += length
    return packets, octets
