"""What a VHD file's footer and block table say: fixed and dynamic disks. QEMU calls it `vpc`.

Pure. Differencing disks, whose locators name another file of this host, are refused. Layout:
Microsoft, "Virtual Hard Disk Image Format Specification". Numbers are big-endian.
"""

import struct
import sys
from array import array
from collections.abc import Callable

from tenancy.errors import InvalidRequest

MAGIC = b"conectix"

_FOOTER_BYTES = 512
_FIXED, _DYNAMIC, _DIFFERENCING = 2, 3, 4
_SPARSE = struct.Struct(">8sQQIII")
_UNUSED = 0xFFFFFFFF
_SECTOR = 512
# What the format can hold at all: 2040 GiB.
_LARGEST_DISK = 2040 << 30
_MOST_BLOCKS = 1 << 24

Read = Callable[[int, int], bytes]


def parse(name: str, read: Read, file_bytes: int) -> int:
    """The virtual disk's bytes. Raises InvalidRequest.

    `read` gives fewer bytes than asked for beyond the file's end.
    """
    footer = read(max(0, file_bytes - _FOOTER_BYTES), _FOOTER_BYTES)
    first = read(0, _FOOTER_BYTES)
    if not footer.startswith(MAGIC) or len(footer) < _FOOTER_BYTES:
        if first.startswith(MAGIC):
            raise InvalidRequest(
                f"{name} is cut short: it has {file_bytes} bytes and does not end with a VHD "
                "footer. Fetch it again."
            )
        raise InvalidRequest(
            f"{name} is not a VHD image, or is cut short: it does not end with a VHD footer. "
            "Fetch it again, or say --format raw if these bytes are the disk."
        )
    (header_at,) = struct.unpack_from(">Q", footer, 16)
    (size_bytes,) = struct.unpack_from(">Q", footer, 48)
    kind, stated = struct.unpack_from(">II", footer, 60)
    if kind == _DIFFERENCING:
        raise InvalidRequest(
            f"{name} is a difference to another VHD, which is never followed. "
            "Make it whole where that file is."
        )
    total = sum(footer[:64]) + sum(footer[68:])
    if stated != ~total & 0xFFFFFFFF or not 0 < size_bytes <= _LARGEST_DISK:
        raise _damaged(name)
    # QEMU believes the copy at the beginning; a fixed disk has none, there it is guest's data.
    if kind == _FIXED and not first.startswith(MAGIC):
        if size_bytes > file_bytes - _FOOTER_BYTES:
            raise _truncated(name, file_bytes, size_bytes + _FOOTER_BYTES)
    elif kind == _DYNAMIC and first == footer:
        _check_blocks(name, read, file_bytes, header_at, size_bytes)
    else:
        raise _damaged(name)
    return int(size_bytes)


def _check_blocks(name: str, read: Read, file_bytes: int, header_at: int, size_bytes: int) -> None:
    data = read(header_at, _SPARSE.size)
    if len(data) < _SPARSE.size:
        raise _truncated(name, file_bytes, header_at + _SPARSE.size)
    cookie, _, table_at, _, entries, block = _SPARSE.unpack(data)
    if (
        cookie != b"cxsparse"
        or not _SECTOR <= block <= 1 << 28
        or block & (block - 1)
        or entries * block < size_bytes
        or entries > _MOST_BLOCKS
    ):
        raise _damaged(name)
    if table_at + 4 * entries > file_bytes:
        raise _truncated(name, file_bytes, table_at + 4 * entries)
    table = array("I", read(table_at, 4 * entries))
    if sys.byteorder == "little":
        table.byteswap()
    last = max((entry for entry in table if entry != _UNUSED), default=None)
    if last is None:
        return
    bitmap = -(-block // _SECTOR // 8 // _SECTOR) * _SECTOR
    end = last * _SECTOR + bitmap + block
    if end > file_bytes:
        raise _truncated(name, file_bytes, end)


def _truncated(name: str, found: int, needed: int) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is cut short: it has {found} bytes and its own tables reach to {needed}. "
        "Fetch it again."
    )


def _damaged(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} has a damaged VHD footer. Fetch it again.")
