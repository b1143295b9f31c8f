"""The CNI program built for tests, and an agent for it that behaves as a test says.

Socket and queue of such a build are relative to its working directory, so that one build serves
all tests. One kind is as it is shipped; the other has sanitizers, and glibc with them, for musl
has none. Of each kind there is a patient one, for what has to come to a good end however busy the
machine is, and a hasty one, for what has to come to an end at all.
"""

import json
import os
import shlex
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from netvirt.cni.frames import Reply, Request, RequestReader, encode_reply

REPOSITORY = Path(__file__).parents[2]
SOURCES = REPOSITORY / "plugins/cni"

SOCKET = "run/cni.sock"
QUEUE = "lib/virtkit/cni/queue"
RECORDS = 300
PATIENT_MS = {"VK_TOTAL_MS": 40000, "VK_ANSWER_MS": 30000, "VK_RESTART_MS": 20000}
HASTY_MS = {"VK_TOTAL_MS": 1000, "VK_ANSWER_MS": 500, "VK_RESTART_MS": 250, "VK_VERSION_MS": 250}
PLACES = rf"-DVK_SOCKET=\"{SOCKET}\" -DVK_QUEUE=\"{QUEUE}\" -DVK_QUEUE_RECORDS={RECORDS}"
SANITIZED = (
    "-std=c17 -D_GNU_SOURCE -Wall -Wextra -Werror -O1 -g -fno-omit-frame-pointer "
    "-fsanitize=address,undefined -fno-sanitize-recover=all"
)
# What a sanitizer finds must not pass for an exit status of the program's own.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "exitcode=99:detect_leaks=0",
    "UBSAN_OPTIONS": "exitcode=99:print_stacktrace=1",
}
KINDS = ("hardened", "sanitized")
# No run of the program takes longer, whichever it is and however busy the machine.
LONGEST_S = 60

VERBS = ("ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION")
CONFIGURATION = b'{"cniVersion":"1.0.0","name":"virtkit","type":"virtkit"}'
RESULT = Reply(status=0, output=b'{"cniVersion":"1.0.0","interfaces":[]}')
OWN_VERSIONS = {"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How the program ended, and what it said on standard output and standard error."""

    status: int
    output: bytes = b""
    talk: bytes = b""

    def error(self) -> tuple[int, str]:
        """Code and message of the CNI error object that it has to be."""
        assert self.status == 1, self
        error = json.loads(self.output.decode("ascii"))
        assert list(error) == ["cniVersion", "code", "msg", "details"]
        assert error["cniVersion"] == "1.1.0"
        assert error["msg"].endswith(".") and error["details"].endswith(".")
        return error["code"], error["msg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A build of the program, and the directory that it runs in."""

    path: Path
    directory: Path

    @property
    def queue(self) -> Path:
        return self.directory / QUEUE

    @property
    def lock(self) -> Path:
        return self.queue.with_name("queue.lock")

    def records(self) -> list[bytes]:
        """The records in the queue, oldest first."""
        return [path.read_bytes() for path in sorted(self.queue.glob("*.del"))]

    def start(
        self,
        verb: str | None,
        container: str = "c1",
        *,
        argv: tuple[str, ...] = (),
        after: tuple[str, ...] = (),
        **popen: Any,
    ) -> subprocess.Popen[bytes]:
        """The program, begun; `argv` goes before its path, `after` after, `popen` to `Popen`."""
        given = {"env": environment(verb, container), **popen}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        given["env"] = {**given["env"], **SANITIZER_OPTIONS}
        return subprocess.Popen(
            [*argv, str(self.path), *after], cwd=self.directory, **{**pipes, **given}
        )

    def call(
        self, verb: str | None, container: str = "c1", *, given: bytes = CONFIGURATION, **popen: Any
    ) -> Answer:
        """The program, begun as by `start`, and ended."""
        return finish(self.start(verb, container, **popen), given)


def environment(verb: str | None, container: str = "c1") -> dict[str, str]:
    variables = {"CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0"}
    return {name: value for name, value in variables.items() if value is not None}


def request(verb: str, container: str = "c1", given: bytes = CONFIGURATION) -> Request:
    """What the program is to make of `call` with the same arguments."""
    return Request(environment=environment(verb, container), input=given)


def finish(process: subprocess.Popen[bytes], given: bytes = CONFIGURATION) -> Answer:
    """Write and read what there is to write and read, until the program has ended."""
    with process:
        try:
            output, talk = process.communicate(given, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode in (0, 1, 2), (process.returncode, talk)
    return Answer(status=process.returncode, output=output or b"", talk=talk or b"")


def built(kind: str, pace: str, directory: Path) -> Program:
    """The program of this kind and pace, to run in this directory."""
    return Program(path=_builds()[f"{kind}-{pace}"], directory=directory)


@cache
def _builds() -> Mapping[str, Path]:
    """The programs by name: `hardened-patient`, `hardened-hasty` and so on."""
    directory = Path(_build_directory().name)
    paces = {"patient": PATIENT_MS, "hasty": HASTY_MS}
    paths = {f"{kind}-{pace}": directory / f"{kind}-{pace}" for kind in KINDS for pace in paces}

    def build(name: str) -> None:
        kind, pace = name.split("-")
        times = "".join(f" -D{time}={value}" for time, value in paces[pace].items())
        sanitized = ["CNI_CC=gcc", f"CNI_FLAGS={SANITIZED}", "CNI_START=", "CNI_END="]
        flags = sanitized if kind == "sanitized" else []
        make(f"CNI={paths[name]}", f"CNI_SETTINGS={PLACES}{times}", *flags, str(paths[name]))

    with ThreadPoolExecutor() as pool:
        list(pool.map(build, paths))
    return paths


@cache
def _build_directory() -> tempfile.TemporaryDirectory[str]:
    """It goes when the interpreter does."""
    return tempfile.TemporaryDirectory(prefix="test-cni-program-")


def make(*arguments: str) -> None:
    # Whoever runs a test has an environment to run it in.
    argv = ["make", "--silent", "--old-file=.venv/.ready", *arguments]
    made = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr


def listen(program: Program, *, backlog: int = 1024) -> socket.socket:
    """The agent's socket, in the place of what was there."""
    path = program.directory / SOCKET
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    # A socket's path has to be short, and a test's directory has a long one.
    directory = os.open(path.parent, os.O_PATH)
    listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)
    listener.listen(backlog)
    return listener


Behaviour = Callable[[socket.socket], None]


@contextmanager
def agent(program: Program, behaviour: Behaviour) -> Iterator[None]:
    """An agent until the end of the block; each connection is closed after `behaviour`."""

    def serve(connection: socket.socket) -> None:
        connection.settimeout(LONGEST_S)
        with connection, suppress(ConnectionError):
            behaviour(connection)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=listener.accept()[:1]))
                threads[-1].start()

    with listen(program) as listener:
        threads = [threading.Thread(target=accept, args=[listener])]
        threads[0].start()
        try:
            yield
        finally:
            # Unlike close(2), it wakes whoever is in accept(2).
            listener.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(LONGEST_S)


def receive(connection: socket.socket) -> bytes:
    """A request, as it came; b"" if there was none."""
    reader, frame = RequestReader(), b""
    while data := connection.recv(65536):
        frame += data
        if reader.feed(data):
            return frame
    return b""


def says(reply: Reply | bytes, heard: list[bytes] | None = None) -> Behaviour:
    """An agent that says so to any request, and notes what it was."""
    frame = reply if isinstance(reply, bytes) else encode_reply(reply)

    def behave(connection: socket.socket) -> None:
        frame_heard = receive(connection)
        if heard is not None:
            heard.append(frame_heard)
        connection.sendall(frame)

    return behave


def hangs(connection: socket.socket) -> None:
    """An agent that takes all in and says nothing, until the program has gone."""
    while connection.recv(65536):
        pass


@cache
def fuzzer() -> Path:
    """The program's own code with `plugins/cni/tests/replies.c` around it."""
    directory = Path(_build_directory().name)
    defines = [*shlex.split(f"{SANITIZED} {PLACES}"), "-DVK_RESTART_MS=3"]
    replaced = directory / "connection.o"
    gcc(
        *defines,
        "-Dconnection_open=replaced_connection_open",
        *("-c", SOURCES / "connection.c", "-o", replaced),
    )
    sources = [SOURCES / name for name in ("tests/replies.c", "frame.c", "queue.c", "answer.c")]
    gcc(*defines, *sources, replaced, "-o", directory / "replies")
    return directory / "replies"


def gcc(*arguments: str | Path) -> None:
    built = subprocess.run(["gcc", *arguments], capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
