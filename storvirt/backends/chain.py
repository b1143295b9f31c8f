"""The directory of a backup chain: its manifest, its pieces, and the disk that they make up."""

import fcntl
import hashlib
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Self

from storvirt import backups
from storvirt.backends import activity
from storvirt.backups import BLOCK_BYTES, MANIFEST, Manifest, Piece
from storvirt.formats import rbddiff
from storvirt.formats.rbddiff import Diff, Stretch
from tenancy.errors import InvalidRequest, NotFound, Refused, VerificationFailed

_OURS = re.compile(r"\d{6}\.(full|diff)(\.part)?|manifest\.json\.new")

Progress = Callable[[int, int], None]


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other commands off the chain. Raises Refused, or InvalidRequest."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (directory / ".lock").open("wb")
    except OSError as error:
        raise InvalidRequest(
            f"directory {directory} cannot be written ({error.strerror}). Choose another."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(f"another backup works in {directory}. Wait for it.") from error
        yield


def find(directory: Path) -> Manifest | None:
    """The directory's manifest, or None if there is none. Raises InvalidRequest."""
    path = directory / MANIFEST
    try:
        return backups.decode(str(path), path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from error


def get(directory: Path) -> Manifest:
    """The directory's manifest. Raises NotFound."""
    manifest = find(directory)
    if manifest is None:
        raise NotFound(f"{directory} holds no backup chain: {MANIFEST} is not there.")
    return manifest


def store(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest: the moment at which a piece comes to be, or goes."""
    beside = directory / f"{MANIFEST}.new"
    with beside.open("wb") as file:
        file.write(backups.encode(manifest))
        sync(file)
    beside.rename(directory / MANIFEST)
    _sync_directory(directory)


def clean(directory: Path, manifest: Manifest) -> None:
    """Remove pieces that the manifest does not know: what was interrupted, or is merged."""
    known = {piece.file for piece in manifest.pieces}
    for path in directory.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in known:
            path.unlink()


def sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def begin_piece(directory: Path, file: str) -> IO[bytes]:
    """The piece under its unfinished name."""
    return (directory / f"{file}.part").open("w+b")


def finish_piece(directory: Path, file: str) -> None:
    (directory / f"{file}.part").rename(directory / file)
    _sync_directory(directory)


def digest(path: Path, progress: Callable[[int], None] = lambda _bytes: None) -> str:
    """The SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(BLOCK_BYTES):
            found.update(part)
            activity.progressed()
            progress(len(part))
    return found.hexdigest()


def check_pieces(directory: Path, pieces: Sequence[Piece], progress: Progress) -> None:
    """Compare every piece with what the manifest says of it. Raises VerificationFailed."""
    total, done = sum(piece.file_bytes for piece in pieces), 0

    def count(length: int) -> None:
        nonlocal done
        done += length
        progress(done, max(total, done))

    for piece in pieces:
        path = directory / piece.file
        try:
            size = path.stat().st_size
            found = digest(path, count) if size == piece.file_bytes else ""
        except FileNotFoundError as error:
            raise VerificationFailed(
                f"backup piece {path} is missing. Bring it back from another copy of the chain."
            ) from error
        except OSError as error:
            raise VerificationFailed(f"backup piece {path}: {error.strerror}.") from error
        if size != piece.file_bytes:
            raise VerificationFailed(
                f"backup piece {path} has {size} bytes, and {piece.file_bytes} were written. "
                "Bring it back from another copy of the chain."
            )
        if found != piece.sha256:
            raise VerificationFailed(
                f"backup piece {path} is not what was written: corrupted, or another piece under "
                "its name. Bring it back from another copy of the chain."
            )


class Disk:
    """The disk that some pieces of a chain make up, one laid over the other, to be read."""

    def __init__(self) -> None:
        self._files: list[IO[bytes]] = []
        self._stack = ExitStack()
        self.size_bytes = 0
        self.stretches: tuple[Stretch, ...] = ()
        self._starts: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def lay(self, path: Path) -> Diff:
        """Lay one more piece over what is there. Raises InvalidRequest or VerificationFailed."""
        try:
            file = self._stack.enter_context(path.open("rb"))
        except OSError as error:
            raise VerificationFailed(f"backup piece {path}: {error.strerror}.") from error
        descriptor = file.fileno()
        diff = rbddiff.parse(
            str(path),
            lambda offset, length: os.pread(descriptor, length, offset),
            os.fstat(descriptor).st_size,
            len(self._files),
        )
        self._files.append(file)
        # What an image loses when it shrinks does not come back when it grows.
        under = backups.overlay(self.stretches, (), min(self.size_bytes, diff.size_bytes))
        self.stretches = backups.overlay(under, diff.stretches, diff.size_bytes)
        self._starts = [stretch.start for stretch in self.stretches]
        self.size_bytes = diff.size_bytes
        return diff

    def read(self, start: int, end: int) -> bytearray:
        """Bytes of the disk."""
        found = bytearray(end - start)
        at = max(0, bisect_right(self._starts, start) - 1)
        while at < len(self.stretches) and self.stretches[at].start < end:
            stretch = self.stretches[at]
            at += 1
            first, last = max(start, stretch.start), min(end, stretch.end)
            if last > first:
                found[first - start : last - start] = self.bytes_of(stretch.cut(first, last))
        return found

    def bytes_of(self, stretch: Stretch) -> bytes:
        """What a stretch of this disk holds."""
        assert stretch.at is not None
        length = stretch.end - stretch.start
        data = os.pread(self._files[stretch.piece].fileno(), length, stretch.at)
        if len(data) != length:
            raise VerificationFailed(
                f"backup piece {self._files[stretch.piece].name} is cut short."
            )
        return data

    def block_digest(self, block: int) -> bytes:
        start = block * BLOCK_BYTES
        length = backups.block_length(block, self.size_bytes)
        at = bisect_right(self._starts, start + length - 1) - 1
        if at < 0 or self.stretches[at].end <= start:
            return backups.zero_digest(length)
        return hashlib.sha256(self.read(start, start + length)).digest()

    def rehash(self, digests: list[bytes], blocks: Iterable[int]) -> list[bytes]:
        """`digests` brought to the present size, with these blocks' own ones."""
        count = backups.blocks_of(self.size_bytes)
        fresh = digests[:count] + [b""] * (count - len(digests))
        for block in blocks:
            fresh[block] = self.block_digest(block)
            activity.progressed()
        return fresh


def check_contents(
    directory: Path, pieces: Sequence[Piece], disk: Disk, progress: Progress
) -> list[bytes]:
    """Lay the pieces, and compare what each restore would give with what the image held then.

    Returns the digests of the last one's blocks.
    """
    digests: list[bytes] = []
    for at, piece in enumerate(pieces):
        before = disk.size_bytes
        diff = disk.lay(directory / piece.file)
        if (diff.since, diff.until, diff.size_bytes) != (
            piece.since,
            piece.until,
            piece.size_bytes,
        ):
            raise VerificationFailed(
                f"backup piece {directory / piece.file} is of {diff.until}, and {piece.until} "
                "belongs there."
            )
        spans = ((stretch.start, stretch.end) for stretch in diff.stretches)
        digests = disk.rehash(digests, backups.touched(spans, before, disk.size_bytes))
        if backups.content(digests) != piece.content:
            raise VerificationFailed(
                f"backup {piece.number} of {directory} would not give what the image held when it "
                "was taken. Restore an earlier one, and begin a new chain."
            )
        progress(at + 1, len(pieces))
    return digests


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
