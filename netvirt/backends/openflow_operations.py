"""What is asked of a switch, each as a small state machine over messages.

An operation gives the messages to send, piece by piece, and takes those that answer them; it
ends with an event. It never touches a socket, so a bundle of any size is only as large in memory
as the piece that is being sent.
"""

import struct
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Protocol

from os_ken.ofproto import ofproto_v1_5 as ofproto

from netvirt.backends import openflow_flows as flows
from netvirt.backends import openflow_messages as messages
from netvirt.backends.openflow_events import (
    Applied,
    ApplyFailed,
    Event,
    FlowsListed,
    MetersEnsured,
    MetersFailed,
)
from netvirt.observed import InstalledFlow
from netvirt.pipeline.flow import FlowChanges

# Flow mods that are encoded at once: small enough that an error stops the rest early.
_PIECE = 64


class Operation(Protocol):
    """One thing asked of the switch. Its messages' ids are `xid` and the `xids - 1` next."""

    xids: int
    flow_mods: int

    def start(self, xid: int) -> None: ...

    def output(self) -> bytes:
        """The next piece to send; empty while an answer is awaited."""

    def input(self, kind: int, xid: int, message: bytes, /) -> Event | None:
        """Take an answer; the event if it was the last."""


class ListFlows:
    """All flows of the bridge."""

    xids = 1
    flow_mods = 0

    def start(self, xid: int) -> None:
        self._request = flows.flows_request(xid)
        self._flows: list[InstalledFlow] = []

    def output(self) -> bytes:
        request, self._request = self._request, b""
        return request

    def input(self, kind: int, _xid: int, message: bytes) -> Event | None:
        if kind == ofproto.OFPT_MULTIPART_REPLY:
            self._flows.extend(flows.parse_flows(message))
            if messages.is_last_part(message):
                return FlowsListed(tuple(self._flows))
        elif kind == ofproto.OFPT_ERROR:
            # A request that is always valid: only a switch that is not one refuses it.
            raise struct.error(f"the switch lists no flows: {messages.error_text(message)}")
        return None


class EnsureMeters:
    """Meters read, and those that differ written; a barrier tells when the switch is done."""

    flow_mods = 0

    def __init__(self, rates: Mapping[int, int]) -> None:
        self._rates = dict(rates)
        self.xids = len(rates) + 2

    def start(self, xid: int) -> None:
        self._xid = xid
        self._pending = messages.meters_request(xid)
        self._found: dict[int, int | None] = {}
        self._changed = 0
        self._failure: str | None = None

    def output(self) -> bytes:
        pending, self._pending = self._pending, b""
        return pending

    def input(self, kind: int, xid: int, message: bytes) -> Event | None:
        if kind == ofproto.OFPT_ERROR:
            self._failure = self._failure or messages.error_text(message)
            return MetersFailed(self._failure) if xid == self._xid else None
        if kind == ofproto.OFPT_MULTIPART_REPLY:
            self._found.update(messages.parse_meters(message))
            if messages.is_last_part(message):
                return self._write()
        elif kind == ofproto.OFPT_BARRIER_REPLY:
            if self._failure:
                return MetersFailed(self._failure)
            return MetersEnsured(self._changed)
        return None

    def _write(self) -> Event | None:
        wanted = [(id_, rate) for id_, rate in self._rates.items() if self._found.get(id_) != rate]
        self._changed = len(wanted)
        if not wanted:
            return MetersEnsured(0)
        self._pending = b"".join(
            messages.meter_mod(self._xid + 1 + at, id_, rate, exists=id_ in self._found)
            for at, (id_, rate) in enumerate(wanted)
        ) + messages.barrier_request(self._xid + self.xids - 1)
        return None


class ApplyChanges:
    """Flow changes as one atomic, ordered bundle: deletions by cookie, then additions.

    The switch checks each message when it arrives and all together at commit, and may refuse
    either. It answers in order: once it has acknowledged that the bundle is closed, every
    message before has been found good. One that was not makes us discard the bundle instead
    of committing it, for the switch would commit the rest.
    """

    def __init__(self, id_: int, changes: FlowChanges) -> None:
        self._id = id_
        self._changes = changes
        self._failure: str | None = None
        # Opening, closing, and committing or discarding have an id each, too.
        self.xids = len(changes.delete) + len(changes.add) + 3
        self.flow_mods = 0

    def start(self, xid: int) -> None:
        self._first_xid = xid + 1
        self._close_xid = xid + self.xids - 2
        self._final_xid = xid + self.xids - 1
        self._flow_mods = self._encode()
        self._controls = deque([self._control(xid, ofproto.OFPBCT_OPEN_REQUEST)])
        self._all_sent = False
        self._final_sent = False

    def output(self) -> bytes:
        if self._controls:
            return self._controls.popleft()
        if self._all_sent:
            return b""
        piece = list(islice(self._flow_mods, _PIECE))
        self.flow_mods += len(piece)
        if piece:
            return b"".join(piece)
        self._all_sent = True
        return self._control(self._close_xid, ofproto.OFPBCT_CLOSE_REQUEST)

    def input(self, kind: int, xid: int, message: bytes) -> Event | None:
        if kind == ofproto.OFPT_ERROR:
            self._failure = self._failure or self._explain(xid, message)
            if xid == self._final_xid:
                return ApplyFailed(self._id, self._failure)
            self._finish(ofproto.OFPBCT_DISCARD_REQUEST)
        elif kind == ofproto.OFPT_BUNDLE_CONTROL:
            answer = messages.bundle_kind(message)
            if answer == ofproto.OFPBCT_CLOSE_REPLY:
                self._finish(ofproto.OFPBCT_COMMIT_REQUEST)
            elif answer == ofproto.OFPBCT_COMMIT_REPLY:
                return Applied(self._id)
            elif answer == ofproto.OFPBCT_DISCARD_REPLY:
                return ApplyFailed(self._id, self._failure or "discarded")
        return None

    def _encode(self) -> Iterator[bytes]:
        xid = self._first_xid
        for cookie in self._changes.delete:
            yield flows.delete_flows(xid, self._id, cookie)
            xid += 1
        for flow in self._changes.add:
            yield flows.add_flow(xid, self._id, flow)
            xid += 1

    def _control(self, xid: int, kind: int) -> bytes:
        return messages.bundle_control(xid, self._id, kind)

    def _finish(self, kind: int) -> None:
        """Commit or discard, whichever is decided first, and send no more flow mods."""
        if not self._final_sent:
            self._final_sent = self._all_sent = True
            self._controls.append(self._control(self._final_xid, kind))

    def _explain(self, xid: int, message: bytes) -> str:
        """The switch's reason, and the flow that it is about."""
        reason = messages.error_text(message)
        index = xid - self._first_xid
        deletions = len(self._changes.delete)
        if 0 <= index < deletions:
            return f"{reason}: deleting cookie {self._changes.delete[index]:#x}"
        if deletions <= index < deletions + len(self._changes.add):
            return f"{reason}: {self._changes.add[index - deletions].text}"
        return reason
