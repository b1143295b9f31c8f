"""What is known of an export that is under way, and whether a second one may go on from it. Pure.

A note lies beside the unfinished file. It is data from a disk that others can write to, so it is
decoded strictly, and one that can't be read counts as no note.
"""

import hashlib
from enum import StrEnum
from pathlib import Path

import msgspec

from tenancy.errors import InvalidRequest


class ExportFormat(StrEnum):
    """What can be written."""

    RAW = "raw"
    QCOW2 = "qcow2"


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far an export is. `done` bytes are on the disk; `sha256` is there when all are.

    `image` is the id of the image's row; `owned` says that the snapshot was taken for the export.
    """

    tenant: str
    image: str
    name: str
    snapshot: str
    owned: bool
    format: ExportFormat
    size_bytes: int
    done: int = 0
    sha256: str | None = None
    published: bool = False

    def same_work(self, other: "Note") -> bool:
        """Whether `other` writes the same moment of the same image in the same format."""
        return (self.image, self.snapshot, self.owned, self.format) == (
            other.image,
            other.snapshot,
            other.owned,
            other.format,
        )


def encode(note: Note) -> bytes:
    return msgspec.json.encode(note)


def decode(text: bytes) -> Note | None:
    """The note, or None if this is none."""
    try:
        note = msgspec.json.decode(text, type=Note)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return note if 0 <= note.done <= note.size_bytes else None


def format_for(target: Path, wanted: ExportFormat | None, *, compress: bool) -> ExportFormat:
    """The format that was asked for, or that the file's name tells. Raises InvalidRequest."""
    found = wanted or (
        ExportFormat.QCOW2 if target.suffix.lower() == ".qcow2" else ExportFormat.RAW
    )
    if compress and found is ExportFormat.RAW:
        raise InvalidRequest("a raw file cannot be compressed. Choose --format qcow2.")
    return found


def snapshot_for(target: Path) -> str:
    """The name of the snapshot that an export to this file takes of an image."""
    return f"export-{hashlib.sha256(str(target).encode()).hexdigest()[:12]}"


def data_runs(block: bytes, step: int = 4096) -> list[tuple[int, int]]:
    """Start and end of the stretches of `block` that are not all zeros, in whole steps."""
    runs: list[tuple[int, int]] = []
    blank = bytes(step)
    for at in range(0, len(block), step):
        part = block[at : at + step]
        if part == blank[: len(part)]:
            continue
        if runs and runs[-1][1] == at:
            runs[-1] = (runs[-1][0], at + len(part))
        else:
            runs.append((at, at + len(part)))
    return runs
