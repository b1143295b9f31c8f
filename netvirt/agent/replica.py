"""What this host's switch should hold, worked out beside the agent and without touching anything.

The same rows, the same knowledge and the same compiler as the agent's, so what differs from the
switch is a difference of the switch and not of opinion.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import ovs.poller

from netvirt.agent import interest
from netvirt.agent.knowledge import Knowledge
from netvirt.agent.topology import compile_all
from netvirt.model import Overlay
from netvirt.observed import Interface
from netvirt.pipeline.flow import Flow
from netvirt.rows import AGENT_COLUMNS
from tenancy.backends.watch import FabricWatch
from tenancy.errors import BackendUnavailable

_SETTLE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What follows from the fabric for this host with these interfaces. Flows by cookie."""

    knowledge: Knowledge
    flows: Mapping[int, Flow]


def wanted(
    db: str,
    host_name: str,
    interfaces: Mapping[str, Interface],
    tunnel_names: Mapping[Overlay, str],
    timeout_s: float = _SETTLE_S,
) -> Wanted:
    """The flows for these interfaces. Raises BackendUnavailable if the database is too slow."""
    watch = FabricWatch(db, AGENT_COLUMNS)
    try:
        knowledge = _learn(watch, host_name, interfaces, timeout_s)
    finally:
        watch.close()
    tunnels = {
        overlay: interfaces[name].ofport or 0
        for overlay, name in tunnel_names.items()
        if name in interfaces and interfaces[name].ofport
    }
    placed = [
        (port, location)
        for port_id, port in knowledge.ports.items()
        if (location := knowledge.location(port_id)) is not None
    ]
    networks = list(knowledge.networks.values())
    return Wanted(knowledge=knowledge, flows=compile_all(tunnels, networks, placed))


def _learn(
    watch: FabricWatch, host_name: str, interfaces: Mapping[str, Interface], timeout_s: float
) -> Knowledge:
    watch.set_interest_in_all("Fabric")
    knowledge = Knowledge(host_name)
    knowledge.set_interfaces(interfaces)
    give_up = time.monotonic() + timeout_s
    while True:
        for table, row_id in watch.run():
            knowledge.set_row(table, row_id, watch.row(table, row_id))
        knowledge.refresh()
        for table, clauses in interest.clauses(
            host_name,
            knowledge.interfaces.keys() - knowledge.ports.keys(),
            knowledge.held_networks(),
            knowledge.remote_hosts(),
        ).items():
            watch.set_interest(table, clauses)
        if watch.settled:
            return knowledge
        left_ms = int((give_up - time.monotonic()) * 1000)
        if left_ms <= 0:
            raise BackendUnavailable(
                f"the fabric database did not send host {host_name}'s rows within {timeout_s:g} s. "
                "Run it again when it is less busy."
            )
        poller = ovs.poller.Poller()
        watch.wait(poller)
        poller.timer_wait(min(left_ms, 200))
        poller.block()
