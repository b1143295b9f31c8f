"""Keeping the switch's flows equal to the topology's: which bundle to send when.

The installed side is known by cookies alone, since a cookie is a digest of its flow. A new
connection means that nothing is known: all cookies are read and compared once; from then on only
differences are.
"""

import time
from collections.abc import Collection
from enum import Enum

import ovs.poller
import structlog

from netvirt.agent.topology import Topology
from netvirt.backends.openflow import Switch
from netvirt.backends.openflow_events import (
    Applied,
    ApplyFailed,
    Connected,
    Disconnected,
    Event,
    FlowsListed,
    MetersEnsured,
    MetersFailed,
)
from netvirt.backends.revalidation import Revalidation
from netvirt.diff import difference
from netvirt.pipeline.flow import Flow, FlowChanges
from netvirt.pipeline.tables import METERS

log = structlog.get_logger()

# How long to wait before a switch that refused a bundle is read and tried again.
REFUSED_PAUSE_S = 1.0
# How long the datapath is waited for. With very many connections a pass takes longer.
REVALIDATION_S = 0.05


class Stage(Enum):
    """How much is known of the switch."""

    UNKNOWN = 1
    LISTED = 2
    FOLLOWING = 3


class Programmer:
    """Brings `topology.wanted` into the switch, one atomic bundle at a time."""

    def __init__(self, switch: Switch, topology: Topology, revalidation: Revalidation) -> None:
        self._switch = switch
        self._revalidation = revalidation
        self._topology = topology
        self._stage = Stage.UNKNOWN
        self._installed: set[int] = set()
        # What has changed in the topology and is not in a bundle yet: cookie to flow, or to None.
        self._pending: dict[int, Flow | None] = {}
        # The bundle under way, and until when the datapath is waited for once it is applied.
        self._in_flight: tuple[int, FlowChanges] | None = None
        self._settles_by: float | None = None
        self._not_before = 0.0
        # How often the switch was asked what it really has, and what it lacked the last time.
        self.audits = 0
        self.missing: frozenset[int] = frozenset()

    def audit(self) -> None:
        """Read all flows again: `audits` rises when `missing` is known, and is put back."""
        self._switch.request_flows()

    @property
    def idle(self) -> bool:
        """Whether the switch has everything that the topology wants."""
        nothing_to_do = not self._pending and self._in_flight is None and self._topology.clean
        return self._stage is Stage.FOLLOWING and nothing_to_do

    def has(self, cookies: Collection[int]) -> bool:
        """Whether the switch has these flows, as far as is known."""
        return self._stage is Stage.FOLLOWING and self._installed.issuperset(cookies)

    def receive(self, event: Event) -> None:
        match event:
            case Connected():
                # Meters first: a flow that names a meter that is not there is refused.
                self._forget()
                self._switch.ensure_meters(METERS)
            case Disconnected(reason):
                log.warning("switch lost", reason=reason)
                self._forget()
            case MetersEnsured():
                self._switch.request_flows()
            case MetersFailed(reason):
                log.error("meters refused", reason=reason)
                self._switch.request_flows()
            case FlowsListed(flows):
                listed = {flow.cookie for flow in flows}
                self.missing = frozenset(self._installed - listed)
                self.audits += 1
                self._installed = listed
                self._stage = Stage.LISTED
            case Applied(bundle) if self._in_flight and self._in_flight[0] == bundle:
                self._settles_by = time.monotonic() + REVALIDATION_S
                if self._revalidation.done:
                    # That was the end of a pass that began before the change.
                    self._revalidation.expect()
            case ApplyFailed(bundle, reason) if self._in_flight and self._in_flight[0] == bundle:
                log.error("bundle refused", reason=reason)
                self._not_before = time.monotonic() + REFUSED_PAUSE_S
                self._forget()
                self._switch.request_flows()
            case _:
                pass

    def settle(self) -> None:
        """A bundle is done with when the datapath goes by it, too, or takes too long to."""
        self._revalidation.run()
        if self._in_flight is None or self._settles_by is None:
            return
        if not self._revalidation.done and time.monotonic() < self._settles_by:
            return
        changes = self._in_flight[1]
        self._installed |= {flow.cookie for flow in changes.add}
        self._installed -= set(changes.delete)
        self._in_flight = self._settles_by = None

    def step(self, *, hold: bool) -> None:
        """Send what differs, unless told to hold or a bundle is still under way."""
        if hold:
            return
        changes = self._topology.changes()
        self._pending |= {flow.cookie: flow for flow in changes.add}
        self._pending |= dict.fromkeys(changes.delete)
        if self._stage is Stage.UNKNOWN or self._in_flight is not None:
            return
        if time.monotonic() < self._not_before:
            return
        if self._stage is Stage.LISTED:
            bundle = difference(self._topology.wanted, self._installed)
            self._stage = Stage.FOLLOWING
        else:
            wanted = {cookie: flow for cookie, flow in self._pending.items() if flow is not None}
            # The operator `&` would go through all that is installed.
            concerned = {cookie for cookie in self._pending if cookie in self._installed}
            bundle = difference(wanted, concerned)
        self._pending.clear()
        if bundle:
            self._revalidation.expect()
            self._in_flight = (self._switch.apply(bundle), bundle)
            log.debug("bundle sent", add=len(bundle.add), delete=len(bundle.delete))

    def wait(self, poller: ovs.poller.Poller) -> None:
        """Wake the poller up when `settle` has something to do."""
        self._revalidation.wait(poller)
        if self._settles_by is not None:
            left_s = self._settles_by - time.monotonic()
            poller.timer_wait(max(0, int(left_s * 1000) + 1))

    def _forget(self) -> None:
        self._stage = Stage.UNKNOWN
        self._installed = set()
        self._in_flight = self._settles_by = None
