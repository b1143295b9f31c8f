"""Files of a host that others read while they are being replaced: a container runtime, an agent.

A file has its old contents or its new ones, complete and on disk, whatever is killed; it is
renamed into place, so a program that is running is no obstacle.
"""

import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tenancy.errors import BackendUnavailable, InvalidRequest

POLL_S = 0.2
# What libcni takes for a network configuration, in the order of their names.
_CONFIGURATIONS = (".conf", ".conflist", ".json")


def read_program(path: Path) -> bytes:
    """The program's own bytes; raises `InvalidRequest` if the node could not run it."""
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"program {path} can't be read ({error.strerror}). Build it with `make`, or name "
            "another with --program."
        ) from error
    if not contents.startswith(b"\x7fELF"):
        raise InvalidRequest(
            f"program {path} is no executable of this system. Name the one that `make` builds "
            "with --program."
        )
    return contents


def is_as_wanted(path: Path, contents: bytes, mode: int) -> bool:
    """Whether the file is there with just these contents and this mode."""
    try:
        found = path.lstat()
        return (
            stat.S_ISREG(found.st_mode)
            and stat.S_IMODE(found.st_mode) == mode
            and found.st_size == len(contents)
            and path.read_bytes() == contents
        )
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unusable(path, "read", error) from error


def put(path: Path, contents: bytes, mode: int) -> None:
    """Give the file these contents at once; its directory is made if there is none."""
    # A name that no runtime reads: a configuration has an ending, a plugin no leading dot.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One writer at a time: an unfinished file that is there was left by one that was killed.
        with _locked(path.parent) as directory:
            try:
                with unfinished.open("wb") as file:
                    file.write(contents)
                    os.fchmod(file.fileno(), mode)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.rename(path)
            except OSError:
                with suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise
            os.fsync(directory)
    except OSError as error:
        raise _unusable(path, "written", error) from error


def remove(path: Path) -> bool:
    """Take the file away; False if there was none."""
    try:
        with _locked(path.parent) as directory:
            path.unlink()
            os.fsync(directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unusable(path, "removed", error) from error
    return True


def configurations_before(conflist: Path) -> list[str]:
    """Other network configurations beside it that a runtime would take instead of it."""
    try:
        names = sorted(entry.name for entry in conflist.parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unusable(conflist.parent, "read", error) from error
    return [name for name in names if name < conflist.name and name.endswith(_CONFIGURATIONS)]


def agent_answers(run_dir: Path) -> bool:
    """Whether the agent's switch is programmed and somebody takes connections for it.

    The file alone may have been left by an agent that was killed.
    """
    if not (run_dir / "agent.ready").exists():
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(POLL_S)
        try:
            client.connect(str(run_dir / "cni.sock"))
        except OSError:
            return False
    return True


def wait_for_agent(run_dir: Path, timeout_s: float) -> None:
    """Return when the agent can serve; raises `BackendUnavailable` after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not agent_answers(run_dir):
        if time.monotonic() > deadline:
            raise BackendUnavailable(
                f"the agent is not ready after {timeout_s:g} s: {run_dir}/agent.ready and cni.sock "
                "are what was waited for, so no conflist was written. See its log, and whether it "
                "reaches the fabric database: `nvctl db status`."
            )
        time.sleep(POLL_S)


@contextmanager
def _locked(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _unusable(path: Path, done: str, error: OSError) -> BackendUnavailable:
    return BackendUnavailable(
        f"{path} can't be {done} ({error.strerror}). Run as root, or name other directories."
    )
