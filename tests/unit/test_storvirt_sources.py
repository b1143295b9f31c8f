"""Recognising files to import: by what they are, never by what they ask for."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storvirt.formats import qcow2
from storvirt.formats.sources import SourceFormat, fingerprint, recognise
from tenancy.errors import InvalidRequest

GIB = 1 << 30


def header(
    *,
    version: int = 3,
    backing_at: int = 0,
    cluster_bits: int = 16,
    size: int = GIB,
    crypt: int = 0,
    l1_entries: int = 2,
    l1_at: int = 0x30000,
    features: int = 0,
) -> bytes:
    v2 = struct.pack(
        ">4sIQIIQIIQQIIQ",
        qcow2.MAGIC,
        version,
        backing_at,
        0,
        cluster_bits,
        size,
        crypt,
        l1_entries,
        l1_at,
        0x10000,
        1,
        0,
        0,
    )
    return v2 + struct.pack(">QQQII", features, 0, 0, 4, 104) if version == 3 else v2


@pytest.mark.parametrize("version", [2, 3])
def test_a_whole_header_gives_the_disks_size(version: int) -> None:
    found = qcow2.parse("f", header(version=version), 1 << 20)

    assert found == qcow2.Qcow2(size_bytes=GIB, cluster_bytes=65536)


@pytest.mark.parametrize(
    ("content", "file_bytes", "why"),
    [
        (b"hello", 5, "is not a qcow2 image"),
        (header()[:40], 40, "is cut short"),
        (header()[:80], 80, "is cut short"),
        (header(), 1000, "is cut short"),
        (header(version=1), 1 << 20, "qcow2 version 1"),
        (header(backing_at=0x200), 1 << 20, "a backing file, which is never followed"),
        (header(features=1 << 2), 1 << 20, "an external data file, which is never followed"),
        (header(features=1 << 1), 1 << 20, "is marked corrupt"),
        (header(crypt=2), 1 << 20, "is encrypted"),
        (header(cluster_bits=63), 1 << 20, "damaged qcow2 header"),
        (header(size=0), 1 << 20, "damaged qcow2 header"),
    ],
)
def test_what_is_not_importable_is_one_clear_sentence(
    content: bytes, file_bytes: int, why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why) as raised:
        qcow2.parse("f", content, file_bytes)
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=200), st.integers(1, 1 << 40))
def test_no_header_is_answered_with_anything_but_a_record_or_a_sentence(
    rest: bytes, file_bytes: int
) -> None:
    for content in (rest, qcow2.MAGIC + rest):
        try:
            qcow2.parse("f", content, file_bytes)
        except InvalidRequest as error:
            assert str(error).startswith("f ")


def test_a_qcow2_header_on_a_disk_that_is_said_to_be_raw_is_data() -> None:
    source = recognise("f", header(backing_at=0x200), 4096, "", SourceFormat.RAW)

    assert source.format is SourceFormat.RAW and source.size_bytes == 4096


def test_unnamed_formats_are_recognised_by_their_mark_or_refused() -> None:
    assert recognise("f.img", header(), 1 << 20, "", None).format is SourceFormat.QCOW2
    assert recognise("f.img", b"\0" * 100, 1000, "", None).size_bytes == 1024
    for name, head, why in (
        ("f.qcow2", b"\0" * 100, "is not a qcow2 image"),
        ("f.img", b"QED\0" + b"\0" * 96, "a QED image"),
        ("f.img.gz", b"\x1f\x8b\x08" + b"\0" * 96, "gzip-compressed"),
        ("f.img", b"", "is empty"),
    ):
        with pytest.raises(InvalidRequest, match=why):
            recognise(name, head, len(head), "", None)


def test_a_fingerprint_can_be_read_and_tells_a_nanosecond() -> None:
    found = fingerprint(3, 1_795_265_593_955_777_212)

    assert found == "3 bytes of 2026-11-21 12:53:13.955777212Z"
    assert fingerprint(3, 1_795_265_593_955_777_213) != found
