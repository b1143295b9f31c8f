"""Backup chains: streams, manifests, and what pieces laid over each other make up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storvirt import backups
from storvirt.backups import Manifest, Piece
from storvirt.formats import rbddiff
from storvirt.formats.rbddiff import Stretch
from tenancy.errors import InvalidRequest, VirtkitError


def stream(since: str | None, size: int, writes: list[tuple[int, bytes | int]]) -> bytes:
    text = rbddiff.header(since, "now", size)
    for offset, what in writes:
        if isinstance(what, bytes):
            text += rbddiff.data(offset, len(what)) + what
        else:
            text += rbddiff.hole(offset, what)
    return text + rbddiff.END


def parsed(text: bytes, piece: int = 0) -> rbddiff.Diff:
    return rbddiff.parse("p", lambda at, length: text[at : at + length], len(text), piece)


def test_a_stream_is_read_as_it_was_written() -> None:
    text = stream("before", 100, [(0, b"ab"), (10, 5), (20, b"c")])

    found = parsed(text)

    assert (found.since, found.until, found.size_bytes) == ("before", "now", 100)
    assert [(s.start, s.end, s.at is None) for s in found.stretches] == [
        (0, 2, False),
        (10, 15, True),
        (20, 21, False),
    ]
    assert [text[s.at : s.at + 1] for s in found.stretches if s.at] == [b"a", b"c"]


@given(st.data())
def test_a_stream_that_is_hurt_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    text = bytearray(stream("before", 100, [(0, b"ab"), (10, 5), (20, b"c")]))
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    whole = bytes(text)[: data.draw(st.integers(0, len(text)))]

    try:
        found = parsed(whole)
    except InvalidRequest:
        return
    assert all(stretch.end <= found.size_bytes for stretch in found.stretches)


SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12), st.booleans()), max_size=8)


@given(st.lists(st.tuples(st.integers(1, 64), SPANS), min_size=1, max_size=5))
def test_pieces_laid_over_each_other_are_the_disk_that_was_written(
    pieces: list[tuple[int, list[tuple[int, int, bool]]]],
) -> None:
    disk = bytearray()
    laid: tuple[Stretch, ...] = ()
    for number, (size, spans) in enumerate(pieces, 1):
        laid = backups.overlay(laid, (), min(len(disk), size))
        del disk[size:]
        disk.extend(bytes(size - len(disk)))
        top, reached = [], 0
        for start, length, filled in sorted(spans):
            start = max(start, reached)
            end = min(start + length, size)
            if start >= end:
                continue
            reached = end
            top.append(Stretch(start=start, end=end, piece=number, at=start if filled else None))
            disk[start:end] = bytes([number if filled else 0]) * (end - start)
        laid = backups.overlay(laid, top, size)

    rebuilt = bytearray(len(disk))
    reached = 0
    for stretch in laid:
        assert stretch.start >= reached and stretch.at == stretch.start
        reached = stretch.end
        rebuilt[stretch.start : stretch.end] = bytes([stretch.piece]) * (
            stretch.end - stretch.start
        )
    assert rebuilt == disk


def test_blocks_touched_include_those_that_a_new_size_changes() -> None:
    block = backups.BLOCK_BYTES

    assert backups.touched([(block - 1, block + 1)], 4 * block, 4 * block) == {0, 1}
    assert backups.touched([], 0, 2 * block + 1) == {0, 1, 2}
    assert backups.touched([], 3 * block, block + 5) == {1}
    assert backups.touched([], block + 5, 3 * block) == {1, 2}
    assert backups.touched([], 3 * block, 2 * block) == set()


def piece(number: int, since: str | None) -> Piece:
    return Piece(
        number=number,
        file=backups.file_name(number, full=since is None),
        since=since,
        until=f"s{number}",
        size_bytes=1,
        file_bytes=1,
        sha256="",
        content="",
        taken="",
    )


def manifest(*pieces: Piece) -> Manifest:
    return Manifest(chain="c", tenant="t", image="i", image_id="u", next=9, pieces=pieces)


def test_a_manifest_is_read_as_it_was_written() -> None:
    whole = manifest(piece(1, None), piece(2, "s1"))

    assert backups.decode("m", backups.encode(whole)) == whole


@pytest.mark.parametrize(
    "broken", [manifest(piece(2, "s1")), manifest(piece(1, None), piece(3, "s2"))]
)
def test_a_manifest_with_a_gap_is_refused(broken: Manifest) -> None:
    with pytest.raises(InvalidRequest, match="does not follow"):
        backups.decode("m", backups.encode(broken))


@given(st.integers(0), st.integers(0, 255))
def test_a_manifest_with_a_changed_byte_is_refused_or_the_same(at: int, byte: int) -> None:
    whole = manifest(piece(1, None))
    text = bytearray(backups.encode(whole))
    text[at % len(text)] = byte

    try:
        assert backups.decode("m", bytes(text)) == whole
    except VirtkitError:
        return
