"""The CNI program and the agent's answers, good and bad, present and absent.

Every test is run with the program as it is shipped, but for paths and times, and with one that
address and undefined-behaviour sanitizers watch. What becomes of DELs is in another file.
"""

import ctypes
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netvirt.cni.frames import (
    MAGIC,
    MAX_ENVIRONMENT_BYTES,
    MAX_INPUT_BYTES,
    MAX_OUTPUT_BYTES,
    Reply,
    encode_reply,
    encode_request,
)
from tests.unit import cni_program
from tests.unit.cni_program import (
    CONFIGURATION,
    KINDS,
    OWN_VERSIONS,
    RESULT,
    SOCKET,
    VERBS,
    Answer,
    Behaviour,
    Program,
    agent,
    built,
    finish,
    hangs,
    listen,
    receive,
    request,
    says,
)


@pytest.fixture(params=KINDS)
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    return built(request.param, "patient", tmp_path)


@pytest.fixture(params=KINDS)
def hasty(request: pytest.FixtureRequest, tmp_path: Path) -> Program:
    return built(request.param, "hasty", tmp_path)


def header(first: int, second: int) -> bytes:
    return MAGIC + struct.pack("!II", first, second)


# What is asked, and what is answered


@pytest.mark.parametrize("reply", [RESULT, Reply(status=1, output=b"{}"), Reply(status=0)])
def test_what_the_runtime_gave_is_asked_and_what_the_agent_says_is_answered(
    program: Program, reply: Reply
) -> None:
    heard: list[bytes] = []
    with agent(program, says(reply, heard)):
        answers = [program.call(verb) for verb in VERBS]
    assert answers == [Answer(status=reply.status, output=reply.output)] * len(VERBS)
    assert heard == [encode_request(request(verb)) for verb in VERBS]


def test_the_environment_is_passed_on_byte_by_byte(program: Program) -> None:
    variables = [
        b"CNI_COMMAND=ADD",
        b"PATH=/bin",
        b"CNI_ARGS=A=1;B=\xff\xfe\x01\n\t \"';=",
        b"CNI_=",
        b"CNI_ARGS=once more",
        b"CNI",
        b"CNI_NOT_A_VARIABLE",
        b"XCNI_ARGS=x",
        b"CNIARGS=x",
        b"cni_args=x",
        b"CNI_\xc3\xa4=\xc3",
    ]
    # No other way leads past the care that libraries take.
    execve = ctypes.CDLL(None).execve
    argv = (ctypes.c_char_p * 2)(os.fsencode(program.path), None)
    envp = (ctypes.c_char_p * (len(variables) + 1))(*variables, None)
    heard: list[bytes] = []
    with agent(program, says(RESULT, heard)):
        program.call("ADD", preexec_fn=lambda: execve(argv[0], argv, envp))
    expected = b"".join(
        variable + b"\0"
        for variable in variables
        if variable.startswith(b"CNI_") and b"=" in variable
    )
    assert heard == [header(len(expected), len(CONFIGURATION)) + expected + CONFIGURATION]


def test_the_input_is_passed_on_whole_however_it_comes(program: Program) -> None:
    given = random.Random(1).randbytes(MAX_INPUT_BYTES)
    heard: list[bytes] = []

    def slow(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        says(RESULT, heard)(connection)

    with agent(program, slow):
        process = program.start("ADD")
        assert process.stdin
        for piece in (given[:1], given[1:4000], given[4000:4001]):
            process.stdin.write(piece)
            process.stdin.flush()
            time.sleep(0.01)
        assert finish(process, given[4001:]).output == RESULT.output
    assert heard == [encode_request(request("ADD", given=given))]


def test_no_input_is_an_input(program: Program) -> None:
    heard: list[bytes] = []
    with agent(program, says(RESULT, heard)):
        assert program.call("ADD", given=b"").status == 0
        assert program.call("ADD", stdin=subprocess.DEVNULL, given=b"").status == 0
    assert heard == [encode_request(request("ADD", given=b""))] * 2


def test_a_reply_is_answered_whole_however_it_comes(program: Program) -> None:
    def drips(connection: socket.socket) -> None:
        receive(connection)
        for byte in encode_reply(RESULT):
            connection.sendall(bytes([byte]))

    with agent(program, drips):
        assert program.call("ADD") == Answer(status=0, output=RESULT.output)


def test_the_longest_reply_is_answered_whole(program: Program) -> None:
    reply = Reply(status=0, output=random.Random(2).randbytes(MAX_OUTPUT_BYTES))
    with agent(program, says(reply)):
        assert program.call("ADD") == Answer(status=0, output=reply.output)


def test_an_agent_may_refuse_before_it_has_read_all(program: Program) -> None:
    refusal = Reply(status=1, output=b'{"code":7}')

    def refuses(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(encode_reply(refusal))

    with agent(program, refuses):
        answer = program.call("ADD", given=bytes(MAX_INPUT_BYTES))
    assert answer == Answer(status=1, output=refusal.output)


def test_many_ask_at_once_and_each_gets_its_own_answer(program: Program) -> None:
    def echoes(connection: socket.socket) -> None:
        connection.sendall(encode_reply(Reply(status=0, output=receive(connection))))

    with agent(program, echoes):
        processes = [program.start("ADD", f"c{number}") for number in range(40)]
        answers = [finish(process) for process in processes]
    assert [answer.output for answer in answers] == [
        encode_request(request("ADD", f"c{number}")) for number in range(40)
    ]


# Agents that are not there, or not well


def closes_at_once(connection: socket.socket) -> None:
    del connection


def reads_and_closes(connection: socket.socket) -> None:
    receive(connection)


def says_a_half_and_hangs(connection: socket.socket) -> None:
    says(encode_reply(RESULT)[:-1])(connection)
    hangs(connection)


NOBODY = "no node agent at run/cni.sock: "
SILENT = "the node agent at run/cni.sock does not answer: "
GARBLED = "the node agent's answer is not understood."
# How an agent behaves, and what is found out about it. Of those that are waited for, the hasty
# program has had enough before long.
ILL_PATIENT: dict[str, tuple[Behaviour, str]] = {
    "reads and closes": (reads_and_closes, f"{SILENT}it closed the connection."),
    "speaks HTTP": (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), GARBLED),
    "is of another version": (says(MAGIC[:-1] + b"\x02" + bytes(8)), GARBLED),
    "says half a header": (says(header(0, 0)[:10]), GARBLED),
    "says half a reply": (says(encode_reply(RESULT)[:-1]), GARBLED),
    "says too much": (says(header(0, MAX_OUTPUT_BYTES + 1) + bytes(2**20 + 1)), GARBLED),
    "announces far too much": (says(header(0, 2**32 - 1)), GARBLED),
    "adds something": (says(encode_reply(RESULT) + b"\n"), GARBLED),
    "has another status": (says(header(2, 0)), GARBLED),
}
ILL_HASTY: dict[str, tuple[Behaviour, str]] = {
    "closes at once": (closes_at_once, f"{NOBODY}it went away."),
    "hangs": (hangs, f"{SILENT}it took too long."),
    "says half a reply and hangs": (says_a_half_and_hangs, f"{SILENT}it took too long."),
}


def check_every_verb(program: Program, why: str) -> None:
    """With an agent that is no good, there is an answer for every verb."""
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(VERBS, pool.map(program.call, VERBS), strict=True))
    assert answers.pop("DEL") == Answer(status=0)
    assert program.records() == [encode_request(request("DEL"))]
    version = answers.pop("VERSION")
    assert (version.status, json.loads(version.output)) == (0, OWN_VERSIONS)
    about = ("ADD of interface eth0, container c1", "CHECK of interface eth0, container c1")
    assert {verb: answer.error() for verb, answer in answers.items()} == {
        "ADD": (11, f"{about[0]}: {why}"),
        "CHECK": (11, f"{about[1]}: {why}"),
        "GC": (11, f"GC: {why}"),
        "STATUS": (50, f"STATUS: {why}"),
    }
    assert not any(answer.talk for answer in answers.values())


@pytest.mark.parametrize("agents", ILL_PATIENT)
def test_every_verb_with_an_agent_that(program: Program, agents: str) -> None:
    behaviour, why = ILL_PATIENT[agents]
    with agent(program, behaviour):
        check_every_verb(program, why)


@pytest.mark.parametrize("agents", ILL_HASTY)
def test_every_verb_before_long_with_an_agent_that(hasty: Program, agents: str) -> None:
    behaviour, why = ILL_HASTY[agents]
    with agent(hasty, behaviour):
        check_every_verb(hasty, why)


def test_every_verb_without_an_agent(hasty: Program) -> None:
    check_every_verb(hasty, f"{NOBODY}No such file or directory.")


def test_every_verb_with_a_socket_that_nobody_listens_on(hasty: Program) -> None:
    listen(hasty).close()
    check_every_verb(hasty, f"{NOBODY}Connection refused.")


def test_an_agent_that_stops_reading_is_not_waited_for(hasty: Program) -> None:
    def deaf(connection: socket.socket) -> None:
        gone.wait(cni_program.LONGEST_S)
        del connection

    gone = threading.Event()
    with agent(hasty, deaf):
        code, message = hasty.call("ADD", given=bytes(MAX_INPUT_BYTES)).error()
        gone.set()
    assert (code, message.partition(": ")[2]) == (11, f"{SILENT}it took too long.")


def test_only_an_add_waits_for_an_agent_that_is_restarted(program: Program) -> None:
    process = program.start("ADD")
    assert program.call("CHECK").error()[0] == 11
    assert process.poll() is None
    with agent(program, says(RESULT)):
        assert finish(process) == Answer(status=0, output=RESULT.output)


def test_an_add_that_nobody_has_read_is_asked_again(program: Program) -> None:
    heard: list[bytes] = []
    with listen(program) as listener:
        process = program.start("ADD")
        assert process.stdin
        process.stdin.write(CONFIGURATION)
        process.stdin.close()
        process.stdin = None
        listener.settimeout(cni_program.LONGEST_S)
        with listener.accept()[0] as connection:
            # It leaves the rest unread, as an agent does that is killed.
            assert connection.recv(20)
    with agent(program, says(RESULT, heard)):
        assert finish(process, b"") == Answer(status=0, output=RESULT.output)
    assert heard == [encode_request(request("ADD"))]


def test_an_add_that_may_have_been_read_is_asked_once(program: Program) -> None:
    heard: list[bytes] = []
    with agent(program, says(b"", heard)):
        assert program.call("ADD").error()[0] == 11
    assert heard == [encode_request(request("ADD"))]


def test_a_busy_agent_is_waited_for(program: Program) -> None:
    with listen(program, backlog=0) as listener:
        listener.settimeout(cni_program.LONGEST_S)
        processes = [program.start("CHECK", stdin=subprocess.DEVNULL) for _ in range(4)]
        time.sleep(0.1)
        for _ in processes:
            with listener.accept()[0] as connection:
                says(RESULT)(connection)
        answers = [finish(process, b"") for process in processes]
    assert answers == [Answer(status=0, output=RESULT.output)] * 4


def test_an_agent_that_is_busy_for_too_long_is_not_waited_for(hasty: Program) -> None:
    with listen(hasty, backlog=0) as listener:
        processes = [hasty.start("CHECK", stdin=subprocess.DEVNULL) for _ in range(4)]
        errors = [finish(process, b"").error() for process in processes]
        assert listener.fileno() >= 0
    assert {code for code, _ in errors} == {11}


# Runtimes that are not well


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_too_large_an_input_is_refused(program: Program, verb: str) -> None:
    answer = program.call(verb, given=bytes(MAX_INPUT_BYTES + 1))
    assert answer.error() == (
        6,
        f"{verb} of interface eth0, container c1: the network configuration exceeds 1 MiB.",
    )
    with Path("/dev/zero").open("rb") as endless:
        assert program.call(verb, stdin=endless, given=b"").error()[0] == 6
    assert not program.records()


def test_the_largest_environment_is_passed_on_and_no_larger(program: Program) -> None:
    variables = request("ADD").environment
    left = MAX_ENVIRONMENT_BYTES - len(encode_request(request("ADD", given=b""))) + 16
    value = "x" * (left - len("CNI_ARGS=") - 1)
    heard: list[bytes] = []
    with agent(program, says(RESULT, heard)):
        assert program.call("ADD", env={**variables, "CNI_ARGS": value}).status == 0
        refused = program.call("ADD", env={**variables, "CNI_ARGS": value + "x"})
    assert [len(frame) for frame in heard] == [16 + MAX_ENVIRONMENT_BYTES + len(CONFIGURATION)]
    assert refused.error() == (
        4,
        "ADD of interface eth0, container c1: the variables CNI_... exceed 64 KiB.",
    )


def test_an_input_that_does_not_end_is_not_waited_for(hasty: Program) -> None:
    reading, writing = os.pipe()
    answer = hasty.call("ADD", stdin=reading, given=b"")
    os.close(reading)
    os.close(writing)
    code, message = answer.error()
    assert code == 5
    assert "cannot be read from standard input: it took too long." in message


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (None, "not set"),
        ("", ""),
        ("add", "add"),
        ("ADDED", "ADDED"),
        ('A"D\\D\n\x01\x7f', 'A"D\\D\n\x01\x7f'),
        ("x" * 100_000, "x" * 700),
        ("\n" * 100_000, "\n" * 100),
    ],
)
def test_a_command_that_is_none_is_refused_with_an_explanation(
    program: Program, command: str | None, named: str
) -> None:
    answer = program.call(command)
    code, message = answer.error()
    assert (code, answer.output.count(b"\n")) == (4, 1)
    assert message.startswith(f"CNI_COMMAND is {named}")
    assert message.endswith(", and has to be ADD, CHECK, DEL, GC, STATUS or VERSION.")
    assert "CNI plugin, to be called by a container runtime" in json.loads(answer.output)["details"]


def test_what_is_not_ascii_does_not_break_a_message(program: Program) -> None:
    answer = program.call("CHECK", env={"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": "c\udcff\udcc3"})
    assert answer.error() == (
        11,
        f"CHECK of interface (none), container c\ufffd\ufffd: {NOBODY}No such file or directory.",
    )


CLOSED = {"<&-": 5, "2>&-": 0, "<&- 2>&-": 5, "<&- >&- 2>&-": None, ">&-": None, ">&- 2>&-": None}


@pytest.mark.parametrize("closed", CLOSED)
def test_standard_descriptors_may_be_closed(program: Program, closed: str) -> None:
    code = CLOSED[closed]
    shell = ("sh", "-c", f'exec "$0" {closed}')
    with agent(program, says(RESULT)):
        answer = program.call("ADD", argv=shell)
    if code is None:
        assert (answer.status, answer.output) == (1, b"")
    elif code:
        assert answer.error()[0] == code
    else:
        assert answer == Answer(status=0, output=RESULT.output)


def test_an_answer_that_cannot_be_written_is_a_failure(program: Program) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with agent(program, says(RESULT)), Path("/dev/full").open("wb") as full:
        answers = [program.call("ADD", stdout=end) for end in (writing, full)]
    os.close(writing)
    talk = b"virtkit-cni: the answer cannot be written to standard output.\n"
    assert answers == [Answer(status=1, talk=talk)] * 2


def test_a_runtime_that_reads_nothing_is_not_waited_for(hasty: Program) -> None:
    reading, writing = os.pipe()
    with agent(hasty, says(Reply(status=0, output=bytes(MAX_OUTPUT_BYTES)))):
        answer = hasty.call("ADD", stdout=writing)
    os.close(writing)
    os.close(reading)
    assert answer.status == 1


def test_being_stopped_and_continued_changes_nothing(program: Program) -> None:
    asked, told = threading.Event(), threading.Event()

    def waits(connection: socket.socket) -> None:
        frame = receive(connection)
        asked.set()
        told.wait(cni_program.LONGEST_S)
        connection.sendall(encode_reply(Reply(status=0, output=frame)))

    with agent(program, waits):
        process = program.start("ADD")
        for number in range(20):
            process.send_signal(signal.SIGSTOP)
            process.send_signal(signal.SIGCONT)
            if number == 10:
                assert process.stdin
                process.stdin.write(CONFIGURATION)
                process.stdin.close()
                process.stdin = None
                assert asked.wait(cni_program.LONGEST_S)
        told.set()
        assert finish(process, b"").output == encode_request(request("ADD"))


def test_whoever_calls_it_by_hand_is_told_what_it_is(program: Program) -> None:
    version = program.call(None, argv=()).output
    assert b"--help" in version

    def by_hand(argument: str) -> Answer:
        shell = ("sh", "-c", f'exec "$0" {argument}')
        return program.call(None, argv=shell, given=b"")

    assert re.fullmatch(rb"virtkit-cni \d+\.\d+\.\d+\n", by_hand("--version").output)
    told = by_hand("--help")
    assert told.status == 0 and told.output.count(b"\n") > 5
    assert SOCKET.encode() in told.output
    wrong = by_hand("--hepl")
    assert (wrong.status, wrong.output, wrong.talk.count(b"\n")) == (2, b"", 1)


# How it is built


def readelf(option: str, path: Path) -> str:
    done = subprocess.run(
        ["readelf", "--wide", option, path], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_program_that_is_shipped_needs_nothing_and_is_hardened() -> None:
    cni_program.make("build/virtkit-cni")
    shipped = cni_program.REPOSITORY / "build/virtkit-cni"
    segments, dynamic = readelf("--segments", shipped), readelf("--dynamic", shipped)
    assert "INTERP" not in segments and "(NEEDED)" not in dynamic
    assert "Elf file type is DYN" in segments and re.search(r"FLAGS_1\).* PIE", dynamic)
    assert re.search(r"FLAGS\).*BIND_NOW", dynamic) and "GNU_RELRO" in segments
    assert re.search(r"GNU_STACK +\S+ \S+ \S+ \S+ \S+ RW +0x", segments)
    assert not re.search(r"LOAD .* RWE ", segments)
    symbols = readelf("--syms", shipped)
    assert "__stack_chk_fail" in symbols
    assert shipped.stat().st_size < 100_000
    told = subprocess.run([shipped, "--help"], capture_output=True, text=True, check=True).stdout
    assert "/run/virtkit/cni.sock" in told and "/var/lib/virtkit/cni/queue" in told


def test_it_is_built_again_only_when_something_has_changed() -> None:
    cni_program.make("build/virtkit-cni")
    shipped = cni_program.REPOSITORY / "build/virtkit-cni"
    before = shipped.stat().st_mtime_ns
    cni_program.make("build/virtkit-cni")
    assert shipped.stat().st_mtime_ns == before


# Replies at random


@pytest.mark.parametrize("seed", [20240229, random.SystemRandom().randrange(2**31)])
def test_no_reply_upsets_it(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    fuzzer = cni_program.fuzzer()
    done = subprocess.run(
        [fuzzer, "5000", str(seed)],
        cwd=tmp_path,
        env=cni_program.SANITIZER_OPTIONS,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    said = done.stderr.splitlines()
    assert len(said) > 3
    for line in said:
        if (answer := json.loads(line)) != OWN_VERSIONS:
            assert answer["code"] == (50 if answer["msg"].startswith("STATUS") else 11)
