"""What decides about an export: notes that were left, names, and where a block has data."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storvirt import exports
from storvirt.exports import ExportFormat, Note
from tenancy.errors import InvalidRequest

NOTE = Note(
    tenant="red",
    image="80771def-bf99-4aaa-9d0b-000000000000",
    name="disk",
    snapshot="export-1",
    owned=True,
    format=ExportFormat.RAW,
    size_bytes=1 << 30,
    done=1 << 20,
)


def test_a_note_is_read_as_it_was_written() -> None:
    assert exports.decode(exports.encode(NOTE)) == NOTE


@given(st.binary(max_size=200))
def test_no_text_at_all_is_more_than_no_note(text: bytes) -> None:
    assert exports.decode(text) is None


def test_a_note_that_says_more_than_the_whole_is_no_note() -> None:
    assert exports.decode(exports.encode(NOTE).replace(b"1048576", b"1073741825")) is None


@given(st.lists(st.sampled_from([b"\0" * 7, b"\0" * 9, b"a", b"bc\0"]), max_size=30))
def test_the_runs_of_a_block_hold_all_that_is_not_zero(pieces: list[bytes]) -> None:
    block = b"".join(pieces)
    rebuilt = bytearray(len(block))
    runs = exports.data_runs(block, step=4)

    for first, last in runs:
        rebuilt[first:last] = block[first:last]

    assert bytes(rebuilt) == block
    assert all(one[1] < two[0] for one, two in pairwise(runs))
    assert all(block[first:last].strip(b"\0") for first, last in runs)


def test_the_files_name_tells_the_format_unless_it_is_said() -> None:
    assert exports.format_for(Path("a.qcow2"), None, compress=False) is ExportFormat.QCOW2
    assert exports.format_for(Path("a.img"), None, compress=False) is ExportFormat.RAW
    assert exports.format_for(Path("a.qcow2"), ExportFormat.RAW, compress=False) is ExportFormat.RAW


def test_a_raw_file_cannot_be_compressed() -> None:
    with pytest.raises(InvalidRequest, match="qcow2"):
        exports.format_for(Path("a"), None, compress=True)
