"""What a switch counted, in the pipeline's words. Pure."""

from collections.abc import Iterable

from netvirt import compile as compiler
from netvirt.observed import InstalledFlow
from netvirt.pipeline.tables import DROP, Reason


def drops_by_reason(flows: Iterable[InstalledFlow]) -> dict[Reason, int]:
    """Packets dropped for each reason since the flow that counts them was installed."""
    packets = {flow.cookie: flow.packets for flow in flows if flow.table == DROP.id}
    return {
        reason: packets.get(flow.cookie, 0) for reason, flow in compiler.drop_counters().items()
    }
