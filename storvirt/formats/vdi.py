"""What a VDI file's header and block map say. Pure.

Differencing images (snapshots) name their parent by UUID and are refused. Layout: VirtualBox,
`VDICore.h`. Numbers are little-endian.
"""

import struct
from array import array
from collections.abc import Callable

from tenancy.errors import InvalidRequest

MAGIC = b"<<< "
SIGNATURE_AT = 64
SIGNATURE = struct.pack("<I", 0xBEDA107F)

_HEADER = struct.Struct("<64sIIIII256sIIIIIIIQIIII16s16s16s16s")
_DYNAMIC, _STATIC = 1, 2
_BLOCK = 1 << 20
_UNUSED = 0xFFFFFFFE
_LARGEST_DISK = 64 << 40

Read = Callable[[int, int], bytes]


def parse(name: str, read: Read, file_bytes: int) -> int:
    """The virtual disk's bytes. Raises InvalidRequest.

    `read` gives fewer bytes than asked for beyond the file's end.
    """
    data = read(0, _HEADER.size)
    if data[SIGNATURE_AT : SIGNATURE_AT + 4] != SIGNATURE:
        raise InvalidRequest(f"{name} is not a VDI image: it does not carry the VDI mark.")
    if len(data) < _HEADER.size:
        raise _truncated(name, file_bytes, _HEADER.size)
    fields = _HEADER.unpack(data)
    version, kind, map_at, data_at = fields[2], fields[4], fields[7], fields[8]
    size_bytes, block, extra, blocks, allocated = fields[14:19]
    link, parent = fields[21:23]
    if any(link) or any(parent) or kind not in (_DYNAMIC, _STATIC):
        raise InvalidRequest(
            f"{name} is a difference to another VDI, or of a kind that is not a whole disk. "
            "Make it whole where it was made: VBoxManage clonemedium."
        )
    if (
        version != 0x10001
        or block != _BLOCK
        or extra
        or not 0 < size_bytes <= _LARGEST_DISK
        or not -(-size_bytes // block) <= blocks <= _LARGEST_DISK // _BLOCK
        or allocated > blocks
    ):
        raise InvalidRequest(f"{name} has a damaged VDI header. Fetch it again.")
    if map_at + 4 * blocks > file_bytes:
        raise _truncated(name, file_bytes, map_at + 4 * blocks)
    table = array("I", read(map_at, 4 * blocks))
    if struct.pack("=I", 1) != struct.pack("<I", 1):
        table.byteswap()
    last = max((entry for entry in table if entry < _UNUSED), default=-1)
    end = data_at + (last + 1) * _BLOCK
    if last >= allocated or end > file_bytes:
        raise _truncated(name, file_bytes, end)
    return int(size_bytes)


def _truncated(name: str, found: int, needed: int) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is cut short or damaged: it has {found} bytes and its own tables reach to "
        f"{needed}. Fetch it again."
    )
