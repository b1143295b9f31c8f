"""Figures as a table for people and as JSON for whoever compares runs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

DIRECTORY = Path("build/bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One metric, ours and the peer's, in the unit that its name tells; `goal` bounds the ratio.

    The spreads are the smallest and the largest of the runs: of the ratio, of ours, of the peer's.
    """

    metric: str
    ours: float
    peer: float
    runs: int
    goal: float | None = None
    spread: tuple[float, float] | None = None
    ours_spread: tuple[float, float] | None = None
    peer_spread: tuple[float, float] | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.peer


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def publish(name: str, figures: Sequence[Figure]) -> None:
    """Print the figures, and write them to build/bench/NAME.json."""
    print(f"{'metric':34} {'ours':>10} {'peer':>10} {'ratio':>7} {'goal':>6}  runs")
    for figure in figures:
        goal = "" if figure.goal is None else f"{figure.goal:.2f}"
        verdict = (
            "" if figure.goal is None else ("met" if figure.ratio <= figure.goal else "MISSED")
        )
        print(
            f"{figure.metric:34} {figure.ours:10.2f} {figure.peer:10.2f} {figure.ratio:7.2f} "
            f"{goal:>6}  {figure.runs} {verdict}{_range(figure)}"
        )
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    found = [{**asdict(figure), "ratio": round(figure.ratio, 3)} for figure in figures]
    (DIRECTORY / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def _range(figure: Figure) -> str:
    if figure.spread is None:
        return ""
    return f"ratio {figure.spread[0]:.2f} to {figure.spread[1]:.2f}"
