"""The heat map: what a trace becomes, and that a damaged or hostile one does no harm."""

import base64
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storvirt.placement.heat import HeatMap, Part, Read, collect, decode, encode, parse_trace
from tenancy.errors import InvalidRequest, VerificationFailed

reads = st.lists(st.builds(Read, st.integers(0, 10**6), st.integers(1, 5000)), min_size=1)


def test_a_trace_becomes_reads_and_bytes_by_part_in_the_order_of_first_use() -> None:
    found = collect("ab1", 100, 7, [Read(250, 10), Read(0, 5), Read(90, 20), Read(255, 1)])

    assert found == HeatMap(
        image_id="ab1",
        part_bytes=100,
        at=7,
        parts={0: Part(2, 15, 1), 1: Part(1, 10, 2), 2: Part(2, 11, 0)},
    )
    assert (found.reads, found.bytes, found.first_share) == (5, 36, 0.4)


@given(trace=reads, part=st.integers(500, 10**5))
def test_the_text_holds_the_whole_map(trace: list[Read], part: int) -> None:
    found = collect("id", part, 1, trace)

    assert decode("vms/red/x", encode(found)) == found
    assert found.bytes == sum(read.length for read in trace)


@given(text=st.text(max_size=80) | st.text(max_size=80).map("1:".__add__))
def test_what_is_no_map_is_one_sentence(text: str) -> None:
    with pytest.raises(VerificationFailed, match="heat map of vms/red/x can't be read"):
        decode("vms/red/x", text)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        {"id": "a", "part": 0, "at": 1, "parts": [[0, 1, 1, 0]]},
        {"id": "a", "part": 4, "at": 1, "parts": []},
        {"id": "a", "part": 4, "at": 1, "parts": [[-1, 1, 1, 0]]},
        {"id": "a", "part": 4, "at": 1, "parts": [[0, 0, 1, 0]]},
        {"id": "a", "part": 4, "at": 1, "parts": [[0, 1]]},
    ],
)
def test_a_map_that_makes_no_sense_is_refused(document: Any) -> None:
    text = "1:" + base64.b85encode(zlib.compress(json.dumps(document).encode())).decode()

    with pytest.raises(VerificationFailed):
        decode("vms/red/x", text)


def test_a_text_that_unpacks_to_very_much_is_cut_off() -> None:
    bomb = "1:" + base64.b85encode(zlib.compress(b" " * 50_000_000)).decode()

    with pytest.raises(VerificationFailed):
        decode("vms/red/x", bomb)


def test_a_trace_file_is_read_line_by_line() -> None:
    text = "# boot\n0 4096\n\n8192   512 # second\n"

    assert parse_trace("t", text, 10000) == [Read(0, 4096), Read(8192, 512)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no read"),
        ("0", "line 1: '0' is not"),
        ("0 1\nx y", "line 2: 'x y' is not"),
        ("-1 5", "not within the image's 100"),
        ("0 0", "not within the image's 100"),
        ("90 11", "not within the image's 100"),
    ],
)
def test_a_trace_file_with_a_fault_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_trace("t", text, 100)


def test_a_trace_of_more_than_a_boot_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="touches 20000 parts"):
        collect("id", 1, 1, [Read(0, 20000)])
