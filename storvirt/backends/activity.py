"""What this process is waiting for, and when it last got on: for the watchdog that ends it.

librados and librbd can't be interrupted from Python, so whoever waits for them can't also watch
the clock. A thread beside it does (`storvirt.cli.deadline`), and all that it knows is here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_waiting_for: list[str] = []
_progressed_at = time.monotonic()


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say that something may take long: an object's name, or a command's."""
    _waiting_for.append(what)
    try:
        yield
    finally:
        _waiting_for.remove(what)


def current() -> str | None:
    """What was begun last and has not ended."""
    return _waiting_for[-1] if _waiting_for else None


def progressed() -> None:
    """Say that long work has got on, so that its deadline begins anew.

    Only for progress that ends some day: bytes copied, images made; never for a round of waiting.
    """
    global _progressed_at
    _progressed_at = time.monotonic()


def idle_s() -> float:
    """Seconds since there was progress."""
    return time.monotonic() - _progressed_at


def noted(_done: int, _total: int) -> int:
    """`progressed` as librbd calls it; 0 tells it to go on."""
    progressed()
    return 0
