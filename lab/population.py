"""Which processes a host has, asked of the kernel: those in its PID namespace or in one below.

This does not depend on who started a process, what it calls itself, or whether it detached.
"""

import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from lab.linux import Stat

_NS_GET_PARENT = 0xB702  # ioctl_ns(2)


class PidNamespace(NamedTuple):
    """The identity of a PID namespace."""

    device: int
    inode: int

    @classmethod
    def of(cls, pid: int) -> "PidNamespace":
        """The one that a process is in; ProcessLookupError if there is no such process."""
        try:
            found = os.stat(f"/proc/{pid}/ns/pid")  # noqa: PTH116
        except FileNotFoundError as error:
            raise ProcessLookupError(f"no process {pid}") from error
        return cls(found.st_dev, found.st_ino)

    def living(self) -> tuple[int, ...]:
        """The processes in this namespace and below that have not ended, sorted.

        Not counted is what only waits for its parent to read its exit code, a zombie or a
        process 1 with zombies; it runs no more and holds nothing.
        """
        numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return tuple(sorted(pid for pid in numbers if self._holds(pid) and not _has_ended(pid)))

    def _holds(self, pid: int) -> bool:
        try:
            namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it has ended, or is none of ours
            return False
        while True:
            try:
                found = os.fstat(namespace)
                if (found.st_dev, found.st_ino) == self:
                    return True
                # The parent of our own namespace may not be seen: EPERM ends the climb.
                parent = fcntl.ioctl(namespace, _NS_GET_PARENT)
            except PermissionError:
                return False
            finally:
                os.close(namespace)
            namespace = parent


def _has_ended(pid: int) -> bool:
    try:
        stat = Stat.of(pid)
        return stat.has_ended or (stat.is_ending and _is_first_of_its_namespace(pid))
    except (FileNotFoundError, ProcessLookupError):
        return True


def _is_first_of_its_namespace(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return numbers.split()[-1] == "1"
