"""What all tests share: a real fabric database, and an end to what killed runs have left."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import state
from lab.lab import Lab
from lab.waiting import until
from tenancy.backends import embedded
from tenancy.backends.fabric import Fabric

# Labs of tests are called test-WHAT-PID, PID being that of the run that made them.
_OF_A_RUN = re.compile(r"test-[a-z-]+-(\d+)(-.*)?")


def pytest_sessionstart() -> None:
    """Take down the labs of runs that were killed."""
    if os.geteuid() != 0:
        return
    for name in state.names():
        run = _OF_A_RUN.fullmatch(name)
        if run and not Path(f"/proc/{run[1]}").exists():
            Lab.down(name)


@pytest.fixture
def fabric_remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The remote of an empty database."""
    yield from serve(tmp_path_factory)


def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve an empty database until told to go on; the server ends with us, however we end."""
    directory = tmp_path_factory.mktemp("db")
    path = directory / "fabric.sock"
    embedded.prepare(directory / "fabric.db")
    argv = embedded.argv(directory / "fabric.db", [f"punix:{path}"], directory)
    log = (directory / "log").open("w")
    with (
        log,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv], stdout=log, stderr=log
        ) as server,
    ):
        until(lambda: _is_served(path), what="the database is not served", timeout_s=15)
        yield f"unix:{path}"
        server.terminate()


def _is_served(path: Path) -> bool:
    """Whether somebody takes calls there: the file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as call:
        return call.connect_ex(str(path)) == 0


@pytest.fixture
def fabric(fabric_remote: str) -> Iterator[Fabric]:
    with Fabric.connect(fabric_remote) as connected:
        yield connected


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(fabric_remote: str) -> Command:
    """Run `nvctl` or `svctl` as a user would, on the test's database."""

    return command_on(fabric_remote)


def command_on(remote: str) -> Command:
    def run(line: str, *, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
        program, *arguments = line.split()
        return subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            env={**os.environ, "VIRTKIT_DB": remote},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )

    return run
