"""The records that the CNI program leaves of DELs: each whole, none lost, under a lock.

Run with the same two programs as test_cni_program.py.
"""

import fcntl
import json
import os
import random
import re
import resource
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.waiting import until
from netvirt.backends.cni_queue import DelQueue
from netvirt.cni.frames import MAX_INPUT_BYTES, decode_request, encode_request
from tests.unit.cni_program import (
    CONFIGURATION,
    KINDS,
    LONGEST_S,
    QUEUE,
    RECORDS,
    RESULT,
    Answer,
    Program,
    agent,
    built,
    finish,
    hangs,
    request,
    says,
)

DONE = Answer(status=0)


@pytest.fixture(params=KINDS)
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    return built(request.param, "patient", tmp_path)


@pytest.fixture(params=KINDS)
def hasty(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    return built(request.param, "hasty", tmp_path)


@contextmanager
def locked(program: Program) -> Iterator[None]:
    """Hold the lock as another process would."""
    program.queue.mkdir(parents=True, exist_ok=True)
    with program.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def start_del(program: Program, container: str = "c1") -> subprocess.Popen[bytes]:
    """A DEL that has all its input."""
    process = program.start("DEL", container)
    assert process.stdin
    process.stdin.write(CONFIGURATION)
    process.stdin.close()
    process.stdin = None
    return process


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_record_is_the_request_under_a_name_that_tells_when(program: Program) -> None:
    before = time.time_ns()
    process = program.start("DEL")
    assert finish(process) == DONE
    [record] = program.queue.iterdir()
    assert record.read_bytes() == encode_request(request("DEL"))
    name = re.fullmatch(r"(\d{20})-(\d+)\.del", record.name)
    assert name and before <= int(name[1]) <= time.time_ns() and int(name[2]) == process.pid


def test_the_agent_finds_the_records_in_the_order_of_the_calls(program: Program) -> None:
    for number in range(5):
        assert program.call("DEL", f"c{number}") == DONE
    with DelQueue(program.queue).locked(timeout_s=0):
        found = [record for _, record in DelQueue(program.queue).records()]
    assert found == [request("DEL", f"c{number}") for number in range(5)]


def test_the_queue_is_made_for_root_alone(program: Program) -> None:
    assert program.call("DEL", umask=0) == DONE
    modes = {
        path.name: oct(path.stat().st_mode)
        for path in (program.queue, program.lock, *program.queue.glob("*.del"))
    }
    assert list(modes.values()) == ["0o40700", "0o100600", "0o100600"]
    assert oct(program.queue.parent.stat().st_mode) == "0o40755"


def test_the_longest_request_is_recorded_whole(program: Program) -> None:
    given = random.Random(3).randbytes(MAX_INPUT_BYTES)
    assert program.call("DEL", given=given) == DONE
    assert program.records() == [encode_request(request("DEL", given=given))]


def test_two_hundred_at_once_leave_two_hundred_records(program: Program) -> None:
    containers = [f"c{number:03}" for number in range(200)]
    # A sanitizer's memory sets a limit to how many there are at once.
    with ThreadPoolExecutor(200 if "hardened" in program.path.name else 40) as pool:
        with locked(program):
            answers = pool.map(lambda container: program.call("DEL", container), containers)
            time.sleep(0.3)
            assert names(program.queue) == []
        assert list(answers) == [DONE] * 200
    assert sorted(program.records()) == [encode_request(request("DEL", c)) for c in containers]
    assert len(names(program.queue)) == 200


# The lock


def test_who_holds_the_lock_is_waited_for(program: Program) -> None:
    with locked(program):
        process = start_del(program)
        time.sleep(0.3)
        assert process.poll() is None
        assert names(program.queue) == []
    assert finish(process, b"") == DONE
    assert len(program.records()) == 1


def test_who_holds_the_lock_for_ever_is_not_waited_for(hasty: Program) -> None:
    with locked(hasty):
        code, message = hasty.call("DEL").error()
    assert (code, message) == (
        11,
        "DEL of interface eth0, container c1: the node agent does not answer, and "
        f"{QUEUE} cannot be written: it took too long.",
    )
    assert names(hasty.queue) == []


def wait_for_its_turn(program: Program, process: subprocess.Popen[bytes]) -> None:
    """Until the program has found nobody on the socket and has come to the lock."""

    def has_come() -> bool:
        # Descriptors come and go meanwhile.
        with suppress(FileNotFoundError):
            files = Path(f"/proc/{process.pid}/fd").iterdir()
            return program.lock in [file.readlink() for file in files]
        return False

    until(
        has_come,
        what="the program does not open its lock file",
        timeout_s=LONGEST_S,
    )


def test_under_the_lock_the_agent_is_asked_once_more(program: Program) -> None:
    heard: list[bytes] = []
    with ExitStack() as until_the_end:
        with locked(program):
            process = start_del(program)
            wait_for_its_turn(program, process)
            until_the_end.enter_context(agent(program, says(RESULT, heard)))
        assert finish(process, b"") == Answer(status=0, output=RESULT.output)
    assert heard == [encode_request(request("DEL"))]
    assert names(program.queue) == []


def test_an_agent_that_is_back_and_fails_again_is_owed_a_record(program: Program) -> None:
    heard: list[bytes] = []
    with ExitStack() as until_the_end:
        with locked(program):
            process = start_del(program)
            wait_for_its_turn(program, process)
            until_the_end.enter_context(agent(program, says(b"", heard)))
        assert finish(process, b"") == DONE
    assert heard == program.records() == [encode_request(request("DEL"))]


def test_an_agent_that_hangs_leaves_time_for_the_queue(hasty: Program) -> None:
    gone = threading.Event()

    def hangs_until_left(connection: socket.socket) -> None:
        hangs(connection)
        gone.set()

    with agent(hasty, hangs_until_left):
        with locked(hasty):
            process = start_del(hasty)
            assert gone.wait(LONGEST_S)
        assert finish(process, b"") == DONE
    assert hasty.records() == [encode_request(request("DEL"))]


# Programs that are killed


def test_a_record_is_never_seen_half_written(program: Program, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**31)
    print("seed", seed)
    chance = random.Random(seed)
    given = chance.randbytes(200_000)
    (tmp_path / "input").write_bytes(given)
    stop = threading.Event()

    def read_all() -> int:
        """Read all records over and over; how many times one was seen."""
        seen = 0
        while not stop.is_set():
            for path in program.queue.glob("*.del"):
                assert decode_request(path.read_bytes()).input == given
                seen += 1
        return seen

    def kill_after(container: str, delay_s: float) -> int:
        with (tmp_path / "input").open("rb") as file:
            process = program.start("DEL", container, stdin=file)
        time.sleep(delay_s)
        process.kill()
        process.communicate(timeout=LONGEST_S)
        return process.returncode

    begin = time.monotonic()
    assert program.call("DEL", "first", given=given) == DONE
    usual_s = time.monotonic() - begin
    containers = [f"c{number}" for number in range(100)]
    with ThreadPoolExecutor(5) as pool:
        seen = pool.submit(read_all)
        delays = [chance.uniform(0, 2 * usual_s) for _ in containers]
        statuses = dict(zip(containers, pool.map(kill_after, containers, delays), strict=True))
        stop.set()
        assert seen.result(LONGEST_S) > 0
    assert program.call("DEL", "last", given=given) == DONE

    assert set(statuses.values()) <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in statuses.values()
    done = {container for container, status in statuses.items() if status == 0}
    recorded = [
        decode_request(record).environment["CNI_CONTAINERID"] for record in program.records()
    ]
    assert done | {"first", "last"} <= set(recorded)
    assert len(recorded) == len(set(recorded))
    # What a killed program has left under the one other name is gone with the last call.
    assert len(names(program.queue)) == len(recorded)


# Where no record can be left


def test_a_full_queue_takes_no_more(program: Program) -> None:
    program.queue.mkdir(parents=True)
    for number in range(RECORDS - 1):
        (program.queue / f"{number:020}-1.del").touch()
    for other in ("README", ".new", "del", "x.bad"):
        (program.queue / other).touch()
    assert program.call("DEL") == DONE
    answer = program.call("DEL")
    assert answer.error() == (
        11,
        "DEL of interface eth0, container c1: the node agent does not answer, and "
        f"{QUEUE} is full.",
    )
    assert "it empties the queue" in json.loads(answer.output)["details"]
    assert len(program.records()) == RECORDS


def error_of_del(program: Program, **call: Any) -> str:
    """Why a DEL could not be recorded."""
    code, message = program.call("DEL", **call).error()
    about = "DEL of interface eth0, container c1: the node agent does not answer, and "
    assert code == 11 and message.startswith(f"{about}{QUEUE} cannot be written: ")
    return message.removeprefix(f"{about}{QUEUE} cannot be written: ")


def test_a_full_disk_is_reported_and_nothing_stays_on_it(program: Program) -> None:
    (program.directory / "lib").mkdir()
    full = (
        *("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))),
        *("sh", "-c", 'mount -t tmpfs -o size=32k tmpfs lib; "$0"; s=$?; ls -A "$1" >&2; exit $s'),
    )
    process = program.start("DEL", argv=full, after=(QUEUE,))
    answer = finish(process, bytes(100_000))
    assert answer.error()[1].endswith("cannot be written: No space left on device.")
    assert answer.talk == b""


def test_a_limit_on_files_is_reported_and_nothing_is_left(program: Program) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (1000, 1000))
    assert error_of_del(program, given=bytes(2000), preexec_fn=limit) == "File too large."
    assert names(program.queue) == []


def test_a_queue_that_is_a_link_is_not_followed(program: Program, tmp_path: Path) -> None:
    program.queue.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    program.queue.symlink_to(tmp_path / "elsewhere")
    assert error_of_del(program) == "Not a directory."
    assert names(tmp_path / "elsewhere") == []


def test_a_lock_file_that_is_a_link_is_not_followed(program: Program, tmp_path: Path) -> None:
    program.queue.mkdir(parents=True)
    program.lock.symlink_to(tmp_path / "elsewhere")
    # So it is called by one C library and the other.
    links = ("Too many levels of symbolic links.", "Symbolic link loop.")
    assert error_of_del(program) in links
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_in_the_way_of_a_record_is_replaced_and_not_followed(
    program: Program, tmp_path: Path
) -> None:
    program.queue.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("mine")
    (program.queue / ".new").symlink_to(tmp_path / "elsewhere")
    assert program.call("DEL") == DONE
    (program.queue / ".new").write_bytes(bytes(5000))
    assert program.call("DEL") == DONE
    assert program.records() == [encode_request(request("DEL"))] * 2
    assert (tmp_path / "elsewhere").read_text() == "mine"
    (program.queue / ".new").mkdir()
    assert error_of_del(program) == "Is a directory."


def test_a_queue_that_is_a_file_is_reported(program: Program) -> None:
    program.queue.parent.mkdir(parents=True)
    program.queue.touch()
    assert error_of_del(program) == "Not a directory."


def test_a_way_to_the_queue_that_is_a_file_is_reported(program: Program) -> None:
    (program.directory / "lib").touch()
    assert error_of_del(program) == "Not a directory."
