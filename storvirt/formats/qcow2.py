"""What a qcow2 file's header says, and whether virtkit may import the file at all.

Pure: bytes in, a record or one clear sentence out. The clusters behind the header are checked by
`qemu-img check`; here is only what must be known before any other program touches a stranger's
file. Layout: docs/interop/qcow2.txt in QEMU's source.
"""

import struct
from dataclasses import dataclass

from tenancy.errors import InvalidRequest

MAGIC = b"QFI\xfb"
HEADER_BYTES = 112

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_CORRUPT = 1 << 1
_EXTERNAL_DATA_FILE = 1 << 2
_SMALLEST_CLUSTER_BITS, _LARGEST_CLUSTER_BITS = 9, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2:
    """An importable qcow2 file: its virtual disk and its cluster size, in bytes."""

    size_bytes: int
    cluster_bytes: int


def parse(name: str, header: bytes, file_bytes: int) -> Qcow2:
    """The header of the file `name`, `file_bytes` long, from its first bytes.

    Raises InvalidRequest for what is no qcow2, is cut short, is encrypted, or points at other
    files: a backing file or data file is a path on *this* host, chosen by whoever made the image.
    """
    if not header.startswith(MAGIC):
        raise InvalidRequest(
            f"{name} is not a qcow2 image: it does not begin with the qcow2 mark. "
            "If it is a raw disk, say so: --format raw."
        )
    if len(header) < _V2.size:
        raise _truncated(name, file_bytes, _V2.size)
    (_, version, backing_at, _, cluster_bits, size, crypt, l1_entries, l1_at, *_) = _V2.unpack(
        header[: _V2.size]
    )
    if version not in (2, 3):
        raise InvalidRequest(
            f"{name} is qcow2 version {version}. Convert it: qemu-img convert -O qcow2."
        )
    features = 0
    if version == 3:
        if len(header) < _V2.size + _V3.size:
            raise _truncated(name, file_bytes, _V2.size + _V3.size)
        features = _V3.unpack_from(header, _V2.size)[0]
    if backing_at or features & _EXTERNAL_DATA_FILE:
        other = "a backing file" if backing_at else "an external data file"
        raise InvalidRequest(
            f"{name} refers to {other}, which is never followed. "
            "Make it whole where that file is: qemu-img convert -O qcow2."
        )
    if crypt:
        raise InvalidRequest(f"{name} is encrypted. Decrypt it first: qemu-img convert.")
    if features & _CORRUPT:
        raise InvalidRequest(f"{name} is marked corrupt. Repair a copy: qemu-img check -r all.")
    if not _SMALLEST_CLUSTER_BITS <= cluster_bits <= _LARGEST_CLUSTER_BITS or size == 0:
        raise InvalidRequest(f"{name} has a damaged qcow2 header. Fetch it again.")
    if l1_at + 8 * l1_entries > file_bytes:
        raise _truncated(name, file_bytes, l1_at + 8 * l1_entries)
    return Qcow2(size_bytes=size, cluster_bytes=1 << cluster_bits)


def _truncated(name: str, found: int, needed: int) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is cut short: it has {found} bytes and its own tables reach to {needed}. "
        "Fetch it again."
    )
