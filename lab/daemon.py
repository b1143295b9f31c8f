"""One daemon of a host: how it is started, when it is ready, and how to find it again.

A daemon is started in the foreground, detached from whoever starts it, and writes its process
number to `/run/virtlab/NAME.pid` in its host before it becomes the program. So any process can
find it later, kill it, and start it again with the same state.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lab import waiting
from lab.linux import Stat
from tenancy.errors import BackendUnavailable

if TYPE_CHECKING:
    from lab.host import Host

_MARK = "VIRTLAB_DAEMON"
_RUN_DIRECTORY = "/run/virtlab"
_TAIL_LINES = 15


def _nothing(host: "Host") -> None:
    """No further step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """How a daemon runs. Paths are those inside the host.

    `before` prepares a start, for instance makes a database file, and must be idempotent.
    `ready` is polled after a start. `after` completes it with what the daemon's end undid.
    `stale` names files of an earlier run that would look like readiness.
    """

    name: str
    argv: tuple[str, ...]
    log: str
    ready: Callable[["Host"], bool]
    before: Callable[["Host"], None] = _nothing
    after: Callable[["Host"], None] = _nothing
    stale: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 60.0


def start(host: "Host", daemon: Daemon) -> None:
    """Have the daemon running and ready; does nothing if it runs.

    BackendUnavailable, with the end of its log, if it ends or is not ready in time.
    """
    if is_running(host, daemon):
        return
    for file in (_pid_file(daemon), *daemon.stale):
        host.path(file).unlink(missing_ok=True)
    daemon.before(host)
    # The shell records its own number, which exec keeps. `setsid --fork` makes the daemon a
    # child of the host's process 1, which reaps it when it ends. Nothing of the environment of
    # whoever starts it reaches it, VIRTKIT_DB for instance.
    environment = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": host.search_path}
    environment |= {**daemon.environment, _MARK: daemon.name}
    script = 'exec >>"$0" 2>&1 </dev/null && echo $$ >"$1" && shift && exec "$@"'
    host.run(
        [
            *("setsid", "--fork", "env", "-i"),
            *(f"{name}={value}" for name, value in environment.items()),
            *("sh", "-c", script, daemon.log, _pid_file(daemon), *daemon.argv),
        ]
    )

    def has_ended() -> bool:
        return not host.process.runs() or (has_started() and not is_running(host, daemon))

    def has_started() -> bool:
        """Whether the number is on record, whole: the file is there before it is written."""
        try:
            return host.path(_pid_file(daemon)).read_text().endswith("\n")
        except FileNotFoundError:
            return False

    waiting.until(
        lambda: daemon.ready(host) or has_ended(),
        what=f"{host.name}: {daemon.name} is not ready",
        timeout_s=daemon.timeout_s,
        explain=lambda: log_tail(host, daemon),
    )
    if has_ended():
        raise BackendUnavailable(
            f"{host.name}: {daemon.name} ended as soon as it was started\n{log_tail(host, daemon)}"
        )
    daemon.after(host)


def end(host: "Host", daemon: Daemon, sign: signal.Signals, timeout_s: float) -> bool:
    """Send the signal and wait until the daemon is gone; False if it was not running.

    BackendUnavailable if it stays.
    """
    with contextlib.ExitStack() as stack:
        descriptor = _open(host, daemon)
        if descriptor is None:
            return False
        stack.callback(os.close, descriptor)
        try:
            signal.pidfd_send_signal(descriptor, sign)
        except ProcessLookupError:
            return True
        waiting.until(
            lambda: not is_running(host, daemon),
            what=f"{host.name}: {daemon.name} does not end on {sign.name}",
            timeout_s=timeout_s,
        )
        return True


def send(host: "Host", daemon: Daemon, sign: signal.Signals) -> bool:
    """Send a signal, SIGSTOP for instance, and don't wait; False if it is not running."""
    descriptor = _open(host, daemon)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, sign)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def is_running(host: "Host", daemon: Daemon) -> bool:
    """Whether the daemon's process is there."""
    descriptor = _open(host, daemon)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def log_tail(host: "Host", daemon: Daemon) -> str:
    """The last lines of the daemon's log, indented."""
    try:
        lines = host.path(daemon.log).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    lines = [line for line in lines if line.strip()][-_TAIL_LINES:] or ["(its log is empty)"]
    return "\n".join(f"    {line}" for line in lines)


def _pid_file(daemon: Daemon) -> str:
    return f"{_RUN_DIRECTORY}/{daemon.name}.pid"


def _open(host: "Host", daemon: Daemon) -> int | None:
    """The daemon's directory in /proc, which serves as a pidfd; None if it does not run.

    The host's /proc is used, since the number on record is the one in there; an open directory
    keeps meaning this process, even if its number is used again. The mark tells a process that
    got the number of an earlier daemon.
    """
    try:
        number = int(host.path(_pid_file(daemon)).read_text())
        directory = host.path(f"/proc/{number}")
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, ValueError):
        return None
    try:
        environment = Path(f"/proc/self/fd/{descriptor}/environ").read_bytes().split(b"\0")
        ended = Stat.parse(Path(f"/proc/self/fd/{descriptor}/stat").read_text()).has_ended
    except (FileNotFoundError, ProcessLookupError):
        environment, ended = [], True
    # The environment reads as empty while exec() replaces the shell by the daemon.
    marked = environment == [b""] or f"{_MARK}={daemon.name}".encode() in environment
    if marked and not ended:
        return descriptor
    os.close(descriptor)
    return None
