"""A real fabric database for whoever asks: ovsdb-server on a socket in a directory of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenancy.backends import embedded
from tenancy.backends.fabric import Fabric


@pytest.fixture
def fabric_remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The remote of an empty database."""
    yield from serve(tmp_path_factory)


def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve an empty database until told to go on."""
    directory = tmp_path_factory.mktemp("db")
    remote = embedded.start(directory / "fabric.db", run_dir=directory)
    yield remote
    embedded.stop(directory)


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
