"""`make bench BENCH=control_plane`: one port more, and very many, beside OVN.

Either side has two real hosts and simulated ones in one network or logical switch. At each size a
port is added, bound to a simulated host and removed, each time waiting for both real hosts, the
sides in turn. In between, ports come in steps of a thousand: written, bound, and in both switches.

`CONTROL_PLANE_SIZES` (default `10,1000,5000`) and `CONTROL_PLANE_ROUNDS` (default 20) change what
is done; the targets hold for the defaults.
"""

import os
import time
from collections.abc import Callable
from functools import partial

from benchmarks import control_plane_ours, control_plane_ovn
from benchmarks.control_plane_side import Side
from benchmarks.report import Figure, percentile, publish

SIZES = [int(size) for size in os.environ.get("CONTROL_PLANE_SIZES", "10,1000,5000").split(",")]
ROUNDS = int(os.environ.get("CONTROL_PLANE_ROUNDS", "20"))
WARM_UP = 2
STEP = 1000
VERBS = ("add", "bind", "remove")
SIDES = ("ours", "peer")

Times = dict[tuple[str, str, int], list[float]]


def main() -> None:
    control_plane_ovn.unpack()
    with control_plane_ours.up() as our_lab, control_plane_ovn.up() as ovn_lab:
        sides: dict[str, Side] = {
            "ours": control_plane_ours.Ours(our_lab),
            "peer": control_plane_ovn.Ovn(ovn_lab),
        }
        times: Times = {}
        loads: dict[str, list[tuple[int, float, float]]] = {side: [] for side in SIDES}
        memory: dict[str, dict[int, float]] = {side: {} for side in SIDES}
        there = 0
        for size in SIZES:
            while there < size:
                number = min(STEP - there % STEP, size - there)
                for name, side in sides.items():
                    loads[name].append((number, *side.grow(there, number)))
                there += number
            for name, side in sides.items():
                memory[name][size] = side.resident_kib()
            one_by_one(sides, size, times)
            print(f"{size} ports: done", flush=True)
    publish(
        "control_plane", [*single_figures(times), *load_figures(loads), *memory_figures(memory)]
    )


def one_by_one(sides: dict[str, Side], size: int, times: Times) -> None:
    """Add, bind and remove a port, the sides in turn."""
    for number in range(WARM_UP + ROUNDS):
        name = f"one-{size}-{number}"
        for verb in VERBS:
            for label, side in sides.items():
                seconds = timed(partial(getattr(side, verb), name))
                if number >= WARM_UP:
                    times.setdefault((verb, label, size), []).append(seconds * 1000)


def timed(act: Callable[[], None]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def single_figures(times: Times) -> list[Figure]:
    figures = []
    for verb in VERBS:
        for size in SIZES:
            pairs = times[verb, "ours", size], times[verb, "peer", size]
            figures.append(figure(f"{verb} a port, {size} there, ms", *pairs))
    first, last = SIZES[0], SIZES[-1]
    for label, name in (("ours", "ours"), ("peer", "OVN")):
        for verb in VERBS:
            figures.append(
                Figure(
                    metric=f"{name}: {verb}, {last} there / {first}",
                    ours=percentile(times[verb, label, last], 50),
                    peer=percentile(times[verb, label, first], 50),
                    runs=ROUNDS,
                    goal=1.5 if (label, verb) == ("ours", "add") else None,
                )
            )
    figures.append(
        Figure(
            metric=f"ours: add, {last} there, p50 / 10 ms",
            ours=percentile(times["add", "ours", last], 50),
            peer=10.0,
            runs=ROUNDS,
            goal=1.0,
        )
    )
    return figures


def load_figures(loads: dict[str, list[tuple[int, float, float]]]) -> list[Figure]:
    """Steps of a thousand, and all together."""
    figures = []
    for what, column in (("written and bound", 1), ("in both switches", 2)):
        steps = {
            side: [step[column] for step in taken if step[0] > STEP // 2]
            for side, taken in loads.items()
        }
        if steps["ours"]:
            figures.append(figure(f"~{STEP} ports more {what}, s", steps["ours"], steps["peer"]))
        ours, peer = (sum(step[column] for step in loads[side]) for side in SIDES)
        metric = f"{SIZES[-1]} ports {what}, s"
        figures.append(Figure(metric=metric, ours=ours, peer=peer, runs=1))
    whole = sum(step[2] for step in loads["ours"])
    figures.append(
        Figure(
            metric=f"ours: {SIZES[-1]} ports, all done / 10 s",
            ours=whole,
            peer=10.0,
            runs=1,
            goal=1.0,
        )
    )
    return figures


def memory_figures(memory: dict[str, dict[int, float]]) -> list[Figure]:
    first, last = SIZES[0], SIZES[-1]
    if first == last:
        return []
    ours, peer = ((memory[side][last] - memory[side][first]) / (last - first) for side in SIDES)
    return [
        Figure(metric="agent, KiB a remote port", ours=ours, peer=peer, runs=1),
        Figure(metric="ours: KiB a remote port / 15", ours=ours, peer=15.0, runs=1, goal=1.0),
        Figure(
            metric=f"agent with {last} ports, MiB",
            ours=memory["ours"][last] / 1024,
            peer=memory["peer"][last] / 1024,
            runs=1,
        ),
        Figure(
            metric="ours: MiB / 200",
            ours=memory["ours"][last] / 1024,
            peer=200.0,
            runs=1,
            goal=1.0,
        ),
    ]


def figure(metric: str, ours: list[float], peer: list[float]) -> Figure:
    """The medians, and how the ratio of single runs spreads."""
    ratios = sorted(one / other for one, other in zip(ours, peer, strict=True))
    return Figure(
        metric=metric,
        ours=percentile(ours, 50),
        peer=percentile(peer, 50),
        runs=len(ours),
        spread=(ratios[0], ratios[-1]),
        ours_spread=(min(ours), max(ours)),
        peer_spread=(min(peer), max(peer)),
    )


if __name__ == "__main__":
    main()
