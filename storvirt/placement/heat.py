"""What a boot reads of an image: a weight for each of its parts, recorded once, kept small.

Pure. A trace is a sequence of reads in the image's own bytes; the map keeps for each part of the
size of one object how many reads it got and how many bytes. It is kept as text in the metadata of
the image it was recorded on, and holds for every clone of it until the clone has its own bytes.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tenancy.errors import InvalidRequest, VerificationFailed

# The metadata's key. It does not begin with `conf_`, which librbd would take for a setting.
KEY = "virtkit.heat"
_FORMAT = "1"
# A boot touches some hundred parts; more than this is no boot, and would burden the header object.
LARGEST_MAP = 16384
_LARGEST_TEXT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Read:
    """One read of the guest, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the image was read: so many reads, so many bytes, the first as `order`th."""

    reads: int
    bytes: int
    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Reads by part; part `n` is the image's bytes from `n * part_bytes` on.

    `image_id` is Ceph's id of the image that it was recorded on: clones get a copy of their
    parent's metadata, and that copy is not theirs. `at` is when, in seconds of the Unix epoch.
    """

    image_id: str
    part_bytes: int
    at: int
    parts: Mapping[int, Part]

    @property
    def reads(self) -> int:
        return sum(part.reads for part in self.parts.values())

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts.values())

    @property
    def first_share(self) -> float:
        """The share of all reads that went to the first part."""
        first = self.parts.get(0)
        return first.reads / self.reads if first else 0.0


def collect(image_id: str, part_bytes: int, at: int, trace: Iterable[Read]) -> HeatMap:
    """The map of a trace. A read over several parts counts in each, with its bytes there."""
    found: dict[int, list[int]] = {}
    for read in trace:
        offset, end = read.offset, read.offset + read.length
        while offset < end:
            number = offset // part_bytes
            length = min(end, (number + 1) * part_bytes) - offset
            counts = found.setdefault(number, [0, 0, len(found)])
            counts[0] += 1
            counts[1] += length
            offset += length
    if len(found) > LARGEST_MAP:
        raise InvalidRequest(
            f"the trace touches {len(found)} parts of the image, and a heat map holds "
            f"{LARGEST_MAP}. Trace the boot only, not what the guest does later."
        )
    return HeatMap(
        image_id=image_id,
        part_bytes=part_bytes,
        at=at,
        parts={number: Part(*counts) for number, counts in sorted(found.items())},
    )


def encode(heat: HeatMap) -> str:
    """The map as text for the image's metadata; some ten bytes a part."""
    document = {
        "id": heat.image_id,
        "part": heat.part_bytes,
        "at": heat.at,
        "parts": [[n, p.reads, p.bytes, p.order] for n, p in heat.parts.items()],
    }
    packed = zlib.compress(json.dumps(document, separators=(",", ":")).encode(), 9)
    return f"{_FORMAT}:{base64.b85encode(packed).decode()}"


def decode(image: str, text: str) -> HeatMap:
    """The map that `encode` wrote for `image`. Raises VerificationFailed.

    The tenant's own key can write there, so nothing is taken on trust.
    """
    try:
        version, _, packed = text.partition(":")
        if version != _FORMAT or len(text) > _LARGEST_TEXT_BYTES:
            raise ValueError(f"format {version[:10]!r}")
        unpacker = zlib.decompressobj()
        document = json.loads(unpacker.decompress(base64.b85decode(packed), _LARGEST_TEXT_BYTES))
        return _checked(document)
    except (ValueError, KeyError, TypeError, zlib.error, binascii.Error) as error:
        raise VerificationFailed(
            f"the heat map of {image} can't be read ({error}). Record it again: svctl heat record."
        ) from error


def parse_trace(name: str, text: str, size_bytes: int) -> list[Read]:
    """A trace from a file `name`: a line `OFFSET LENGTH` in bytes for each read, `#` comments.

    Raises InvalidRequest with the line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            offset, length = map(int, words)
        except ValueError as error:
            raise InvalidRequest(
                f"{name}, line {number}: {line[:60]!r} is not `OFFSET LENGTH` in bytes. Correct it."
            ) from error
        if offset < 0 or length <= 0 or offset + length > size_bytes:
            raise InvalidRequest(
                f"{name}, line {number}: {length} bytes at {offset} are not within the image's "
                f"{size_bytes}. Import the trace of this image."
            )
        found.append(Read(offset, length))
    if not found:
        raise InvalidRequest(f"{name} holds no read. Write a line `OFFSET LENGTH` for each.")
    return found


def _checked(document: Mapping[str, Any]) -> HeatMap:
    numbers = [int(document["part"]), int(document["at"])]
    parts = {int(n): Part(int(r), int(b), int(o)) for n, r, b, o in document["parts"]}
    if numbers[0] <= 0 or not parts or min(parts) < 0 or len(parts) > LARGEST_MAP:
        raise ValueError("parts out of range")
    if any(part.reads <= 0 or part.bytes <= 0 for part in parts.values()):
        raise ValueError("a part without reads")
    return HeatMap(image_id=str(document["id"]), part_bytes=numbers[0], at=numbers[1], parts=parts)
