"""What either side of `benchmarks.control_plane` can do, and how its agents are measured."""

import os
from abc import ABC, abstractmethod
from pathlib import Path

from lab.host import Host
from lab.lab import Lab

SIMULATED_HOSTS = 10


class Side(ABC):
    """Two real hosts with a port each, and simulated ones, in one network or logical switch.

    What waits returns when both real hosts' switches have all that follows.
    """

    @abstractmethod
    def grow(self, first: int, number: int) -> tuple[float, float]:
        """That many ports more, bound to simulated hosts; seconds until written, and until both
        real hosts have them."""

    @abstractmethod
    def add(self, name: str) -> None:
        """A new port, and wait."""

    @abstractmethod
    def bind(self, name: str) -> None:
        """It is on a simulated host, and wait."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """It goes, and wait."""

    @abstractmethod
    def resident_kib(self) -> float:
        """Resident memory of a real host's agent, the mean of both."""


def process_of(lab: Lab, host: Host, command: str) -> int:
    """The number, on this machine, of the one process in a host whose command line has this."""
    namespace = os.readlink(f"/proc/{host.process.pid}/ns/uts")  # noqa: PTH115
    found = []
    for pid in lab.processes():
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        if command in line and os.readlink(f"/proc/{pid}/ns/uts") == namespace:  # noqa: PTH115
            found.append(pid)
    [only] = found
    return only


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])
