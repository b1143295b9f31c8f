"""A switch of flows as data: a packet goes in, and where it comes out is told.

A packet is what a switch makes of one: values of fields. It lacks those that it does not have, so
that no condition on them holds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from netvirt.pipeline import fields as f
from netvirt.pipeline import tables as t
from netvirt.pipeline.fields import Field
from netvirt.pipeline.flow import (
    IN_PORT_RESERVED,
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

Packet = Mapping[Field, int]


@dataclass
class Outcome:
    """What became of a packet: the ports it left by and as what, and why it was dropped."""

    outputs: list[tuple[int, Packet]] = field(default_factory=list)
    punted: bool = False
    tables: list[int] = field(default_factory=list)
    dropped: t.Reason | None = None


def send(flows: Iterable[Flow], packet: Packet) -> Outcome:
    """Put a packet into the switch."""
    by_table: dict[int, list[Flow]] = {}
    for flow in flows:
        by_table.setdefault(flow.table, []).append(flow)
    outcome = Outcome()
    state = {f.METADATA: 0, f.FLAGS: 0, f.REASON: 0, f.OUTPUT: 0, f.TUN_ID: 0, f.TUN_DST: 0}
    state.update(packet)
    table: int | None = t.CLASSIFY.id
    while table is not None:
        outcome.tables.append(table)
        table = _pass(by_table.get(table, []), state, outcome)
    if t.DROP.id in outcome.tables:
        outcome.dropped = t.Reason(state[f.REASON])
    return outcome


def _pass(flows: list[Flow], state: dict[Field, int], outcome: Outcome) -> int | None:
    """Let the best flow of a table act; the table to go on in."""
    matching = [flow for flow in flows if all(_holds(c, state) for c in flow.match)]
    if not matching:
        return None
    best = max(flow.priority for flow in matching)
    (flow, *rivals) = [flow for flow in matching if flow.priority == best]
    # Which of two flows of one priority wins is the switch's secret: they must say the same.
    assert all(rival.actions == flow.actions for rival in rivals), (flow, rivals)
    for action in flow.actions:
        match action:
            case SetField(target, value):
                state[target] = value
            case Copy(source, target):
                state[target] = state[source]
            case Output(port):
                leaves_by = state[f.IN_PORT] if port == IN_PORT_RESERVED else port
                outcome.outputs.append((leaves_by, dict(state)))
            case OutputTo(register):
                outcome.outputs.append((state[register], dict(state)))
            case Punt():
                outcome.punted = True
            case Meter():
                pass
            case Goto(table):
                return table
    return None


def _holds(condition: Condition, state: Packet) -> bool:
    value = state.get(condition.field)
    if value is None:
        return False
    mask = condition.field.all_ones if condition.mask is None else condition.mask
    return value & mask == condition.value & mask
