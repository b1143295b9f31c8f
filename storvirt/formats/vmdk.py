"""What a VMDK file's header, descriptor and grain tables say. Pure.

Only files that are a whole disk by themselves are taken: `monolithicSparse` and
`streamOptimized`. All other kinds are a text that names further files of this host, and so is a
sparse file of capacity 0, which QEMU would take for such a text.

Layout: VMware, "Virtual Disk Format 5.0". Numbers are little-endian, offsets in sectors.
"""

import re
import struct
from array import array
from collections.abc import Callable

from tenancy.errors import InvalidRequest

MAGIC = b"KDMV"
DESCRIPTOR = b"# Disk DescriptorFile"

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_FIELDS = (
    "magic version flags capacity grain descriptor_at descriptor_sectors "
    "entries rgd_at gd_at overhead unclean eol compression"
)
_MARKER = struct.Struct("<QII")
_GRAIN = struct.Struct("<QI")
_SECTOR = 512
_AT_END = (1 << 64) - 1
_COMPRESSED = 1 << 16
_FOOTER, _END_OF_STREAM = 3, 0
_NO_PARENT = "ffffffff"
_LARGEST_DESCRIPTOR = 64 << 10
_LARGEST_DISK_SECTORS = (1 << 60) // _SECTOR
_WHOLE = ("monolithicsparse", "streamoptimized")
_SETTING = re.compile(r'^\s*([A-Za-z]\w*)\s*=\s*"?([^"\r\n]*)"?\s*$', re.MULTILINE)
_EXTENT = re.compile(r"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)", re.MULTILINE)

Read = Callable[[int, int], bytes]


def parse(name: str, read: Read, file_bytes: int) -> int:
    """The virtual disk's bytes. Raises InvalidRequest.

    `read` gives fewer bytes than asked for beyond the file's end.
    """
    fields = _header(name, read(0, _HEADER.size), file_bytes)
    _refuse_foreign(name, read, fields)
    if fields["gd_at"] == _AT_END:
        capacity = fields["capacity"]
        fields = _footer(name, read, file_bytes)
        if fields["capacity"] != capacity:
            raise _damaged(name)
    _check_grains(name, read, file_bytes, fields)
    return fields["capacity"] * _SECTOR


def _header(name: str, data: bytes, file_bytes: int) -> dict[str, int]:
    if not data.startswith(MAGIC):
        if data.startswith(DESCRIPTOR[: len(data)]):
            raise _points_elsewhere(name)
        raise InvalidRequest(f"{name} is not a VMDK image: it does not begin with the VMDK mark.")
    if len(data) < _HEADER.size:
        raise _truncated(name, file_bytes, _SECTOR)
    values = _HEADER.unpack(data)
    names = _FIELDS.split()
    fields = {key: value for key, value in zip(names, values, strict=True) if type(value) is int}
    if fields["capacity"] == 0:
        raise _points_elsewhere(name)
    grain = fields["grain"]
    if (
        fields["version"] not in (1, 2, 3)
        or fields["capacity"] > _LARGEST_DISK_SECTORS
        or not 1 <= fields["entries"] <= 512
        or not 1 <= grain <= 2048
        or grain & (grain - 1)
    ):
        raise _damaged(name)
    return fields


def _refuse_foreign(name: str, read: Read, fields: dict[str, int]) -> None:
    length = fields["descriptor_sectors"] * _SECTOR
    if not fields["descriptor_at"] or not 0 < length <= _LARGEST_DESCRIPTOR:
        raise _damaged(name)
    raw = read(fields["descriptor_at"] * _SECTOR, length)
    text = raw.partition(b"\0")[0].decode("latin-1")
    settings = {key.lower(): value.strip() for key, value in _SETTING.findall(text)}
    if not text.startswith(DESCRIPTOR.decode()):
        raise _damaged(name)
    if settings.get("createtype", "").lower() not in _WHOLE:
        raise _points_elsewhere(name)
    if (
        settings.get("parentcid", _NO_PARENT).lower() != _NO_PARENT
        or "parentfilenamehint" in settings
    ):
        raise InvalidRequest(
            f"{name} is a difference to another VMDK, which is never followed. "
            "Make it whole where that file is: qemu-img convert -O vmdk."
        )
    if [kind.upper() for kind in _EXTENT.findall(text)] != ["SPARSE"]:
        raise _points_elsewhere(name)


def _footer(name: str, read: Read, file_bytes: int) -> dict[str, int]:
    data = read(max(0, file_bytes - 3 * _SECTOR), 3 * _SECTOR)
    if len(data) < 3 * _SECTOR:
        raise _truncated(name, file_bytes, 4 * _SECTOR)
    _, size, kind = _MARKER.unpack_from(data, 0)
    last = _MARKER.unpack_from(data, 2 * _SECTOR)
    inner = data[_SECTOR : 2 * _SECTOR]
    if (size, kind) != (0, _FOOTER) or last != (0, 0, _END_OF_STREAM):
        raise InvalidRequest(
            f"{name} is cut short: it has {file_bytes} bytes and does not end with a VMDK footer. "
            "Fetch it again."
        )
    if not inner.startswith(MAGIC):
        raise _damaged(name)
    fields = _header(name, inner[: _HEADER.size], file_bytes)
    if fields["gd_at"] == _AT_END:
        raise _damaged(name)
    return fields


def _check_grains(name: str, read: Read, file_bytes: int, fields: dict[str, int]) -> None:
    """Refuse tables and grains that lie beyond the file's end: QEMU would read them as zeros."""
    grain, entries = fields["grain"], fields["entries"]
    tables = -(-fields["capacity"] // (grain * entries))
    directory = _table(name, read, file_bytes, fields["gd_at"], tables)
    last = 0
    for sector in directory:
        if sector:
            last = max(last, max(_table(name, read, file_bytes, sector, entries)))
    # 1 says that the grain is zeros.
    if last <= 1:
        return
    end = (last + grain) * _SECTOR
    if fields["flags"] & _COMPRESSED:
        marker = read(last * _SECTOR, _GRAIN.size)
        if len(marker) < _GRAIN.size:
            raise _truncated(name, file_bytes, last * _SECTOR + _GRAIN.size)
        end = last * _SECTOR + _GRAIN.size + _GRAIN.unpack(marker)[1]
    if end > file_bytes:
        raise _truncated(name, file_bytes, end)


def _table(name: str, read: Read, file_bytes: int, sector: int, entries: int) -> "array[int]":
    end = sector * _SECTOR + 4 * entries
    if end > file_bytes:
        raise _truncated(name, file_bytes, end)
    table = array("I", read(sector * _SECTOR, 4 * entries))
    if struct.pack("=I", 1) != struct.pack("<I", 1):
        table.byteswap()
    return table


def _points_elsewhere(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is a VMDK that names other files for its data, which are never followed. "
        "Make it one file where those are: qemu-img convert -O vmdk."
    )


def _truncated(name: str, found: int, needed: int) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is cut short: it has {found} bytes and its own tables reach to {needed}. "
        "Fetch it again."
    )


def _damaged(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} has a damaged VMDK header. Fetch it again.")
