"""A host of a lab: namespaces of its own, entered by whoever wants to run something there.

A host is kept by its process 1 (`lab.init`) and known by that process's number, so any process
of the machine can find and use it; nothing here is specific to the process that made it.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from lab import daemon as daemons_of_host
from lab.daemon import Daemon
from lab.linux import HOST, Namespace, Process, inside
from lab.state import Record
from tenancy.errors import BackendUnavailable, NotFound

CTL = "ctl"
"""The host that holds the underlay switch, the fabric database and Ceph's monitor."""

Result = TypeVar("Result")

_STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0


class Host:
    """One host of a lab that is up, or `ctl`."""

    def __init__(
        self, name: str, *, lab: str, process: Process, address: str, daemons: Sequence[Daemon] = ()
    ) -> None:
        """The host that this process 1 keeps; `daemons` in the order in which they start."""
        self.name = name
        self.lab = lab
        self.process = process
        self.address = address
        self.daemons = {daemon.name: daemon for daemon in daemons}

    @property
    def search_path(self) -> str:
        """The PATH in the host: first the directory of `nvctl` and `svctl`, the virtual
        environment's also when that is not active."""
        return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:{_STANDARD_PATH}"

    # Commands and functions

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout_s: float = 60.0,
        input: str | None = None,
        environment: Mapping[str, str] | None = None,
        netns: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """The finished command, with its output as text.

        `environment` adds to the one a command finds (see `popen`). `netns` runs it in a network
        namespace of the host, one that `add_netns` made. BackendUnavailable if it takes longer
        than the time given (it is killed), or, with `check`, if it fails. It is finished when
        its output is closed, so what it leaves running must not keep that.
        """
        process = self.popen(
            argv,
            environment=environment,
            netns=netns,
            stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        command = f"{self.name}: {' '.join(argv[:6])}"
        try:
            stdout, stderr = process.communicate(input, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGKILL)
                # What has left the group and holds the output must not hold this up.
                process.communicate(timeout=1)
            raise BackendUnavailable(f"{command}: not finished after {timeout_s:g} s.") from error
        if check and process.returncode != 0:
            reason = (stderr or stdout).strip() or "no reason given"
            raise BackendUnavailable(f"{command}: ended with {process.returncode}: {reason}")
        return subprocess.CompletedProcess(list(argv), process.returncode, stdout, stderr)

    def popen(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        netns: str | None = None,
        cwd: str | Path | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        start_new_session: bool = False,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """A command started in the host; a child of the calling process like any other.

        Its environment is the caller's, with `nvctl` and `svctl` on the PATH. It starts in `/`
        unless told otherwise. It ends with the host at the latest.
        """

        def start() -> subprocess.Popen[Any]:
            return subprocess.Popen(
                list(argv),
                env={**os.environ, "PATH": self.search_path, **(environment or {})},
                cwd=cwd,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=start_new_session,
                **options,
            )

        return self.call(start, netns=netns)

    def call(
        self,
        function: Callable[[], Result],
        *,
        namespaces: Namespace = HOST,
        netns: str | None = None,
    ) -> Result:
        """What a Python function returns when its thread is in the host.

        The function must not start threads, see `lab.linux.inside`.
        """
        try:
            return inside(self.process, namespaces, function, netns=netns)
        except ProcessLookupError as error:
            raise NotFound(
                f"host {self.name} of lab {self.lab} has ended. "
                f"Take the lab down: virtlab down --name {self.lab}."
            ) from error

    def path(self, path: str | Path) -> Path:
        """A file of the host, by a name that works outside of it, for sockets also.

        Symbolic links on the way that are absolute lead out of the host: `/run`, not `/var/run`.
        """
        return Path(f"/proc/{self.process.pid}/root") / str(path).lstrip("/")

    def add_netns(self, name: str) -> None:
        """A network namespace in the host, at `/run/netns/NAME`, to play a container."""
        # iproute2, because the file in /run/netns must be bound by a process of the host.
        self.run(["ip", "netns", "add", name])
        self.run(["ip", "link", "set", "lo", "up"], netns=name)

    def delete_netns(self, name: str) -> None:
        """Remove a network namespace; what still runs in it keeps it."""
        self.run(["ip", "netns", "delete", name])

    # Daemons

    def start(self, name: str) -> None:
        """Have a daemon running and ready, with the state it had; nothing if it runs."""
        daemons_of_host.start(self, self._daemon(name))

    def stop(self, name: str) -> bool:
        """End a daemon in good order; False if it was not running."""
        return daemons_of_host.end(self, self._daemon(name), signal.SIGTERM, _STOP_TIMEOUT_S)

    def kill(self, name: str) -> bool:
        """End a daemon as a crash would (SIGKILL), return when it is gone; False if it was not
        running."""
        return daemons_of_host.end(self, self._daemon(name), signal.SIGKILL, _STOP_TIMEOUT_S)

    def pause(self, name: str) -> bool:
        """Stop a daemon's clock (SIGSTOP): it hangs, but its connections stay."""
        return daemons_of_host.send(self, self._daemon(name), signal.SIGSTOP)

    def resume(self, name: str) -> bool:
        """Let a paused daemon go on."""
        return daemons_of_host.send(self, self._daemon(name), signal.SIGCONT)

    def is_running(self, name: str) -> bool:
        """Whether a daemon's process is there."""
        return daemons_of_host.is_running(self, self._daemon(name))

    def log_tail(self, name: str) -> str:
        """The last lines of a daemon's log."""
        return daemons_of_host.log_tail(self, self._daemon(name))

    def _daemon(self, name: str) -> Daemon:
        try:
            return self.daemons[name]
        except KeyError:
            raise NotFound(
                f"host {self.name} of lab {self.lab} has no daemon {name}. "
                f"It has: {', '.join(self.daemons)}."
            ) from None


def boot(record: Record, name: str, *, within: Host | None, lock: int | None) -> Process:
    """The process 1 of a new host, whose file system and namespaces are complete.

    It is born in the PID namespace of `within`, so that it ends with that host. `lock` is
    inherited until the process is on record.
    """
    report, ready = os.pipe()
    inherited = [ready] if lock is None else [ready, lock]
    argv = [
        *(sys.executable, "-S", "-m", "lab.init"),
        *("--lab", record.name, "--host", name),
        *("--record", str(record.process_file(name))),
        *("--disk", str(record.disk / name)),
        *("--ready", str(ready)),
        *([] if lock is None else ["--lock", str(lock)]),
    ]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            env={"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": _STANDARD_PATH},
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    try:
        try:
            launcher = start() if within is None else within.call(start, namespaces=Namespace.PID)
        finally:
            os.close(ready)
        launcher.wait(_BOOT_TIMEOUT_S)
        answer = _read_all(report, _BOOT_TIMEOUT_S)
    finally:
        os.close(report)
    process = record.process(name)
    if answer != "ready" or process is None:
        raise BackendUnavailable(f"host {name}: {answer or 'its first process ended at once'}.")
    return process


def _read_all(descriptor: int, timeout_s: float) -> str:
    """What arrives until the other side closes."""
    parts: list[bytes] = []
    while select.select([descriptor], [], [], timeout_s)[0]:
        part = os.read(descriptor, 4096)
        if not part:
            return b"".join(parts).decode(errors="replace")
        parts.append(part)
    return f"no answer for {timeout_s:g} s"
