"""The deadline of a command: what bounds it, what moves it, and what is said at its end."""

import subprocess
import sys

import pytest

from storvirt.cli import deadline
from tenancy.errors import InvalidRequest

PROGRAM = """
import sys, threading
from storvirt.backends import activity
from storvirt.cli import deadline

deadline.watch(1.0)
with activity.waiting_for("image vms/red/disk"):
    for _ in range(int(sys.argv[1])):
        threading.Event().wait(0.05)
        activity.progressed()
    if sys.argv[2] == "hang":
        threading.Event().wait(60)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_what_hangs_is_ended_with_a_sentence_that_names_it() -> None:
    ended = run("0", "hang")

    assert ended.returncode == 1
    assert ended.stderr == deadline.sentence(1.0, "image vms/red/disk") + "\n"


def test_work_that_gets_on_is_not_ended() -> None:
    # Two seconds of work with a deadline of one.
    assert run("40", "end").returncode == 0


@pytest.mark.parametrize("timeout_s", [0, -1, 0.5, float("nan"), float("inf"), 1e9])
def test_a_deadline_that_is_none_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidRequest, match="is not between 1 and"):
        deadline.checked(timeout_s)


def test_the_library_gives_up_before_the_deadline() -> None:
    assert deadline.bounded(40, 120) == 40
    assert deadline.bounded(40, 5) == 4
    assert deadline.bounded(40, 1) == 1
