"""Recognising the file that an image is imported from. Pure: first bytes in, format out.

A format that was not named is recognised by its mark, once, here; from then on every program is
told it. Letting QEMU guess would let a guest write a qcow2 header onto its raw disk and have the
next import follow it.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from storvirt import qcow2
from storvirt.model import checked_size, whole_sectors
from tenancy.errors import InvalidRequest


class SourceFormat(StrEnum):
    """What can be imported."""

    QCOW2 = "qcow2"
    RAW = "raw"


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


# Files that are certainly no raw disk, by their first bytes.
_FOREIGN = {
    b"KDMV": "a VMDK image",
    b"# Disk DescriptorFile": "a VMDK descriptor",
    b"vhdxfile": "a VHDX image",
    b"conectix": "a VHD image",
    b"<<< ": "a VDI image",
    b"QED\0": "a QED image",
    b"\x1f\x8b": "gzip-compressed",
    b"\xfd7zXZ\0": "xz-compressed",
    b"BZh": "bzip2-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"PK\x03\x04": "a zip archive",
}


def recognise(
    path: str, head: bytes, file_bytes: int, fingerprint: str, wanted: SourceFormat | None
) -> Source:
    """The file at `path` as a source, from its first bytes. Raises InvalidRequest."""
    if file_bytes == 0:
        raise InvalidRequest(f"{path} is empty. Fetch it again.")
    if wanted is SourceFormat.QCOW2 or (wanted is None and _claims_qcow2(path, head)):
        size = qcow2.parse(path, head, file_bytes).size_bytes
        format = SourceFormat.QCOW2
    else:
        if wanted is None:
            _refuse_foreign(path, head)
        size = file_bytes
        format = SourceFormat.RAW
    return Source(
        path=path,
        format=format,
        size_bytes=checked_size(whole_sectors(size)),
        fingerprint=fingerprint,
    )


def _claims_qcow2(path: str, head: bytes) -> bool:
    return head.startswith(qcow2.MAGIC) or path.lower().endswith((".qcow2", ".qcow"))


def _refuse_foreign(path: str, head: bytes) -> None:
    for mark, what in _FOREIGN.items():
        if head.startswith(mark):
            advice = (
                "Decompress it first" if "compressed" in what else "Convert it: qemu-img convert"
            )
            raise InvalidRequest(
                f"{path} is {what}, and qcow2 and raw can be imported. {advice}, "
                "or say --format raw if these bytes are the disk."
            )
