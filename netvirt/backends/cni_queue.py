"""The queue of DELs that the CNI program could not hand to the agent, on this host's disk.

The program writes a record when nobody answers on the agent's socket, and tells the runtime that
the container is gone; the agent owes it the rest. Whoever writes or takes records holds the lock,
and the program tries the socket once more under it. So an agent that listens first and drains
then has missed nothing.

What a record asks for is the caller's business. Nothing here trusts what lies in the directory:
what is no record is put aside under another name, once, and never read again.
"""

import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from netvirt.cni.frames import (
    MAX_REQUEST_BYTES,
    FrameError,
    Malformed,
    Request,
    decode_request,
    encode_request,
)
from tenancy.errors import BackendUnavailable, Conflict

log = structlog.get_logger()

DEFAULT_DIRECTORY = Path("/var/lib/virtkit/cni/queue")
LOCK_TIMEOUT_S = 2.0

_RECORD = re.compile(r"\d{20}-\d+\.del")
# One name will do, under the lock; the program uses it too.
_UNFINISHED = ".new"
_POLL_S = 0.005


class DelQueue:
    """The records in a directory. Its lock file lies beside it: `queue` and `queue.lock`."""

    def __init__(self, directory: Path = DEFAULT_DIRECTORY) -> None:
        self._directory = directory
        self._lock_file = directory.with_name(f"{directory.name}.lock")

    def drain(self, handle: Callable[[Request], bool], *, timeout_s: float = LOCK_TIMEOUT_S) -> int:
        """Hand each record to `handle`, oldest first, under the lock; returns how many are done.

        A record goes when `handle` returns true and stays when it returns false. An exception
        ends the pass: that record and those after it stay. One pass is made, over what was there
        when it began, whatever happens. Raises as `locked` and `records` do.
        """
        done = 0
        with self.locked(timeout_s=timeout_s):
            for path, request in self.records():
                if handle(request):
                    self.remove(path)
                    done += 1
        return done

    @contextmanager
    def locked(self, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the queue's lock; with `timeout_s=0` try once.

        Threads exclude each other as processes do, and a thread that holds it must not ask
        again. Raises `Conflict` if another holds it all that time, `BackendUnavailable` if the
        directory or its lock file cannot be had.
        """
        lock = self._open_lock()
        try:
            self._wait_for(lock, timeout_s)
            yield
        finally:
            os.close(lock)

    def records(self) -> Iterator[tuple[Path, Request]]:
        """Each record and where it lies, oldest first. Hold the lock until the last is taken.

        What is no record is renamed to `.bad`; what cannot be read stays; either is logged. What
        a writer has left unfinished goes. Raises `BackendUnavailable` if the directory cannot be
        read.
        """
        with suppress(OSError):
            (self._directory / _UNFINISHED).unlink()
        try:
            found = [path for path in self._directory.iterdir() if _RECORD.fullmatch(path.name)]
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unavailable("listed", error) from error
        # A name begins with the time of its making, in as many digits as it ever has.
        for path in sorted(found):
            try:
                request = _read(path)
            except FileNotFoundError:
                continue
            except FrameError as error:
                _put_aside(path, str(error))
                continue
            except OSError as error:
                # The disk or this process is in trouble, and the record may yet be good.
                log.error("a record of the queue of DELs stays", record=str(path), why=str(error))
                continue
            yield path, request

    def has_records(self) -> bool:
        """Whether it is worth taking the lock. Raises `BackendUnavailable`."""
        try:
            return any(
                path.name == _UNFINISHED or _RECORD.fullmatch(path.name)
                for path in self._directory.iterdir()
            )
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unavailable("listed", error) from error

    def leave(self, request: Request, *, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Write a record, as the program does. Raises as `locked`."""
        unfinished = self._directory / _UNFINISHED
        with self.locked(timeout_s=timeout_s):
            try:
                unfinished.unlink(missing_ok=True)
                with unfinished.open("xb") as file:
                    file.write(encode_request(request))
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.rename(self._directory / f"{time.time_ns():020}-{os.getpid()}.del")
            except OSError as error:
                raise self._unavailable("written", error) from error

    def remove(self, path: Path) -> None:
        """Remove a record that has been dealt with. Raises `BackendUnavailable`."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unavailable("emptied", error) from error

    def _open_lock(self) -> int:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            return os.open(self._lock_file, flags, 0o600)
        except OSError as error:
            raise self._unavailable("locked", error) from error

    def _wait_for(self, lock: int, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise Conflict(
                        f"queue of DELs: {self._lock_file} is held by another process for more "
                        f"than {timeout_s:g} s. Try again; `fuser -v {self._lock_file}` names it."
                    ) from error
            time.sleep(_POLL_S)

    def _unavailable(self, attempted: str, error: OSError) -> BackendUnavailable:
        return BackendUnavailable(
            f"queue of DELs: {self._directory} cannot be {attempted}: {error.strerror} "
            f"({error.filename}). Make it writable for root."
        )


def _read(path: Path) -> Request:
    """The record's request. Raises `FrameError` for what is none, and `OSError`."""
    # To open a pipe or a device could take for ever, or do something.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    if not stat.S_ISREG(path.lstat().st_mode):
        raise Malformed("it is not a file.")
    with os.fdopen(os.open(path, flags), "rb") as file:
        request = decode_request(file.read(MAX_REQUEST_BYTES + 1))
    if (command := request.environment.get("CNI_COMMAND")) != "DEL":
        raise Malformed(f"it asks for {command!r}, and only DEL is queued.")
    return request


def _put_aside(path: Path, why: str) -> None:
    bad = path.with_suffix(".bad")
    try:
        path.rename(bad)
    except OSError as error:
        # It will be met again, but not by this pass.
        log.error("a bad record of the queue of DELs stays", record=str(path), why=f"{why} {error}")
        return
    log.error("a bad record of the queue of DELs is put aside", record=str(bad), why=why)
