"""The OpenFlow connection to a bridge of the local switch: the only module with its socket.

ovs-vswitchd listens for controllers on RUN_DIR/BRIDGE.mgmt (ovs-vswitchd(8)). What is said there
is in `openflow_conversation`; here are connecting, reconnecting, reading and writing.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import ovs.poller

from netvirt.backends.openflow_conversation import Conversation, ProtocolError
from netvirt.backends.openflow_events import (
    ApplyFailed,
    Connected,
    Disconnected,
    Event,
    FlowsListed,
)
from netvirt.backends.revalidation import await_pass
from netvirt.observed import InstalledFlow
from netvirt.pipeline.flow import Action, FlowChanges
from tenancy.errors import BackendUnavailable

DEFAULT_RUN_DIR = Path("/run/openvswitch")
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 2.0
# A switch that owes an answer and says nothing for so long is asked whether it is there, and
# given up after as long again.
_SILENCE_S = 10.0
# One that says other things meanwhile is given up, too.
_ANSWER_S = 20.0
# The loop has other things to do: what is left of a long answer or bundle waits for the next
# `run`.
_READS_PER_RUN = 16
_WRITES_PER_RUN = 8
_READ_BYTES = 256 * 1024


class Switch:
    """One bridge. Nothing blocks: call `run` whenever what `wait` registered has happened."""

    def __init__(self, bridge: str, run_dir: Path = DEFAULT_RUN_DIR) -> None:
        self.path = run_dir / f"{bridge}.mgmt"
        self._socket: socket.socket | None = None
        self._conversation = Conversation()
        self._events: list[Event] = []
        self._next_id = 1
        self._backoff_s = _FIRST_BACKOFF_S
        self._retry_at = 0.0
        self._heard_at = 0.0
        self._probed = False
        # How far what is asked had got, and when.
        self._progress = 0
        self._progressed_at = 0.0
        self._reason: str | None = None
        self._flow_mods_sent = 0

    @property
    def connected(self) -> bool:
        """Whether the switch has greeted us."""
        return self._conversation.connected

    @property
    def flow_mods_sent(self) -> int:
        """Additions and deletions sent since this object was made."""
        return self._flow_mods_sent + self._conversation.flow_mods_sent

    # Requests; each holds for the present connection only

    def request_flows(self) -> None:
        """Ask for all flows; answered by `FlowsListed`. Ignored when not connected."""
        if self.connected:
            self._conversation.request_flows()

    def apply(self, changes: FlowChanges) -> int:
        """Send the changes as one bundle; answered by `Applied` or `ApplyFailed` with this id.

        No answer comes after `Disconnected`: whether they were applied is then for
        `request_flows` to find out.
        """
        id_ = self._next_id
        self._next_id += 1
        if self.connected:
            self._conversation.apply(id_, changes)
        else:
            self._events.append(ApplyFailed(id_, f"{self.path} is not connected"))
        return id_

    def ensure_meters(self, rates: Mapping[int, int]) -> None:
        """Have these meters, by id, in packets per second, with a burst of one second.

        Answered by `MetersEnsured` or `MetersFailed`. Other meters are left alone, because
        deleting one takes the flows that use it along. Ignored when not connected.
        """
        if self.connected:
            self._conversation.ensure_meters(rates)

    def packet_out(self, actions: Sequence[Action], frame: bytes) -> None:
        """Do this with a frame; it is dropped when the connection is not there or is choked."""
        self._conversation.packet_out(actions, frame)

    # The loop

    def run(self) -> list[Event]:
        """Connect if need be, send and receive; what the switch has said since."""
        now = time.monotonic()
        if self._socket is None and now >= self._retry_at:
            self._connect(now)
        if self._socket is not None:
            try:
                self._write(self._socket)
                self._read(self._socket, now)
                self._write(self._socket)
                self._check_silence(now)
            except OSError as error:
                self._disconnect(os.strerror(error.errno or 0), now)
            except ProtocolError as error:
                self._disconnect(f"the switch speaks {error}", now)
        events, self._events = self._events, []
        return events

    def wait(self, poller: ovs.poller.Poller) -> None:
        """Wake the poller up when `run` has something to do."""
        if self._events:
            poller.immediate_wake()
        now = time.monotonic()
        if self._socket is None:
            poller.timer_wait(max(0, int((self._retry_at - now) * 1000) + 1))
            return
        wanted = select.POLLIN
        if self._conversation.outgoing():
            wanted |= select.POLLOUT
        poller.fd_wait(self._socket.fileno(), wanted)
        if self._conversation.awaits_answer:
            poller.timer_wait(max(0, int((self._heard_at + _SILENCE_S - now) * 1000) + 1))

    def close(self) -> None:
        """Leave the switch; its flows stay."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, now: float) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(str(self.path))
        except OSError as error:
            connection.close()
            self._disconnect(os.strerror(error.errno or 0), now)
            return
        self._socket = connection
        self._heard_at = self._progressed_at = now
        self._probed = False

    def _disconnect(self, reason: str, now: float) -> None:
        was_connected = self.connected
        self.close()
        self._flow_mods_sent += self._conversation.flow_mods_sent
        self._conversation = Conversation()
        self._retry_at = now + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, _LAST_BACKOFF_S)
        # Failing the same way again is no news.
        if was_connected or reason != self._reason:
            self._events.append(Disconnected(reason))
        self._reason = reason

    def _read(self, connection: socket.socket, now: float) -> None:
        for _ in range(_READS_PER_RUN):
            try:
                data = connection.recv(_READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed")
            self._heard_at, self._probed = now, False
            events = self._conversation.receive(data)
            if any(isinstance(event, Connected) for event in events):
                self._backoff_s, self._reason = _FIRST_BACKOFF_S, None
            self._events += events

    def _write(self, connection: socket.socket) -> None:
        for _ in range(_WRITES_PER_RUN):
            outgoing = self._conversation.outgoing()
            if not outgoing:
                return
            try:
                self._conversation.sent(connection.send(outgoing))
            except BlockingIOError:
                return

    def _check_silence(self, now: float) -> None:
        if not self._conversation.awaits_answer or self._conversation.progress != self._progress:
            self._progress, self._progressed_at = self._conversation.progress, now
        elif now - self._progressed_at >= _ANSWER_S:
            raise TimeoutError(errno.ETIMEDOUT, "stuck")
        if not self._conversation.awaits_answer:
            self._heard_at = now
        elif now - self._heard_at >= _SILENCE_S:
            if self._probed:
                raise TimeoutError(errno.ETIMEDOUT, "silent")
            if self._conversation.connected:
                self._conversation.probe()
            self._heard_at, self._probed = now, True


def dump_flows(
    bridge: str, run_dir: Path = DEFAULT_RUN_DIR, timeout_s: float = 5.0
) -> list[InstalledFlow]:
    """All flows of a bridge with what they have counted up to now, read at once.

    Raises `BackendUnavailable` within the timeout.
    """
    deadline = time.monotonic() + timeout_s
    await_pass(run_dir, timeout_s / 2)
    switch = Switch(bridge, run_dir)
    try:
        while True:
            for event in switch.run():
                match event:
                    case Connected():
                        switch.request_flows()
                    case FlowsListed(flows):
                        return list(flows)
                    case Disconnected(reason):
                        raise _unavailable(bridge, switch.path, reason)
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                raise _unavailable(bridge, switch.path, f"no answer within {timeout_s:g} s")
            poller = ovs.poller.Poller()
            switch.wait(poller)
            poller.timer_wait(left_ms)
            poller.block()
    finally:
        switch.close()


def _unavailable(bridge: str, path: Path, reason: str) -> BackendUnavailable:
    if not (path.parent / "ovs-vswitchd.pid").exists():
        return BackendUnavailable(
            f"bridge {bridge}: Open vSwitch is not running here (no {path.parent}"
            "/ovs-vswitchd.pid). Start it: `systemctl start openvswitch-switch`."
        )
    if not path.exists():
        return BackendUnavailable(
            f"bridge {bridge} does not exist on this host's Open vSwitch. "
            "The agent makes it: `nvctl agent run`."
        )
    return BackendUnavailable(
        f"bridge {bridge}: the switch does not answer at {path} ({reason}). "
        "See the log of ovs-vswitchd."
    )
