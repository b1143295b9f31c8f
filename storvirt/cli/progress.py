"""Showing how far long work has got: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from storvirt.backends import activity
from storvirt.cli.common import SILENCE_S, say

# Off a terminal, a line for so many percent, or when there was none for some time.
LINES = 10


def no_progress(_done: int, _total: int) -> None:
    """For what is over at once."""


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function that takes how much is done and how much there is: bytes, or objects.

    More done begins the command's deadline anew.
    """
    if not sys.stderr.isatty():
        yield _noted(_plain(what))
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what)
        yield _noted(lambda done, total: bar.update(task, completed=done, total=total))


def _noted(tell: Callable[[int, int], None]) -> Callable[[int, int], None]:
    most = 0

    def tell_and_note(done: int, total: int) -> None:
        nonlocal most
        if done > most:
            most = done
            activity.progressed()
        tell(done, total)

    return tell_and_note


def _plain(what: str) -> Callable[[int, int], None]:
    told, told_at = 0, time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told, told_at
        percent = 100 * done // total
        if percent // LINES > told // LINES or time.monotonic() - told_at > SILENCE_S:
            told, told_at = percent, time.monotonic()
            say(f"{what}: {percent} %")

    return tell
