"""What is said to a switch, without one: bytes against os-ken's, and conversations as playbooks."""

import struct
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from os_ken.ofproto import nicira_ext
from os_ken.ofproto import ofproto_v1_5 as ofproto
from os_ken.ofproto import ofproto_v1_5_parser as parser
from os_ken.ofproto.ofproto_parser import msg as parse_message
from os_ken.ofproto.ofproto_protocol import ProtocolDesc

from netvirt.backends import openflow_flows as flows
from netvirt.backends.openflow_conversation import Conversation, ProtocolError
from netvirt.backends.openflow_events import (
    Applied,
    ApplyFailed,
    Connected,
    Event,
    MetersEnsured,
    MetersFailed,
    PacketIn,
)
from netvirt.pipeline.fields import ALL_FIELDS, ETH_DST, METADATA, Field, Kind
from netvirt.pipeline.flow import (
    IN_PORT_RESERVED,
    Action,
    Category,
    Condition,
    Copy,
    Flow,
    FlowChanges,
    Goto,
    Meter,
    Output,
    OutputTo,
    Punt,
    SetField,
)

DATAPATH = ProtocolDesc(ofproto.OFP_VERSION)
OS_KEN_NAMES = {
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
FLOW = Flow(
    60, 100, (Condition(METADATA, 7), Condition(ETH_DST, 5)), (Output(3),), Category.LOCAL_PORT
)


# Bytes


def os_ken_name(field: Field) -> str:
    return OS_KEN_NAMES.get(field.name, field.name)


def os_ken_value(field: Field, value: int) -> int | str:
    number = field.kind in (Kind.DECIMAL, Kind.HEX, Kind.FRAGMENT)
    return value if number else field.text(value)


def os_ken_action(action: Action) -> Any:
    match action:
        case SetField(field, value):
            return parser.OFPActionSetField(**{os_ken_name(field): os_ken_value(field, value)})
        case Copy(source, target):
            names = [os_ken_name(source), os_ken_name(target)]
            return parser.OFPActionCopyField(action.width, oxm_ids=names)
        case Output(port):
            return parser.OFPActionOutput(port)
        case OutputTo(field):
            bits = nicira_ext.ofs_nbits(0, field.bits - 1)
            return parser.NXActionOutputReg2(bits, os_ken_name(field), 0xFFFF)
        case Punt():
            return parser.OFPActionOutput(ofproto.OFPP_CONTROLLER, ofproto.OFPCML_NO_BUFFER)
        case Meter(id):
            return parser.OFPActionMeter(id)
        case _:
            raise AssertionError(f"{action} has no counterpart yet")


def os_ken_message(flow: Flow, xid: int, bundle: int) -> bytes:
    """The bundle message that adds a flow, made of os-ken's objects only."""
    match = {
        os_ken_name(c.field): os_ken_value(c.field, c.value)
        if c.mask is None or c.mask == c.field.all_ones
        else (os_ken_value(c.field, c.value & c.mask), os_ken_value(c.field, c.mask))
        for c in flow.match
    }
    oxms = parser.OFPMatch(**match)
    # os-ken puts this first, where no switch takes it: it presupposes eth_type.
    oxms._fields2.sort(key=lambda oxm: oxm[0] == "ip_frag")
    actions = [os_ken_action(action) for action in flow.actions if not isinstance(action, Goto)]
    instructions = [parser.OFPInstructionActions(ofproto.OFPIT_APPLY_ACTIONS, actions)]
    gotos = [parser.OFPInstructionGotoTable(a.table) for a in flow.actions if isinstance(a, Goto)]
    flow_mod = parser.OFPFlowMod(
        DATAPATH,
        cookie=flow.cookie,
        table_id=flow.table,
        priority=flow.priority,
        out_port=ofproto.OFPP_ANY,
        out_group=ofproto.OFPG_ANY,
        match=oxms,
        instructions=(instructions if actions else []) + gotos,
    )
    message = parser.OFPBundleAddMsg(
        DATAPATH, bundle, ofproto.OFPBF_ATOMIC | ofproto.OFPBF_ORDERED, flow_mod, []
    )
    message.set_xid(xid)
    message.serialize()
    return bytes(message.buf)


def values(field: Field) -> st.SearchStrategy[int]:
    return st.integers(0, field.all_ones)


fields = st.sampled_from(ALL_FIELDS)
conditions = fields.flatmap(
    lambda field: st.builds(
        Condition, st.just(field), values(field), st.none() | values(field).filter(bool)
    )
)
actions = st.one_of(
    fields.flatmap(lambda field: st.builds(SetField, st.just(field), values(field))),
    st.builds(Copy, fields, fields),
    st.builds(Output, st.integers(1, 0xFF00) | st.just(IN_PORT_RESERVED)),
    st.builds(OutputTo, fields),
    st.just(Punt()),
    st.builds(Meter, st.integers(1, 100)),
)
any_flow = st.builds(
    Flow,
    st.integers(0, 254),
    st.integers(0, 0xFFFF),
    st.lists(conditions, max_size=6, unique_by=lambda condition: condition.field.name).map(tuple),
    st.builds(
        lambda some, goto: (*some, *goto),
        st.lists(actions, max_size=5),
        st.lists(st.builds(Goto, st.integers(0, 254)), max_size=1),
    ),
    st.sampled_from(Category),
)


@given(any_flow, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF))
def test_any_flow_is_encoded_as_os_ken_does(flow: Flow, xid: int, bundle: int) -> None:
    assert flows.add_flow(xid, bundle, flow) == os_ken_message(flow, xid, bundle)


# Conversations


@dataclass(frozen=True)
class Heard:
    """A message that the controller sent."""

    kind: int
    xid: int
    data: bytes

    @property
    def summary(self) -> str:
        if self.kind == ofproto.OFPT_BUNDLE_CONTROL:
            return CONTROLS[self.os_ken.type]
        return str(ofproto.ofp_msg_type_to_str(self.kind)).partition("(")[0]

    @property
    def os_ken(self) -> Any:
        header = flows.HEADER.unpack_from(self.data)
        return parse_message(DATAPATH, *header, self.data)


ADD = "OFPT_BUNDLE_ADD_MESSAGE"
CONTROLS = {
    ofproto.OFPBCT_OPEN_REQUEST: "open",
    ofproto.OFPBCT_CLOSE_REQUEST: "close",
    ofproto.OFPBCT_COMMIT_REQUEST: "commit",
    ofproto.OFPBCT_DISCARD_REQUEST: "discard",
}


class FakeSwitch:
    """The switch's side of a conversation."""

    def __init__(self) -> None:
        self.conversation = Conversation()

    def connect(self) -> Self:
        assert self.say(parser.OFPHello(DATAPATH), 0) == [Connected()]
        self.hear()
        return self

    def hear(self) -> list[Heard]:
        """All that the controller now wants to send."""
        heard: list[Heard] = []
        while data := bytes(self.conversation.outgoing()):
            self.conversation.sent(len(data))
            while data:
                _, kind, length, xid = flows.HEADER.unpack_from(data)
                heard.append(Heard(kind, xid, data[:length]))
                data = data[length:]
        return heard

    def say(self, message: Any, xid: int) -> list[Event]:
        return self.conversation.receive(encoded(message, xid))

    def agree(self, request: Heard) -> list[Event]:
        """Agree to a bundle control request."""
        asked = request.os_ken
        return self.say(
            parser.OFPBundleCtrlMsg(DATAPATH, asked.bundle_id, asked.type + 1, asked.flags, []),
            request.xid,
        )

    def refuse(self, request: Heard, type_: int, code: int) -> list[Event]:
        return self.say(parser.OFPErrorMsg(DATAPATH, type_, code, request.data[:64]), request.xid)

    def tell_no_meters(self, request: Heard) -> list[Event]:
        reply = struct.pack("!BBHIHH4x", 6, ofproto.OFPT_MULTIPART_REPLY, 16, request.xid, 10, 0)
        return self.conversation.receive(reply)


def encoded(message: Any, xid: int) -> bytes:
    message.set_xid(xid)
    message.serialize()
    return bytes(message.buf)


def summary(heard: list[Heard]) -> list[str]:
    return [message.summary for message in heard]


def test_nothing_but_a_greeting_is_said_before_the_switch_greets() -> None:
    switch = FakeSwitch()
    switch.conversation.request_flows()

    assert summary(switch.hear()) == ["OFPT_HELLO"]
    assert switch.say(parser.OFPHello(DATAPATH), 0) == [Connected()]
    assert summary(switch.hear()) == ["OFPT_SET_CONFIG", "OFPT_MULTIPART_REQUEST"]


def test_switch_without_openflow_15_is_told_what_to_change() -> None:
    hello = bytearray(encoded(parser.OFPHello(DATAPATH), 0))
    hello[0] = 4

    with pytest.raises(ProtocolError, match="ovs-vsctl clear bridge br-int protocols"):
        FakeSwitch().conversation.receive(bytes(hello))


def test_bundle_is_committed_when_the_switch_has_accepted_all_of_it() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.apply(1, FlowChanges(add=[FLOW], delete=[17, 18]))

    heard = switch.hear()
    assert summary(heard) == ["open", ADD, ADD, ADD, "close"]
    assert switch.agree(heard[0]) == []
    assert switch.hear() == []
    assert switch.agree(heard[-1]) == []
    (commit,) = switch.hear()
    assert commit.summary == "commit"
    assert switch.agree(commit) == [Applied(1)]
    assert switch.conversation.flow_mods_sent == 3


def test_refused_flow_discards_the_bundle_and_is_named() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.apply(1, FlowChanges(add=[FLOW], delete=[17]))
    *_, flow, close = switch.hear()

    assert switch.refuse(flow, ofproto.OFPET_BAD_MATCH, ofproto.OFPBMC_BAD_PREREQ) == []
    # What was on its way meanwhile is answered, and changes nothing any more.
    assert switch.agree(close) == []
    (discard,) = switch.hear()

    assert discard.summary == "discard"
    assert switch.agree(discard) == [
        ApplyFailed(1, f"OFPET_BAD_MATCH(4), OFPBMC_BAD_PREREQ(9): {FLOW.text}")
    ]


def test_refused_deletion_is_named_by_its_cookie() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.apply(1, FlowChanges(add=[FLOW], delete=[0x17]))
    switch.refuse(switch.hear()[1], ofproto.OFPET_BAD_REQUEST, ofproto.OFPBRC_EPERM)
    (discard,) = switch.hear()

    assert switch.agree(discard) == [
        ApplyFailed(1, "OFPET_BAD_REQUEST(1), OFPBRC_EPERM(5): deleting cookie 0x17")
    ]


def test_flow_refused_at_commit_is_named() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.apply(1, FlowChanges(add=[FLOW], delete=[]))
    _, flow, close = switch.hear()
    switch.agree(close)
    (commit,) = switch.hear()

    assert switch.refuse(flow, ofproto.OFPET_FLOW_MOD_FAILED, ofproto.OFPFMFC_TABLE_FULL) == []
    assert switch.refuse(commit, ofproto.OFPET_BUNDLE_FAILED, ofproto.OFPBFC_MSG_FAILED) == [
        ApplyFailed(1, f"OFPET_FLOW_MOD_FAILED(5), OFPFMFC_TABLE_FULL(1): {FLOW.text}")
    ]


def test_refusal_stops_the_rest_of_a_long_bundle() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.apply(1, FlowChanges(add=[FLOW] * 100_000, delete=[]))
    sent = bytes(switch.conversation.outgoing())
    switch.conversation.sent(len(sent))
    xid_of_open = flows.HEADER.unpack_from(sent)[3]

    switch.refuse(Heard(ofproto.OFPT_BUNDLE_ADD_MESSAGE, xid_of_open + 1, b""), 4, 9)

    assert summary(switch.hear()) == ["discard"]
    assert switch.conversation.flow_mods_sent < 2000


def test_long_bundle_is_encoded_only_as_fast_as_it_is_sent() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.apply(1, FlowChanges(add=[FLOW] * 20_000, delete=[]))

    assert len(switch.conversation.outgoing()) < 200_000
    assert len(switch.conversation.outgoing()) < 200_000


def test_frame_overtakes_a_bundle() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.apply(1, FlowChanges(add=[FLOW] * 20_000, delete=[]))
    switch.conversation.sent(len(switch.conversation.outgoing()))
    switch.conversation.packet_out([Output(3)], b"frame")

    assert switch.hear()[0].summary == "OFPT_PACKET_OUT"


def test_frames_are_dropped_when_the_switch_takes_none() -> None:
    switch = FakeSwitch().connect()

    for _ in range(2000):
        switch.conversation.packet_out([Output(3)], bytes(1500))

    assert len(switch.conversation.outgoing()) < 1_100_000
    assert switch.conversation.frames_dropped > 1000


def test_requests_wait_for_those_before() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.ensure_meters({1: 100})
    switch.conversation.apply(1, FlowChanges(add=[FLOW], delete=[]))

    (request,) = switch.hear()
    assert switch.tell_no_meters(request) == []
    write, barrier = switch.hear()
    written = write.os_ken
    assert (written.command, written.meter_id) == (ofproto.OFPMC_ADD, 1)
    assert switch.say(parser.OFPBarrierReply(DATAPATH), barrier.xid) == [MetersEnsured(1)]
    assert switch.hear()[0].summary == "open"


def test_refused_meter_is_reported() -> None:
    switch = FakeSwitch().connect()
    switch.conversation.ensure_meters({1: 100})
    (request,) = switch.hear()
    switch.tell_no_meters(request)
    write, barrier = switch.hear()

    switch.refuse(write, ofproto.OFPET_METER_MOD_FAILED, ofproto.OFPMMFC_OUT_OF_METERS)

    assert switch.say(parser.OFPBarrierReply(DATAPATH), barrier.xid) == [
        MetersFailed("OFPET_METER_MOD_FAILED(12), OFPMMFC_OUT_OF_METERS(10)")
    ]


def test_echo_is_answered_with_what_it_brought() -> None:
    switch = FakeSwitch().connect()
    switch.say(parser.OFPEchoRequest(DATAPATH, b"still there?"), 99)

    (reply,) = switch.hear()

    assert (reply.xid, reply.os_ken.data) == (99, b"still there?")


def packet_in(**tunnel: Any) -> bytes:
    # os-ken reads these, but does not write them.
    match = bytearray()
    parser.OFPMatch(in_port=3, metadata=7, reg14=2, **tunnel).serialize(match, 0)
    rest = bytes(match) + bytes(2) + b"frame"
    head = struct.pack("!IHBBQ", 0xFFFFFFFF, 5, ofproto.OFPR_APPLY_ACTION, 42, 0x0411)
    length = flows.HEADER.size + len(head) + len(rest)
    return flows.HEADER.pack(6, ofproto.OFPT_PACKET_IN, length, 0) + head + rest


PACKET_IN = packet_in()
PUNTED = PacketIn(
    cookie=0x0411,
    table=42,
    in_port=3,
    metadata=7,
    tunnel_id=None,
    tunnel_source=None,
    frame=b"frame",
)


def test_punted_frame_comes_with_its_metadata() -> None:
    assert FakeSwitch().connect().conversation.receive(PACKET_IN) == [PUNTED]


def test_frame_punted_out_of_a_tunnel_tells_which() -> None:
    message = packet_in(tunnel_id=77, tun_ipv4_src="192.0.2.7")

    (event,) = FakeSwitch().connect().conversation.receive(message)

    assert event == replace(PUNTED, tunnel_id=77, tunnel_source="192.0.2.7")


@given(st.lists(st.integers(1, 400), max_size=20))
def test_how_bytes_are_cut_does_not_matter(cuts: list[int]) -> None:
    stream = encoded(parser.OFPHello(DATAPATH), 0) + PACKET_IN * 3
    conversation = Conversation()
    events: list[Event] = []
    for cut in [*cuts, len(stream)]:
        events += conversation.receive(stream[:cut])
        stream = stream[cut:]

    assert events == [Connected(), PUNTED, PUNTED, PUNTED]


@pytest.mark.parametrize(
    "garbage",
    [
        pytest.param(b"\x06\x05\x00\x04\0\0\0\0", id="a length less than the header's"),
        pytest.param(b"\x06\x0a\x00\x0a\0\0\0\0\0\0", id="a packet-in cut short"),
    ],
)
def test_garbage_ends_the_conversation(garbage: bytes) -> None:
    switch = FakeSwitch().connect()

    with pytest.raises(ProtocolError):
        switch.conversation.receive(garbage)


def test_message_ids_begin_again_when_they_run_out() -> None:
    switch = FakeSwitch().connect()
    switch.conversation._next_xid = 0xFFFFFFFF - 1
    switch.conversation.apply(1, FlowChanges(add=[FLOW] * 5, delete=[]))

    assert switch.hear()[0].xid == 1
