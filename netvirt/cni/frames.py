"""Frames between the CNI program and the agent, version 1 of their protocol. Sans-I/O.

A connection carries one request and one reply. Either is a header of 16 bytes (the magic, two
numbers of 32 bits, big-endian) and what the header announces. Of a request the numbers are the
lengths of the environment (each variable as `NAME=VALUE` and a zero byte) and of the input; of a
reply they are the exit status and the length of the output. `plugins/cni/frame.h` says the same
in C. A record in the queue of DELs is a request, so it is read by the same reader.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from tenancy.errors import InvalidRequest

_NAME: Final = b"VKCNI\0\0"
_VERSION: Final = 1
MAGIC: Final = _NAME + bytes([_VERSION])
MAX_ENVIRONMENT_BYTES: Final = 64 * 1024
MAX_INPUT_BYTES: Final = 1024 * 1024
MAX_OUTPUT_BYTES: Final = 1024 * 1024

_HEADER = struct.Struct("!8sII")
HEADER_BYTES: Final = _HEADER.size
# The longest request there is: more than this need not be read from anywhere.
MAX_REQUEST_BYTES: Final = HEADER_BYTES + MAX_ENVIRONMENT_BYTES + MAX_INPUT_BYTES

_PREFIX = b"CNI_"
# Environment variables are bytes; os.environ turns them into text in this way, and back.
_ENCODING, _ERRORS = "utf-8", "surrogateescape"


class FrameError(InvalidRequest):
    """What arrived is no frame of this protocol: close the connection. The message says why."""


class BadMagic(FrameError):
    """It does not begin as a frame does, or is of another version of the protocol."""


class TooLarge(FrameError):
    """Its header announces more than the protocol allows."""


class Malformed(FrameError):
    """Its parts are not what they have to be, or something follows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a runtime called the program with.

    `environment` holds the variables named `CNI_...`, in their order; bytes that are not UTF-8
    are surrogates, as in `os.environ`. `input` is the network configuration, unread.
    """

    environment: Mapping[str, str]
    input: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the program is to print, and to exit with: 0, or 1 if `output` is a CNI error."""

    status: int
    output: bytes = b""


class RequestReader:
    """The agent's end: takes what has arrived, however it was cut, and yields the request."""

    def __init__(self) -> None:
        self._frame = _FrameReader("request")

    def feed(self, data: bytes) -> Request | None:
        """The request once it is complete, else None. Raises `FrameError`, as early as it can.

        A fault is found in the header, before anything that it announces has arrived. To feed
        anything but b"" after the request was returned is an error, for nothing may follow it.
        """
        frame = self._frame.feed(data, _request_parts)
        if frame is None:
            return None
        environment, given = frame.parts
        return Request(environment=_parse_environment(environment), input=given)


class ReplyReader:
    """The program's end, for whoever speaks to the agent in Python."""

    def __init__(self) -> None:
        self._frame = _FrameReader("reply")

    def feed(self, data: bytes) -> Reply | None:
        """The reply once it is complete, else None. Raises `FrameError`, as `RequestReader`."""
        frame = self._frame.feed(data, _reply_parts)
        return frame and Reply(status=frame.first, output=frame.parts[0])


def encode_request(request: Request) -> bytes:
    """A request's frame. Raises `TooLarge`, and `Malformed` if a variable cannot be one."""
    environment = b"".join(
        _encode_variable(name, value) for name, value in request.environment.items()
    )
    _request_parts(len(environment), len(request.input))
    return _HEADER.pack(MAGIC, len(environment), len(request.input)) + environment + request.input


def encode_reply(reply: Reply) -> bytes:
    """A reply's frame. Raises `TooLarge`, and `Malformed` for a status that is not 0 or 1."""
    _reply_parts(reply.status, len(reply.output))
    return _HEADER.pack(MAGIC, reply.status, len(reply.output)) + reply.output


def decode_request(frame: bytes) -> Request:
    """The request that a whole frame is. Raises `FrameError`, also for one that is cut short."""
    request = RequestReader().feed(frame)
    if request is None:
        raise Malformed(f"a CNI request is cut short: {len(frame)} bytes are not all of it.")
    return request


# From the two numbers of a header to the lengths of what follows it; raises `FrameError`.
_Parts = Callable[[int, int], tuple[int, ...]]


class _Frame(NamedTuple):
    """`first` is the header's first number."""

    first: int
    parts: list[bytes]


class _FrameReader:
    """Gathers one frame. `parts` of `feed` checks the header and says how long the parts are."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._data = bytearray()
        self._finished = False

    def feed(self, data: bytes, parts: _Parts) -> _Frame | None:
        if self._finished:
            if data:
                raise Malformed(f"something follows a CNI {self._what}: a connection carries one.")
            return None
        self._data += data
        self._check_magic()
        if len(self._data) < HEADER_BYTES:
            return None
        _, first, second = _HEADER.unpack_from(self._data)
        lengths = parts(first, second)
        end = HEADER_BYTES + sum(lengths)
        if len(self._data) > end:
            raise Malformed(
                f"{len(self._data) - end} bytes follow a CNI {self._what}: "
                "a connection carries one."
            )
        if len(self._data) < end:
            return None
        self._finished = True
        found, at = [], HEADER_BYTES
        for length in lengths:
            found.append(bytes(self._data[at : at + length]))
            at += length
        self._data.clear()
        return _Frame(first, found)

    def _check_magic(self) -> None:
        begin = bytes(self._data[: len(MAGIC)])
        if MAGIC.startswith(begin):
            return
        if begin[:-1] == _NAME:
            raise BadMagic(
                f"a CNI {self._what} is of version {begin[-1]} of the protocol, and this is "
                f"version {_VERSION}: install the CNI program and the agent of one release."
            )
        raise BadMagic(f"a CNI {self._what} begins with {begin!r}, not with {MAGIC!r}.")


def _request_parts(environment: int, given: int) -> tuple[int, ...]:
    _check_length("environment", environment, MAX_ENVIRONMENT_BYTES)
    _check_length("input", given, MAX_INPUT_BYTES)
    return environment, given


def _reply_parts(status: int, output: int) -> tuple[int, ...]:
    if status not in (0, 1):
        raise Malformed(f"a CNI reply's exit status is {status}, which is neither 0 nor 1.")
    _check_length("output", output, MAX_OUTPUT_BYTES)
    return (output,)


def _check_length(what: str, found: int, most: int) -> None:
    if found > most:
        raise TooLarge(f"the {what} of a CNI call has {found} bytes, and may have {most}.")


def _encode_variable(name: str, value: str) -> bytes:
    try:
        variable = f"{name}={value}".encode(_ENCODING, _ERRORS)
    except UnicodeEncodeError as error:
        raise Malformed(f"{name!r}, of value {value!r}, cannot be said in bytes.") from error
    if not variable.startswith(_PREFIX) or "=" in name or b"\0" in variable:
        raise Malformed(f"{name!r}, of value {value!r}, is no environment variable of CNI.")
    return variable + b"\0"


def _parse_environment(data: bytes) -> dict[str, str]:
    """The variables. Of two with one name the first counts, as it does for getenv(3)."""
    if data and not data.endswith(b"\0"):
        raise Malformed("the environment of a CNI call does not end with a zero byte.")
    variables: dict[str, str] = {}
    for variable in data[:-1].split(b"\0") if data else ():
        name, equals, value = variable.decode(_ENCODING, _ERRORS).partition("=")
        if not equals or not variable.startswith(_PREFIX):
            raise Malformed(f"the environment of a CNI call holds {variable[:80]!r}.")
        variables.setdefault(name, value)
    return variables
