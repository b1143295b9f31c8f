"""What a VHDX file's headers, regions and block table say. Pure.

Refused are differencing disks, whose parent locator names another file of this host, and files
with entries in their log, which only writing to them could apply.

Layout: Microsoft, [MS-VHDX]. Numbers are little-endian.
"""

import struct
from array import array
from collections.abc import Callable
from functools import cache
from uuid import UUID

from tenancy.errors import InvalidRequest

MAGIC = b"vhdxfile"

_KIB = 1 << 10
_MIB = 1 << 20
_HEADERS_AT = (64 * _KIB, 128 * _KIB)
_HEADER_BYTES = 4 * _KIB
_REGIONS_AT = (192 * _KIB, 256 * _KIB)
_REGIONS_BYTES = 64 * _KIB
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_REGION = struct.Struct("<16sQII")
_METADATA = struct.Struct("<8sHH")
_ITEM = struct.Struct("<16sIIII")
_BAT = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
_METADATA_REGION = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_SECTOR_SIZE = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PARENT = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_HAS_PARENT = 1 << 1
_PRESENT, _PARTIAL = 6, 7
_LARGEST_DISK = 64 << 40

Read = Callable[[int, int], bytes]


def parse(name: str, read: Read, file_bytes: int) -> int:
    """The virtual disk's bytes. Raises InvalidRequest.

    `read` gives fewer bytes than asked for beyond the file's end.
    """
    if read(0, len(MAGIC)) != MAGIC:
        raise InvalidRequest(f"{name} is not a VHDX image: it does not begin with the VHDX mark.")
    if file_bytes < _MIB:
        raise _truncated(name, file_bytes, _MIB)
    if any(_current_log(name, read)):
        raise InvalidRequest(
            f"{name} was not closed properly: its log has entries to be written. Open it once "
            "where it was made, or convert it there."
        )
    regions = _regions(name, read)
    items = _items(name, read, regions[_METADATA_REGION][0])
    if _PARENT in items:
        raise _differencing(name)
    try:
        block, flags = struct.unpack("<II", items[_PARAMETERS])
        (size_bytes,) = struct.unpack("<Q", items[_DISK_SIZE])
        (sector,) = struct.unpack("<I", items[_SECTOR_SIZE])
    except (KeyError, struct.error) as error:
        raise _damaged(name) from error
    if flags & _HAS_PARENT:
        raise _differencing(name)
    if (
        block not in {_MIB << shift for shift in range(9)}
        or sector not in (512, 4096)
        or not 0 < size_bytes <= _LARGEST_DISK
        or size_bytes % sector
    ):
        raise _damaged(name)
    _check_blocks(name, read, file_bytes, regions[_BAT], (size_bytes, block, sector))
    return int(size_bytes)


def _current_log(name: str, read: Read) -> bytes:
    """The log's id as the newer of the two headers that are whole has it; zeros: no log."""
    found = []
    for at in _HEADERS_AT:
        data = read(at, _HEADER_BYTES)
        if data.startswith(b"head") and _sum_is_right(data, _HEADER_BYTES):
            fields = _HEADER.unpack_from(data)
            found.append((fields[2], fields[5]))
    if not found:
        raise _damaged(name)
    return bytes(max(found)[1])


def _regions(name: str, read: Read) -> dict[UUID, tuple[int, int]]:
    for at in _REGIONS_AT:
        data = read(at, _REGIONS_BYTES)
        if not data.startswith(b"regi") or not _sum_is_right(data, _REGIONS_BYTES):
            continue
        (count,) = struct.unpack_from("<I", data, 8)
        if count > 2047:
            raise _damaged(name)
        found = {}
        for index in range(count):
            guid, offset, length, _ = _REGION.unpack_from(data, 16 + index * _REGION.size)
            found[UUID(bytes_le=guid)] = (offset, length)
        if set(found) != {_BAT, _METADATA_REGION}:
            raise _damaged(name)
        return found
    raise _damaged(name)


def _items(name: str, read: Read, region_at: int) -> dict[UUID, bytes]:
    table = read(region_at, 64 * _KIB)
    if len(table) < 64 * _KIB:
        raise _damaged(name)
    magic, _, count = _METADATA.unpack_from(table)
    if magic != b"metadata" or count > 2047:
        raise _damaged(name)
    found = {}
    for index in range(count):
        guid, offset, length, _, _ = _ITEM.unpack_from(table, 32 + index * _ITEM.size)
        if length > _MIB:
            raise _damaged(name)
        found[UUID(bytes_le=guid)] = read(region_at + offset, length)
    return found


def _check_blocks(
    name: str,
    read: Read,
    file_bytes: int,
    region: tuple[int, int],
    shape: tuple[int, int, int],
) -> None:
    size_bytes, block, sector = shape
    blocks = -(-size_bytes // block)
    ratio = (sector << 23) // block
    entries = blocks + (blocks - 1) // ratio
    at, length = region
    if entries * 8 > length:
        raise _damaged(name)
    if at + entries * 8 > file_bytes:
        raise _truncated(name, file_bytes, at + entries * 8)
    table = array("Q", read(at, entries * 8))
    if struct.pack("=Q", 1) != struct.pack("<Q", 1):
        table.byteswap()
    for index, entry in enumerate(table):
        # Every so many blocks there is an entry for a bitmap, used with parents only.
        if index % (ratio + 1) == ratio or not entry:
            continue
        if entry & 7 == _PARTIAL:
            raise _differencing(name)
        end = (entry & ~(_MIB - 1)) + block
        if entry & 7 == _PRESENT and end > file_bytes:
            raise _truncated(name, file_bytes, end)


def _sum_is_right(data: bytes, length: int) -> bool:
    if len(data) < length:
        return False
    (stated,) = struct.unpack_from("<I", data, 4)
    return int(stated) == crc32c(data[:4] + bytes(4) + data[8:])


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC (RFC 3720, B.4)."""
    table = _crc_table()
    value = 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(entry(byte) for byte in range(256))


def _differencing(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is a difference to another VHDX, which is never followed. "
        "Make it whole where that file is."
    )


def _truncated(name: str, found: int, needed: int) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is cut short: it has {found} bytes and its own tables reach to {needed}. "
        "Fetch it again."
    )


def _damaged(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name} has a damaged VHDX header. Fetch it again.")
