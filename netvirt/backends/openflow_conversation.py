"""One OpenFlow connection without its socket: bytes in, events out; requests in, bytes out.

Requests are served in the order they were made, one at a time, so that flows which use a meter
follow the meter. Frames to send overtake them.
"""

import struct
from collections import deque
from collections.abc import Mapping, Sequence

from os_ken.ofproto import ofproto_v1_5 as ofproto

from netvirt.backends import openflow_flows as flows
from netvirt.backends import openflow_messages as messages
from netvirt.backends.openflow_events import Connected, Event
from netvirt.backends.openflow_operations import (
    ApplyChanges,
    EnsureMeters,
    ListFlows,
    Operation,
)
from netvirt.pipeline.flow import Action, FlowChanges

# How much of a bundle is encoded ahead of the socket, and from when on frames are dropped.
_AHEAD_BYTES = 128 * 1024
_FULL_BYTES = 1024 * 1024
_LAST_XID = 0xFFFF_FFFF


class ProtocolError(Exception):
    """The switch says something that is not OpenFlow 1.5; the connection is of no more use."""


class Conversation:
    """What has been said and is still to be said on one connection."""

    def __init__(self) -> None:
        self.connected = False
        self.flow_mods_sent = 0
        self.frames_dropped = 0
        # Rises as long as what was asked gets on: with each piece sent and each answer.
        self.progress = 0
        self._next_xid = 1
        self._received = bytearray()
        self._sending = bytearray(messages.hello(self._take_xids(1)))
        self._waiting: deque[Operation] = deque()
        self._current: Operation | None = None
        self._current_xids = range(0)

    # Requests

    def request_flows(self) -> None:
        self._waiting.append(ListFlows())

    def apply(self, id_: int, changes: FlowChanges) -> None:
        self._waiting.append(ApplyChanges(id_, changes))

    def ensure_meters(self, rates: Mapping[int, int]) -> None:
        self._waiting.append(EnsureMeters(rates))

    def packet_out(self, actions: Sequence[Action], frame: bytes) -> None:
        if not self.connected or len(self._sending) > _FULL_BYTES:
            self.frames_dropped += 1
            return
        self._sending += flows.packet_out(self._take_xids(1), actions, frame)

    def probe(self) -> None:
        """Have the switch say something."""
        self._sending += messages.echo_request(self._take_xids(1))

    # Bytes

    @property
    def awaits_answer(self) -> bool:
        return self._current is not None or not self.connected

    def outgoing(self) -> bytearray:
        """What to send next, as much as is worth encoding now; empty if there is nothing."""
        while self.connected and len(self._sending) < _AHEAD_BYTES:
            operation = self._current or self._begin()
            if operation is None:
                break
            before = operation.flow_mods
            piece = operation.output()
            self.flow_mods_sent += operation.flow_mods - before
            if not piece:
                break
            self._sending += piece
            self.progress += 1
        return self._sending

    def sent(self, count: int) -> None:
        """The first `count` bytes of `outgoing` are on their way."""
        del self._sending[:count]

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes as they come; raises `ProtocolError`."""
        self._received += data
        events: list[Event] = []
        at = 0
        try:
            while len(self._received) - at >= messages.HEADER.size:
                version, kind, length, xid = messages.HEADER.unpack_from(self._received, at)
                if length < messages.HEADER.size:
                    raise ProtocolError(f"a message of {length} bytes")
                if len(self._received) - at < length:
                    break
                message = bytes(self._received[at : at + length])
                at += length
                event = self._take(version, kind, xid, message)
                if event is not None:
                    events.append(event)
        except struct.error as error:
            raise ProtocolError(f"a malformed message ({error})") from error
        del self._received[:at]
        return events

    def _take(self, version: int, kind: int, xid: int, message: bytes) -> Event | None:
        if kind == ofproto.OFPT_HELLO and not self.connected:
            if version < messages.VERSION:
                raise ProtocolError(
                    f"OpenFlow version {version} at most, where virtkit needs {messages.VERSION} "
                    "(OpenFlow 1.5). Clear the bridge's `protocols`: "
                    "`ovs-vsctl clear bridge br-int protocols`"
                )
            self.connected = True
            self._sending += messages.set_config(self._take_xids(1))
            return Connected()
        if kind == ofproto.OFPT_ECHO_REQUEST:
            self._sending += messages.echo_reply(xid, message[messages.HEADER.size :])
        elif kind == ofproto.OFPT_PACKET_IN:
            return messages.parse_packet_in(message)
        elif kind == ofproto.OFPT_ERROR and not self.connected:
            raise ProtocolError(messages.error_text(message))
        elif self._current is not None and xid in self._current_xids:
            self.progress += 1
            event = self._current.input(kind, xid, message)
            if event is not None:
                self._current = None
            return event
        # What remains is news that nobody asked for (ports, echo replies), or the refusal of a
        # frame for a port that has just gone.
        return None

    def _begin(self) -> Operation | None:
        if not self._waiting:
            return None
        self._current = self._waiting.popleft()
        first = self._take_xids(self._current.xids)
        self._current_xids = range(first, first + self._current.xids)
        self._current.start(first)
        return self._current

    def _take_xids(self, count: int) -> int:
        if self._next_xid + count > _LAST_XID:
            self._next_xid = 1
        first = self._next_xid
        self._next_xid += count
        return first
