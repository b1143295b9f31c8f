"""The system calls a lab is made of: unshare, setns, mount and umount, and pidfd.

Python 3.11 wraps only the last. What is built from them, a host, is in `lab.init` and
`lab.host`; this module knows nothing of labs.
"""

import ctypes
import enum
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

Result = TypeVar("Result")

_libc = ctypes.CDLL(None, use_errno=True)


class Namespace(enum.IntFlag):
    """The kinds of namespace, as in clone(2)."""

    MOUNT = 0x0002_0000
    UTS = 0x0400_0000
    PID = 0x2000_0000
    NET = 0x4000_0000


HOST = Namespace.MOUNT | Namespace.UTS | Namespace.PID | Namespace.NET

_PF_EXITING = 0x4
_CLONE_FS = 0x0000_0200  # root and working directory, which threads otherwise share


class Mount(enum.IntFlag):
    """The mount flags used here, as in mount(2)."""

    NONE = 0
    BIND = 0x1000
    MOVE = 0x2000
    RECURSIVE = 0x4000
    PRIVATE = 0x4_0000


class Stat(NamedTuple):
    """What is used of proc_pid_stat(5): fields 3, 9 and 22."""

    state: str
    flags: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """ProcessLookupError if there is no such process."""
        try:
            return cls.parse(Path(f"/proc/{pid}/stat").read_text())
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the text of the file."""
        # The second field is the command in parentheses, and may hold spaces and parentheses.
        fields = text.rpartition(")")[2].split()
        return cls(state=fields[0], flags=int(fields[6]), started=int(fields[19]))

    @property
    def has_ended(self) -> bool:
        """A zombie: only its exit code is left."""
        return self.state in "ZX"

    @property
    def is_ending(self) -> bool:
        """It runs no more, and is giving back what it holds."""
        return self.has_ended or bool(self.flags & _PF_EXITING)


@dataclass(frozen=True, slots=True)
class Process:
    """A process that can't be mistaken for a later one with the same number.

    `started` is its start time in clock ticks after boot.
    """

    pid: int
    started: int

    @classmethod
    def named(cls, pid: int) -> Self:
        """The process that has this number now; ProcessLookupError if there is none."""
        return cls(pid, Stat.of(pid).started)

    def exists(self) -> bool:
        """Whether it is there, be it as a zombie."""
        try:
            return Stat.of(self.pid).started == self.started
        except ProcessLookupError:
            return False

    def runs(self) -> bool:
        """Whether it is there and not ending."""
        try:
            stat = Stat.of(self.pid)
        except ProcessLookupError:
            return False
        return stat.started == self.started and not stat.is_ending

    def pidfd(self) -> int:
        """A new descriptor of this process; ProcessLookupError if it has ended."""
        descriptor = os.pidfd_open(self.pid)
        try:
            if Stat.of(self.pid).started != self.started:
                raise ProcessLookupError(f"process {self.pid} is another one now")
        except ProcessLookupError:
            os.close(descriptor)
            raise
        return descriptor

    def kill(self) -> None:
        """Send SIGKILL, if it has not ended."""
        try:
            descriptor = self.pidfd()
        except ProcessLookupError:
            return
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


def unshare(namespaces: Namespace) -> None:
    """Give the calling thread new namespaces; for PID, its next children."""
    _check(_libc.unshare(int(namespaces)), f"unshare {namespaces!r}")


def enter(descriptor: int, namespaces: Namespace) -> None:
    """Move the calling thread into the namespaces of a pidfd, or of one namespace file."""
    _check(_libc.setns(descriptor, int(namespaces)), f"setns {namespaces!r}")


def mount(
    source: str, target: str, kind: str = "", flags: Mount = Mount.NONE, options: str = ""
) -> None:
    """mount(2)."""
    arguments = [os.fsencode(text) if text else None for text in (source, target, kind)]
    code = _libc.mount(*arguments, ctypes.c_ulong(int(flags)), os.fsencode(options) or None)
    _check(code, f"mount {source} on {target}")


def unmount(target: str) -> None:
    """umount(2)."""
    _check(_libc.umount2(os.fsencode(target), 0), f"unmount {target}")


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    encoded = os.fsencode(name)
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))), f"sethostname {name}")


def inside(
    process: Process, namespaces: Namespace, call: Callable[[], Result], *, netns: str | None = None
) -> Result:
    """What `call` returns when it runs in the namespaces of `process`.

    It runs in a thread of its own, because namespaces belong to threads. With PID, processes
    that `call` starts are born there and still are this process's children, so they are waited
    for and signalled as usual; the kernel then forbids `call` to start threads. `netns` names a
    network namespace known there (in /run/netns), which takes the place of the process's own.
    """

    def enter_and_call() -> Result:
        if namespaces & Namespace.MOUNT:
            _check(_libc.unshare(_CLONE_FS), "unshare the working directory")
        descriptor = process.pidfd()
        try:
            enter(descriptor, namespaces)
        finally:
            os.close(descriptor)
        if netns is not None:
            descriptor = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                enter(descriptor, Namespace.NET)
            finally:
                os.close(descriptor)
        return call()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter_and_call).result()


def _check(code: int, attempt: str) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{attempt}: {os.strerror(number)}")
