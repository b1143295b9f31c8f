"""What a demonstration checked, printed as it happens and once more as a table."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from tenancy.errors import VerificationFailed


@dataclass(slots=True)
class Step:
    """One step of a story: what was done, and what was found true of it."""

    title: str
    checks: list[str] = field(default_factory=list)
    failure: str | None = None
    seconds: float = 0.0

    def check(self, claim: str, found: object, expected: object = True) -> None:
        """Hold what was found against what must be; the first difference ends the story."""
        if found != expected:
            raise VerificationFailed(f"{claim}: expected {expected!r}, found {found!r}")
        self.checks.append(claim)


class Report:
    """The steps so far."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps: list[Step] = []

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """One step; what it checked is printed at its end. An error ends it, and the story."""
        step = Step(title)
        self._steps.append(step)
        begun = time.monotonic()
        try:
            yield step
        except BaseException as error:
            step.failure = str(error) or type(error).__name__
            raise
        finally:
            step.seconds = time.monotonic() - begun
            mark = "[red]FAILED[/red]" if step.failure else "[green]ok[/green]"
            self._console.print(f"{step.seconds:5.1f} s  {mark}  {title}", highlight=False)

    def print_table(self) -> None:
        """Every step with what was checked."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in ("STEP", "CHECKED", ""):
            table.add_column(column, overflow="fold")
        for step in self._steps:
            checked = "\n".join(step.checks + ([step.failure] if step.failure else []))
            table.add_row(step.title, checked, "[red]FAILED[/red]" if step.failure else "ok")
            table.add_section()
        self._console.print(table)
