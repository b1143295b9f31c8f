"""Recognising the file that an image is imported from. Pure: first bytes in, format out.

A format that was not named is recognised by its mark, once, here; from then on every program is
told it. Letting QEMU guess would let a guest write a qcow2 header onto its raw disk and have the
next import follow it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from storvirt.formats import qcow2, vdi, vhd, vhdx, vmdk
from storvirt.model import checked_size, whole_sectors
from tenancy.errors import InvalidRequest


class SourceFormat(StrEnum):
    """What can be imported."""

    QCOW2 = "qcow2"
    RAW = "raw"
    VDI = "vdi"
    VHDX = "vhdx"
    VMDK = "vmdk"
    # What QEMU calls VHD.
    VPC = "vpc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that can become an image of `size_bytes`."""

    path: str
    format: SourceFormat
    size_bytes: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.path} ({self.format}, {self.fingerprint})"


def fingerprint(file_bytes: int, mtime_ns: int) -> str:
    """What tells a file from a later one of the same name: its length and when it was written."""
    seconds, nanoseconds = divmod(mtime_ns, 10**9)
    written = datetime.fromtimestamp(seconds, UTC)
    return f"{file_bytes} bytes of {written:%Y-%m-%d %H:%M:%S}.{nanoseconds:09}Z"


Read = Callable[[int, int], bytes]

# What a file's name claims; its content must agree.
_ENDINGS = {
    ".qcow2": SourceFormat.QCOW2,
    ".qcow": SourceFormat.QCOW2,
    ".vdi": SourceFormat.VDI,
    ".vhdx": SourceFormat.VHDX,
    ".vmdk": SourceFormat.VMDK,
    ".vhd": SourceFormat.VPC,
    ".vpc": SourceFormat.VPC,
}
_MARKS = {
    qcow2.MAGIC: SourceFormat.QCOW2,
    vmdk.MAGIC: SourceFormat.VMDK,
    vmdk.DESCRIPTOR: SourceFormat.VMDK,
    vhdx.MAGIC: SourceFormat.VHDX,
    vhd.MAGIC: SourceFormat.VPC,
}
_PARSERS: dict[SourceFormat, Callable[[str, Read, int], int]] = {
    SourceFormat.VDI: vdi.parse,
    SourceFormat.VHDX: vhdx.parse,
    SourceFormat.VMDK: vmdk.parse,
    SourceFormat.VPC: vhd.parse,
}
# Files that are certainly no raw disk, by their first bytes.
_FOREIGN = {
    b"COWD": "a VMDK image of the kind that names other files",
    b"QED\0": "a QED image",
    b"\x1f\x8b": "gzip-compressed",
    b"\xfd7zXZ\0": "xz-compressed",
    b"BZh": "bzip2-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"PK\x03\x04": "a zip archive",
}


def recognise(
    path: str,
    head: bytes,
    file_bytes: int,
    fingerprint: str,
    wanted: SourceFormat | None,
    read: Read | None = None,
) -> Source:
    """The file at `path` as a source, from its first bytes. Raises InvalidRequest.

    `read(offset, length)` gives any of its bytes, fewer beyond its end; without it only `head`
    can be looked at.
    """
    if file_bytes == 0:
        raise InvalidRequest(f"{path} is empty. Fetch it again.")
    format = wanted or _claimed(path, head)
    if format is None:
        _refuse_foreign(path, head)
        format = SourceFormat.RAW
    if format is SourceFormat.RAW:
        size = file_bytes
    elif format is SourceFormat.QCOW2:
        size = qcow2.parse(path, head, file_bytes).size_bytes
    else:
        size = _PARSERS[format](path, read or _within(head), file_bytes)
    return Source(
        path=path,
        format=format,
        size_bytes=checked_size(whole_sectors(size)),
        fingerprint=fingerprint,
    )


def _claimed(path: str, head: bytes) -> SourceFormat | None:
    for mark, format in _MARKS.items():
        if head.startswith(mark):
            return format
    if head[vdi.SIGNATURE_AT : vdi.SIGNATURE_AT + 4] == vdi.SIGNATURE:
        return SourceFormat.VDI
    for ending, format in _ENDINGS.items():
        if path.lower().endswith(ending):
            return format
    return None


def _within(head: bytes) -> Read:
    return lambda offset, length: head[offset : offset + length]


def _refuse_foreign(path: str, head: bytes) -> None:
    for mark, what in _FOREIGN.items():
        if head.startswith(mark):
            advice = (
                "Decompress it first" if "compressed" in what else "Convert it: qemu-img convert"
            )
            raise InvalidRequest(
                f"{path} is {what}, which is not imported. {advice}, "
                "or say --format raw if these bytes are the disk."
            )
