"""Ceph's hash of object names, for very many names at once. Pure, and plain Python.

`osdmap.rjenkins` takes some 7 µs a name, all of it the interpreter's. Here each of the hash's
steps is done for all names by one operation on one large integer: every name has a lane of 64
bits, of which the lower 32 hold its word and the upper take what additions carry and shifts push
out, until a mask clears them.
"""

import sys
from array import array
from collections.abc import Sequence

_BLOCK = 12
_LANE_BYTES = 8
_GOLDEN_RATIO = 0x9E3779B9
# Lanes per integer: its operations should stay within the processor's cache.
_LANES = 1024


def hash_all(keys: Sequence[bytes]) -> list[int]:
    """`osdmap.rjenkins` of each key, in order."""
    found = [0] * len(keys)
    by_length: dict[int, list[int]] = {}
    for place, key in enumerate(keys):
        by_length.setdefault(len(key), []).append(place)
    for length, places in by_length.items():
        for start in range(0, len(places), _LANES):
            some = places[start : start + _LANES]
            for place, value in zip(
                some, _hash_equal([keys[p] for p in some], length), strict=True
            ):
                found[place] = value
    return found


def _hash_equal(keys: Sequence[bytes], length: int) -> list[int]:
    """The hashes of keys that are all `length` bytes long."""
    count = len(keys)
    # The last block's third word leaves its lowest byte to the length, so a zero goes there.
    whole = length - length % _BLOCK
    head = min(length, whole + 8)
    fill, end = b"\0" * (whole + 9 - head), b"\0" * (_BLOCK - 9 - (length - head))
    words = array("I", b"".join([key[:head] + fill + key[head:] + end for key in keys]))
    if sys.byteorder == "big":
        words.byteswap()
    per_key = (whole + _BLOCK) // 4
    ones = int.from_bytes(b"\1\0\0\0\0\0\0\0" * count, "little")
    mask = ones * 0xFFFFFFFF
    # Twice 2^32 in each lane: what two subtractions may borrow.
    spare = ones << 33
    a = b = ones * _GOLDEN_RATIO
    c = 0
    for at in range(0, per_key, 3):
        a = (a + _lanes(words[at::per_key])) & mask
        b = (b + _lanes(words[at + 1 :: per_key])) & mask
        c += _lanes(words[at + 2 :: per_key])
        if at + 3 == per_key:
            c += ones * length
        a, b, c = _mix(a, b, c & mask, mask, spare)
    lanes = array("Q", c.to_bytes(count * _LANE_BYTES, "little"))
    if sys.byteorder == "big":
        lanes.byteswap()
    return lanes.tolist()


def _lanes(words: "array[int]") -> int:
    spaced = array("Q", words)
    if sys.byteorder == "big":
        spaced.byteswap()
    return int.from_bytes(spaced.tobytes(), "little")


def _mix(a: int, b: int, c: int, mask: int, spare: int) -> tuple[int, int, int]:
    # A right shift moves the lower bits of one lane into the upper half of the lane below, a left
    # shift a lane's upper bits into its own upper half: the mask clears both.
    a = ((a + spare - b - c) ^ (c >> 13)) & mask
    b = ((b + spare - c - a) ^ (a << 8)) & mask
    c = ((c + spare - a - b) ^ (b >> 13)) & mask
    a = ((a + spare - b - c) ^ (c >> 12)) & mask
    b = ((b + spare - c - a) ^ (a << 16)) & mask
    c = ((c + spare - a - b) ^ (b >> 5)) & mask
    a = ((a + spare - b - c) ^ (c >> 3)) & mask
    b = ((b + spare - c - a) ^ (a << 10)) & mask
    c = ((c + spare - a - b) ^ (b >> 15)) & mask
    return a, b, c
