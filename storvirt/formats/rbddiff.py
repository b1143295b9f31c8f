"""The stream that `rbd export-diff` writes and `rbd import-diff` reads, version 1. Pure.

Layout: doc/dev/rbd-diff.rst in Ceph's source. Numbers are little-endian; header records come
before data records, which are in ascending order here.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from tenancy.errors import InvalidRequest

BANNER = b"rbd diff v1\n"
END = b"e"

_NAME = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
_SPAN = struct.Struct("<QQ")
_LONGEST_NAME = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Bytes `start` to `end` of an image. They are at `at` in file number `piece`; None: zeros."""

    start: int
    end: int
    piece: int
    at: int | None

    def cut(self, start: int, end: int) -> "Stretch":
        at = None if self.at is None else self.at + start - self.start
        return Stretch(start=start, end=end, piece=self.piece, at=at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What a stream says. `since` and `until` are snapshots' names, `since` None for a full one."""

    since: str | None
    until: str
    size_bytes: int
    stretches: tuple[Stretch, ...]


def header(since: str | None, until: str, size_bytes: int) -> bytes:
    """The stream's beginning."""
    named = b"" if since is None else _named(b"f", since)
    return BANNER + named + _named(b"t", until) + b"s" + _SIZE.pack(size_bytes)


def data(offset: int, length: int) -> bytes:
    """What stands before `length` bytes of data."""
    return b"w" + _SPAN.pack(offset, length)


def hole(offset: int, length: int) -> bytes:
    """A stretch that reads as zeros."""
    return b"z" + _SPAN.pack(offset, length)


def parse(name: str, read: Callable[[int, int], bytes], file_bytes: int, piece: int) -> Diff:
    """The stream of `file_bytes` that `read(offset, length)` gives. Raises InvalidRequest."""
    at = 0

    def take(length: int) -> bytes:
        nonlocal at
        found = read(at, length) if at + length <= file_bytes else b""
        if len(found) != length:
            raise InvalidRequest(f"backup piece {name} is cut short at byte {at}.")
        at += length
        return found

    if take(min(len(BANNER), file_bytes)) != BANNER:
        raise InvalidRequest(f"backup piece {name} is no rbd diff.")
    since = until = None
    size_bytes = -1
    stretches: list[Stretch] = []
    reached = 0
    while (record := take(1)) != END:
        if record in b"ft":
            (length,) = _NAME.unpack(take(_NAME.size))
            if length > _LONGEST_NAME:
                raise _damaged(name, at)
            text = take(length).decode(errors="replace")
            since, until = (text, until) if record == b"f" else (since, text)
        elif record == b"s":
            (size_bytes,) = _SIZE.unpack(take(_SIZE.size))
        elif record in b"wz":
            start, length = _SPAN.unpack(take(_SPAN.size))
            if start < reached or not length or start + length > size_bytes:
                raise _damaged(name, at)
            reached = start + length
            where = at if record == b"w" else None
            stretches.append(Stretch(start=start, end=reached, piece=piece, at=where))
            if record == b"w":
                at += length
        else:
            raise _damaged(name, at)
    if until is None or size_bytes < 0 or at != file_bytes:
        raise _damaged(name, at)
    return Diff(since=since, until=until, size_bytes=size_bytes, stretches=tuple(stretches))


def _named(mark: bytes, name: str) -> bytes:
    encoded = name.encode()
    return mark + _NAME.pack(len(encoded)) + encoded


def _damaged(name: str, at: int) -> InvalidRequest:
    return InvalidRequest(f"backup piece {name} is damaged at byte {at}.")
