"""Running virtual machines: start one, wait for it, run commands in it, stop it.

What a machine consists of is lab/machine.py; this module acts. QEMU runs where the caller says:
in a host of a lab or, for tests of the guest alone, right here. A machine that libvirt runs is
lab/libvirt.py; what one does with a guest that runs is the same, and here. All waits have an
end, and an error carries the tail of the guest's console.
"""

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from lab.accelerator import best_accelerator
from lab.guest_shell import GuestShell, Result
from lab.machine import Accelerator, Machine, Workplace, qemu_argv
from tenancy.errors import BackendUnavailable, VerificationFailed

CONSOLE_TAIL_BYTES = 2000
POLL_S = 0.02


class Place(Protocol):
    """Where QEMU runs: a `lab.host.Host`, or `Here`."""

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: int,
        start_new_session: bool,
    ) -> subprocess.Popen[bytes]:
        """A program started in that place."""
        ...

    def path(self, path: str | Path) -> Path:
        """A file of that place, by a name that works for us."""
        ...


class Here:
    """This machine itself, no lab."""

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: int,
        start_new_session: bool,
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=start_new_session
        )

    def path(self, path: str | Path) -> Path:
        return Path(path)


HERE = Here()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What the guest was told by DHCP and has put on its NIC. See guest_files/root/etc/dhcp."""

    address: IPv4Interface
    mtu_bytes: int | None
    router: IPv4Address | None
    dns: tuple[IPv4Address, ...]
    server: IPv4Address | None
    seconds: int | None


class RunningGuest(ABC):
    """A guest that runs, whoever started it: wait for it, run commands in it, read its lease."""

    def __init__(self, name: str, *, shell: Path, console: Path) -> None:
        """Its shell's socket and its console's log, by names that work for us."""
        self.name = name
        self._socket = shell
        self._shell = GuestShell(shell)
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether its QEMU is there."""

    @property
    def console(self) -> str:
        """What the guest has written to its serial console so far."""
        if not self._console.exists():
            return ""
        return self._console.read_text(errors="replace")

    def wait_for_boot(self, timeout_s: float = 60.0) -> None:
        """Return when the guest's first boot script is done and it takes commands.

        The NICs may still be waiting for DHCP then; see `lease`.
        """
        deadline = time.monotonic() + timeout_s
        while not self._socket.exists() and self.running and time.monotonic() < deadline:
            time.sleep(POLL_S)
        try:
            self._shell.run("true", deadline - time.monotonic(), grace_s=0)
        except BackendUnavailable as error:
            raise BackendUnavailable(
                f"vm {self.name}: not booted within {timeout_s:g} s; "
                f"QEMU {self._state()}.{self._tail()}"
            ) from error

    def run(self, command: str, timeout_s: float = 30.0) -> Result:
        """How `command` ended in the guest, and its output. 137: killed, it took too long."""
        try:
            return self._shell.run(command, timeout_s)
        except BackendUnavailable as error:
            raise BackendUnavailable(f"vm {self.name}: {error}{self._tail()}") from error

    def check(self, command: str, timeout_s: float = 30.0) -> str:
        """The output of `command` in the guest, which must succeed."""
        result = self.run(command, timeout_s)
        if result.exit_code != 0:
            raise VerificationFailed(
                f"vm {self.name}: `{command}` ended with {result.exit_code}: "
                f"{result.output.strip()}"
            )
        return result.output

    def lease(self, nic: str = "eth0", timeout_s: float = 30.0) -> Lease:
        """The DHCP lease that `nic` holds, waiting until it has one."""
        result = self.run(
            f"until [ -s /run/lease/{nic} ]; do usleep 50000; done; cat /run/lease/{nic}", timeout_s
        )
        if result.exit_code != 0:
            log = self.run(f"cat /run/dhcp-{nic}.log; ip addr").output
            raise VerificationFailed(
                f"vm {self.name}: {nic} got no DHCP lease within {timeout_s:g} s:\n{log}"
            )
        return parse_lease(result.output)

    @abstractmethod
    def stop(self) -> None:
        """Pull the plug: the guest is not asked."""

    def _state(self) -> str:
        """What there is to say about QEMU, as the rest of a sentence."""
        return "is running" if self.running else "has ended"

    def _log(self) -> str:
        """What QEMU itself has said."""
        return ""

    def _tail(self) -> str:
        """The end of what QEMU and the guest have said, to be put behind an error."""
        said = self._log() + self.console
        return f" Its last words:\n{said[-CONSOLE_TAIL_BYTES:]}" if said else " It said nothing."


class VirtualMachine(RunningGuest):
    """A running QEMU. It outlives this object unless it is stopped, or used in a `with`."""

    def __init__(
        self, machine: Machine, workplace: Workplace, process: subprocess.Popen[bytes]
    ) -> None:
        """`workplace` is its directory by the name that works for us."""
        super().__init__(machine.name, shell=workplace.shell, console=workplace.console)
        self.machine = machine
        self.workplace = workplace
        self.process = process

    @classmethod
    def start(
        cls,
        machine: Machine,
        directory: Path,
        place: Place = HERE,
        accelerator: Accelerator | None = None,
    ) -> Self:
        """QEMU running `machine` in `place`. The boot is not awaited.

        Its log and sockets are in `directory` of that place; under `/run` of a lab host they go
        with the host.
        """
        accelerator = accelerator or best_accelerator(machine.guest)
        argv = qemu_argv(machine, Workplace(directory.absolute()), accelerator)
        workplace = Workplace(place.path(directory.absolute()))
        workplace.directory.mkdir(parents=True, exist_ok=True)
        for left_by_an_earlier_run in (workplace.shell, workplace.console):
            left_by_an_earlier_run.unlink(missing_ok=True)
        with workplace.qemu_log.open("wb") as log:
            try:
                process = place.popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C at a demo must not reach the machines it leaves running.
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise BackendUnavailable(
                    f"vm {machine.name}: {argv[0]} is not installed. Run: make install"
                ) from error
        return cls(machine, workplace, process)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def shutdown(self, timeout_s: float = 20.0) -> None:
        """Let the guest write back its disk and power off; QEMU ends."""
        self.run("poweroff")
        self._shell.close()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise BackendUnavailable(
                f"vm {self.name}: not off within {timeout_s:g} s.{self._tail()}"
            ) from error

    def stop(self, timeout_s: float = 10.0) -> None:
        """Pull the plug: QEMU closes the disk and ends, the guest is not asked."""
        self._shell.close()
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _state(self) -> str:
        return "is running" if self.running else f"ended with {self.process.returncode}"

    def _log(self) -> str:
        return self.workplace.qemu_log.read_text(errors="replace")


def parse_lease(note: str) -> Lease:
    """A lease as the guest notes it: a line `name=value` for each thing it was told."""
    told = dict(line.split("=", 1) for line in note.splitlines() if "=" in line)
    return Lease(
        address=IPv4Interface(told["address"]),
        mtu_bytes=int(told["mtu"]) if told["mtu"] else None,
        router=IPv4Address(told["router"].split()[0]) if told["router"] else None,
        dns=tuple(IPv4Address(server) for server in told["dns"].split()),
        server=IPv4Address(told["server"]) if told["server"] else None,
        seconds=int(told["seconds"]) if told["seconds"] else None,
    )
