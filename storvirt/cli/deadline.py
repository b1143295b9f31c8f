"""The deadline that every command of `svctl` has: none waits without end, whatever hangs.

librados and librbd bound most waits by settings, but not all (closing an image whose OSD is
stopped, for one), they can't be interrupted, and the timeouts given to their calls are ignored.
So a thread watches the clock and ends the process. That is no worse than being killed, and every
command can be killed anywhere and run again.

Work that reports progress (`activity.progressed`) has the time anew with each report: a deadline
for a whole import would have to be that of the largest disk.
"""

import math
import os
import sys
from threading import Event, Thread
from typing import NoReturn

from storvirt.backends import activity
from tenancy.errors import InvalidRequest

DEFAULT_S = 120.0
# So that the error of the library, which knows more, comes first where it comes at all.
LIBRARIES_SHARE = 0.8
LONGEST_S = 7 * 24 * 3600.0


def checked(timeout_s: float) -> float:
    """`timeout_s` if it can be a deadline. Raises InvalidRequest."""
    if not (math.isfinite(timeout_s) and 1 <= timeout_s <= LONGEST_S):
        raise InvalidRequest(
            f"timeout {timeout_s:g} s is not between 1 and {LONGEST_S:.0f}. Choose one that is."
        )
    return timeout_s


def bounded(limit_s: int, timeout_s: float) -> int:
    """The bound of a library's own wait, whole seconds, below the deadline."""
    return max(1, min(limit_s, int(timeout_s * LIBRARIES_SHARE)))


def watch(timeout_s: float) -> None:
    """From now on, end this process when nothing has got on for so long."""
    activity.progressed()
    Thread(target=_watch, args=(timeout_s,), name="deadline", daemon=True).start()


def lift() -> None:
    """No deadline any more: for a command that serves until it is told to end."""
    _lifted.set()


def allow(seconds: float) -> None:
    """Add what the user has asked to be waited for."""
    global _allowed_s
    _allowed_s = seconds


_lifted = Event()
_allowed_s = 0.0


def sentence(timeout_s: float, waiting_for: str | None) -> str:
    """What is said when the deadline has passed."""
    doing = f" while it waited for {waiting_for}" if waiting_for else ""
    return (
        f"nothing got on for {timeout_s:g} s{doing}: Ceph or the fabric database does not answer. "
        "See `ceph -s`; what was begun is finished by the same command, later or with a longer "
        "`svctl --timeout`."
    )


def _watch(timeout_s: float) -> None:
    while (left := timeout_s + _allowed_s - activity.idle_s()) > 0:
        if _lifted.wait(left):
            return
    _end(sentence(timeout_s, activity.current()))


def _end(text: str) -> NoReturn:
    # Not through print: another thread may be stuck with the stream's lock held.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())
    os._exit(1)
