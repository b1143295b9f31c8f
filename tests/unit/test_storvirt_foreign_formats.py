"""VMDK, VHDX, VDI and VHD: whole disks are read, whatever points elsewhere or is hurt is not.

The files are made by `qemu-img`, so the layout is somebody else's word, not ours.
"""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storvirt.formats import vdi, vhd, vhdx, vmdk
from tenancy.errors import InvalidRequest

MIB = 1 << 20
PARSERS = {"vmdk": vmdk.parse, "vhdx": vhdx.parse, "vdi": vdi.parse, "vpc": vhd.parse}
KINDS = [
    ("vmdk", "subformat=monolithicSparse"),
    ("vmdk", "subformat=streamOptimized"),
    ("vhdx", "subformat=dynamic,block_size=1M"),
    ("vhdx", "subformat=fixed,block_size=1M"),
    ("vdi", "static=off"),
    ("vdi", "static=on"),
    ("vpc", "subformat=dynamic,force_size=on"),
    ("vpc", "subformat=fixed,force_size=on"),
]


@cache
def made(kind: str, options: str) -> bytes:
    """A disk of 8 MiB with data at its beginning and end."""
    with TemporaryDirectory() as directory:
        raw, path = Path(directory, "raw"), Path(directory, "made")
        raw.write_bytes(b"a" * MIB + bytes(6 * MIB) + b"z" * MIB)
        command = ["qemu-img", "convert", "-f", "raw", "-O", kind, "-o", options]
        subprocess.run([*command, str(raw), str(path)], check=True)
        return path.read_bytes()


def parsed(kind: str, data: bytes) -> int:
    return PARSERS[kind]("f", lambda at, length: data[at : at + length], len(data))


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_whole_file_gives_the_disks_size(kind: str, options: str) -> None:
    assert parsed(kind, made(kind, options)) == 8 * MIB


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_file_that_lost_its_end_is_refused(kind: str, options: str) -> None:
    whole = made(kind, options)

    # A stream that qemu-img makes ends with padding, which may be lost without harm.
    last = () if "stream" in options else (len(whole) - 512, len(whole) - 1)

    for kept in (0, 3, 100, 600, len(whole) // 2, *last):
        with pytest.raises(InvalidRequest):
            parsed(kind, whole[:kept])


@pytest.mark.parametrize(("kind", "options"), KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_hurt_header_is_refused_or_read_but_never_crashes(
    kind: str, options: str, data: st.DataObject
) -> None:
    text = bytearray(made(kind, options))
    interesting = [*range(1100), *range(len(text) - 1600, len(text)), *range(65536, 65640)]
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.sampled_from(interesting))
        text[at] = data.draw(st.integers(0, 255))

    try:
        assert parsed(kind, bytes(text)) > 0
    except InvalidRequest as error:
        assert "\n" not in str(error)


@given(st.sampled_from(sorted(PARSERS)), st.binary(max_size=1200))
def test_noise_behind_a_mark_never_crashes(kind: str, noise: bytes) -> None:
    marks = {"vmdk": b"KDMV", "vhdx": b"vhdxfile", "vdi": b"<<< ".ljust(64) + vdi.SIGNATURE}
    with pytest.raises(InvalidRequest):
        parsed(kind, marks.get(kind, b"conectix") + noise)


def vmdk_with(change: Callable[[str], str]) -> bytes:
    whole = made("vmdk", "subformat=monolithicSparse")
    text = whole[512 : 512 + 20 * 512].rstrip(b"\0").decode()
    return whole[:512] + change(text).encode().ljust(20 * 512, b"\0") + whole[512 + 20 * 512 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("parentCID=ffffffff", "parentCID=12345678"),
        lambda text: text + 'parentFileNameHint="/etc/shadow"\n',
        lambda text: text.replace("monolithicSparse", "monolithicFlat"),
        lambda text: text + 'RW 10 FLAT "/etc/shadow" 0\n',
        lambda text: text.replace("SPARSE", "FLAT"),
        lambda _text: "",
    ],
)
def test_a_vmdk_that_names_other_files_is_refused(change: Callable[[str], str]) -> None:
    assert parsed("vmdk", vmdk_with(lambda text: text)) == 8 * MIB

    with pytest.raises(InvalidRequest):
        parsed("vmdk", vmdk_with(change))


def test_a_vmdk_without_capacity_would_be_read_as_a_descriptor_and_is_refused() -> None:
    whole = bytearray(made("vmdk", "subformat=monolithicSparse"))
    whole[12:20] = bytes(8)

    with pytest.raises(InvalidRequest, match="names other files"):
        parsed("vmdk", bytes(whole))


def test_a_bare_vmdk_descriptor_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="names other files"):
        parsed("vmdk", b'# Disk DescriptorFile\nversion=1\nRW 1 FLAT "/etc/shadow" 0\n')


def test_the_sum_of_a_vhdx_header_is_castagnolis() -> None:
    assert vhdx.crc32c(b"123456789") == 0xE3069283


def test_differences_to_other_files_are_refused() -> None:
    parent = bytearray(made("vdi", "static=off"))
    # uuid_parent, behind three other UUIDs.
    parent[440 + 0 : 440 + 16] = b"p" * 16
    disk = bytearray(made("vpc", "subformat=dynamic,force_size=on"))
    for at in (0, len(disk) - 512):
        disk[at + 60 : at + 64] = (4).to_bytes(4, "big")

    for kind, data in (("vdi", parent), ("vpc", disk)):
        with pytest.raises(InvalidRequest, match="difference"):
            parsed(kind, bytes(data))
