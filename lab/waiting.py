"""Bounded waits: a condition is polled until it holds, and a wait that fails says why."""

import time
from collections.abc import Callable

from tenancy.errors import BackendUnavailable

_POLL_S = 0.02


def until(
    holds: Callable[[], bool],
    *,
    what: str,
    timeout_s: float,
    explain: Callable[[], str] = str,
) -> None:
    """Return when `holds()` does; BackendUnavailable, with `explain()`, when time is up.

    `what` completes the sentence "gave up after 5 s: ...".
    """
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            reason = explain()
            raise BackendUnavailable(
                f"gave up after {timeout_s:g} s: {what}" + (f"\n{reason}" if reason else ".")
            )
        time.sleep(_POLL_S)
