"""The frames between the CNI program and the agent: whole, in pieces, and none at all."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netvirt.cni.frames import (
    HEADER_BYTES,
    MAGIC,
    MAX_ENVIRONMENT_BYTES,
    MAX_INPUT_BYTES,
    MAX_OUTPUT_BYTES,
    MAX_REQUEST_BYTES,
    BadMagic,
    FrameError,
    Malformed,
    Reply,
    ReplyReader,
    Request,
    RequestReader,
    TooLarge,
    decode_request,
    encode_reply,
    encode_request,
)

REQUEST = Request(
    environment={"CNI_COMMAND": "ADD", "CNI_ARGS": "A=1;B=\udcff", "CNI_PATH": ""},
    input=b'{"name": "virtkit"}',
)
# Written out by hand: what the C program sends.
REQUEST_FRAME = (
    b"VKCNI\0\0\x01"
    b"\x00\x00\x00\x2b"
    b"\x00\x00\x00\x13"
    b"CNI_COMMAND=ADD\0CNI_ARGS=A=1;B=\xff\0CNI_PATH=\0"
    b'{"name": "virtkit"}'
)


def header(first: int, second: int) -> bytes:
    return MAGIC + struct.pack("!II", first, second)


def test_a_request_is_these_bytes() -> None:
    assert encode_request(REQUEST) == REQUEST_FRAME
    assert decode_request(REQUEST_FRAME) == REQUEST


def test_a_reply_is_these_bytes() -> None:
    reply = Reply(status=1, output=b"{}")
    assert encode_reply(reply) == b"VKCNI\0\0\x01\0\0\0\x01\0\0\0\x02{}"
    assert ReplyReader().feed(encode_reply(reply)) == reply


NAMES = st.from_regex(r"CNI_[A-Z]{0,8}", fullmatch=True)
VALUES = st.binary(max_size=20).map(
    lambda value: value.replace(b"\0", b"").decode(errors="surrogateescape")
)
REQUESTS = st.builds(
    lambda environment, given: Request(environment=environment, input=given),
    st.dictionaries(NAMES, VALUES, max_size=5),
    st.binary(max_size=50),
)


def pieces(frame: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(frame), *(cut % (len(frame) + 1) for cut in cuts)})
    return [frame[begin:end] for begin, end in itertools.pairwise(at)]


@given(REQUESTS, st.lists(st.integers(0, 10_000), max_size=8))
def test_a_request_arrives_whole_however_it_is_cut(request: Request, cuts: list[int]) -> None:
    reader = RequestReader()
    arrived = [reader.feed(piece) for piece in pieces(encode_request(request), cuts)]
    assert arrived[:-1] == [None] * (len(arrived) - 1)
    assert arrived[-1] == request


@given(st.integers(0, 1), st.binary(max_size=50), st.lists(st.integers(0, 10_000), max_size=8))
def test_a_reply_arrives_whole_however_it_is_cut(
    status: int, output: bytes, cuts: list[int]
) -> None:
    reader, reply = ReplyReader(), Reply(status=status, output=output)
    arrived = [reader.feed(piece) for piece in pieces(encode_reply(reply), cuts)]
    assert arrived[-1] == reply and not any(arrived[:-1])


@given(st.binary(max_size=200))
def test_no_bytes_upset_a_reader(data: bytes) -> None:
    for reader in (RequestReader(), ReplyReader()):
        for start in (b"", MAGIC):
            try:
                reader.feed(start + data)
            except FrameError as error:
                assert str(error).endswith(".")


@pytest.mark.parametrize("length", range(1, len(MAGIC) + 1))
def test_a_bad_magic_is_known_by_its_first_wrong_byte(length: int) -> None:
    good = MAGIC[: length - 1]
    assert RequestReader().feed(good) is None
    with pytest.raises(BadMagic):
        RequestReader().feed(good + b"\x7f")


def test_another_version_is_named() -> None:
    with pytest.raises(BadMagic, match="version 2 of the protocol, and this is version 1"):
        RequestReader().feed(MAGIC[:-1] + b"\x02")


def test_the_largest_request_and_reply_are_taken() -> None:
    name = "CNI_ARGS"
    value = "x" * (MAX_ENVIRONMENT_BYTES - len(name) - 2)
    request = Request(environment={name: value}, input=bytes(MAX_INPUT_BYTES))
    frame = encode_request(request)
    assert len(frame) == MAX_REQUEST_BYTES
    assert decode_request(frame) == request
    reply = Reply(status=0, output=bytes(MAX_OUTPUT_BYTES))
    assert ReplyReader().feed(encode_reply(reply)) == reply


@pytest.mark.parametrize(
    ("environment", "given"),
    [(MAX_ENVIRONMENT_BYTES + 1, 0), (0, MAX_INPUT_BYTES + 1), (2**32 - 1, 2**32 - 1)],
)
def test_too_large_a_request_is_refused_by_its_header(environment: int, given: int) -> None:
    with pytest.raises(TooLarge, match=r"has \d+ bytes, and may have"):
        RequestReader().feed(header(environment, given))


def test_too_large_a_reply_is_refused_by_its_header() -> None:
    with pytest.raises(TooLarge):
        ReplyReader().feed(header(0, MAX_OUTPUT_BYTES + 1))


def test_nothing_too_large_is_sent() -> None:
    with pytest.raises(TooLarge):
        encode_request(Request(environment={}, input=bytes(MAX_INPUT_BYTES + 1)))
    with pytest.raises(TooLarge):
        encode_request(Request(environment={"CNI_ARGS": "x" * MAX_ENVIRONMENT_BYTES}))
    with pytest.raises(TooLarge):
        encode_reply(Reply(status=0, output=bytes(MAX_OUTPUT_BYTES + 1)))


@pytest.mark.parametrize("status", [2, 255, 2**32 - 1])
def test_an_exit_status_is_0_or_1(status: int) -> None:
    with pytest.raises(Malformed, match="neither 0 nor 1"):
        ReplyReader().feed(header(status, 0))
    with pytest.raises(Malformed):
        encode_reply(Reply(status=status))


def test_nothing_follows_a_request() -> None:
    frame = encode_request(REQUEST)
    with pytest.raises(Malformed, match="1 bytes follow"):
        RequestReader().feed(frame + b"x")
    reader = RequestReader()
    assert reader.feed(frame) == REQUEST
    assert reader.feed(b"") is None
    with pytest.raises(Malformed, match="follows"):
        reader.feed(b"x")


@pytest.mark.parametrize(
    "environment", [b"CNI_ARGS=x", b"CNI_ARGS\0", b"PATH=/bin\0", b"CNI_A=1\0\0", b"\0"]
)
def test_an_environment_holds_variables_of_cni(environment: bytes) -> None:
    with pytest.raises(Malformed, match="environment"):
        RequestReader().feed(header(len(environment), 0) + environment)


def test_of_two_variables_with_one_name_the_first_counts() -> None:
    environment = b"CNI_IFNAME=eth0\0CNI_IFNAME=eth1\0"
    request = RequestReader().feed(header(len(environment), 0) + environment)
    assert request == Request(environment={"CNI_IFNAME": "eth0"})


@pytest.mark.parametrize(
    ("name", "value"), [("PATH", ""), ("CNI_A=B", ""), ("CNI_A", "a\0b"), ("CNI_A", "\ud800")]
)
def test_what_is_no_variable_is_not_sent(name: str, value: str) -> None:
    with pytest.raises(Malformed):
        encode_request(Request(environment={name: value}))


def test_a_request_cut_short_is_none() -> None:
    frame = encode_request(REQUEST)
    for length in (0, 1, HEADER_BYTES, len(frame) - 1):
        with pytest.raises(Malformed, match="cut short"):
            decode_request(frame[:length])
