"""The lab's relay is compiled once, whoever else is just doing it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from lab import latency
from tenancy.errors import BackendUnavailable

BUILDERS = 4


def test_hosts_that_are_made_at_once_all_find_the_relay_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(latency, "_BUILD", tmp_path)
    together = Barrier(BUILDERS)

    def build() -> None:
        together.wait(30)
        latency.build()

    with ThreadPoolExecutor(BUILDERS) as threads:
        for done in [threads.submit(build) for _ in range(BUILDERS)]:
            done.result()

    (program,) = tmp_path.iterdir()
    assert os.access(program, os.X_OK)


def test_without_a_compiler_it_is_said_what_to_install_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(latency, "_BUILD", tmp_path)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(BackendUnavailable, match="apt-get install gcc"):
        latency.build()

    assert not list(tmp_path.iterdir())
