"""Pieces of a backup chain, written from an image, and an image written from them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any

from storvirt import backups, exports
from storvirt.backends import activity, blocks
from storvirt.backends.blocks import PARALLEL_READS, Extent
from storvirt.backends.chain import Disk
from storvirt.backends.cluster import Cluster, translated
from storvirt.backups import BLOCK_BYTES
from storvirt.formats import rbddiff
from storvirt.model import ImagePath

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What was written, and the digests of all the blocks of the image at that moment."""

    file_bytes: int
    sha256: str
    size_bytes: int
    digests: list[bytes]
    touched: set[int]


class _Digesting:
    """A file that is hashed as it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.length += len(data)


def take(
    cluster: Cluster,
    path: ImagePath,
    since: str | None,
    until: str,
    file: IO[bytes],
    before: tuple[int, list[bytes]],
    progress: Progress,
) -> Taken:
    """Write what differs between two snapshots. `before` is the size and digests at `since`.

    Every block that was touched is read whole from the image, once: the piece gets the bytes
    that changed, the digest all of them.
    """
    size_bytes = blocks.size(cluster, path, until)
    changes = blocks.changed(cluster, path, since, until)
    old_bytes, old_digests = before
    touched = backups.touched(((one.offset, one.end) for one in changes), old_bytes, size_bytes)
    count = backups.blocks_of(size_bytes)
    digests = old_digests[:count] + [b""] * (count - len(old_digests))
    # One bytes object for all: most of a sparse disk is blocks of zeros.
    for block in touched:
        digests[block] = backups.zero_digest(backups.block_length(block, size_bytes))
    spans: dict[int, list[Extent]] = {}
    for extent in _split(changes):
        spans.setdefault(extent.offset // BLOCK_BYTES, []).append(extent)
    held = [
        extent
        for extent in _split(blocks.allocated(cluster, path, until))
        if extent.offset // BLOCK_BYTES in touched
    ]
    out = _Digesting(file)
    out.write(rbddiff.header(since, until, size_bytes))
    filled = _whole_blocks(cluster, path, until, held, size_bytes)
    coming = next(filled, None)
    for done, block in enumerate(sorted(touched), 1):
        content = None
        if coming is not None and coming[0] == block:
            content = coming[1]
            digests[block] = hashlib.sha256(content).digest()
            coming = next(filled, None)
        for extent in spans.get(block, ()):
            _write(out, extent, content, block, sparse=since is None)
        progress(done, len(touched))
    out.write(rbddiff.END)
    return Taken(
        file_bytes=out.length,
        sha256=out.digest.hexdigest(),
        size_bytes=size_bytes,
        digests=digests,
        touched=touched,
    )


def merge(disk: Disk, until: str, file: IO[bytes]) -> tuple[int, str]:
    """Write the whole disk as one full piece; return its length and SHA-256."""
    out = _Digesting(file)
    out.write(rbddiff.header(None, until, disk.size_bytes))
    for stretch in disk.stretches:
        for start in range(stretch.start, stretch.end, BLOCK_BYTES):
            part = stretch.cut(start, min(start + BLOCK_BYTES, stretch.end))
            out.write(rbddiff.data(part.start, part.end - part.start))
            out.write(disk.bytes_of(part))
            activity.progressed()
    out.write(rbddiff.END)
    return out.length, out.digest.hexdigest()


def restore(disk: Disk, image: Any, start: int, end: int) -> None:
    """Write the disk's bytes between two places to an image that reads as zeros there."""
    with translated("the restored image"), ThreadPoolExecutor(PARALLEL_READS) as pool:
        writes = []
        for stretch in disk.stretches:
            first, last = max(stretch.start, start), min(stretch.end, end)
            for at in range(first, last, BLOCK_BYTES):
                part = stretch.cut(at, min(at + BLOCK_BYTES, last))
                writes.append(pool.submit(_put, disk, image, part))
                if len(writes) >= 4 * PARALLEL_READS:
                    wait(writes)
                    for write in writes:
                        write.result()
                    writes.clear()
                    activity.progressed()
        for write in writes:
            write.result()
        image.flush()


def image_digests(
    cluster: Cluster, path: ImagePath, snapshot: str | None, progress: Progress
) -> list[bytes]:
    """The digests of all the blocks of an image."""
    size_bytes = blocks.size(cluster, path, snapshot)
    count = backups.blocks_of(size_bytes)
    digests = [
        backups.zero_digest(backups.block_length(block, size_bytes)) for block in range(count)
    ]
    held = _split(blocks.allocated(cluster, path, snapshot))
    for block, content in _whole_blocks(cluster, path, snapshot, held, size_bytes):
        digests[block] = hashlib.sha256(content).digest()
        progress(block + 1, count)
    return digests


def _whole_blocks(
    cluster: Cluster,
    path: ImagePath,
    snapshot: str | None,
    held: Iterable[Extent],
    size_bytes: int,
) -> Iterator[tuple[int, bytearray]]:
    """The blocks that these extents are in, in order, whole."""
    parts = blocks.read(cluster, path, snapshot, held)
    for block, group in groupby(parts, key=lambda part: part[0].offset // BLOCK_BYTES):
        content = bytearray(backups.block_length(block, size_bytes))
        start = block * BLOCK_BYTES
        for extent, data in group:
            if data is not None:
                content[extent.offset - start : extent.end - start] = data
        yield block, content


def _write(
    out: _Digesting, extent: Extent, content: bytearray | None, block: int, *, sparse: bool
) -> None:
    if content is None or not extent.data:
        if not sparse:
            out.write(rbddiff.hole(extent.offset, extent.length))
        return
    start = block * BLOCK_BYTES
    data = bytes(content[extent.offset - start : extent.end - start])
    # A full piece begins on a blank disk, so it needs no zeros.
    runs = exports.data_runs(data) if sparse else [(0, len(data))]
    for first, last in runs:
        out.write(rbddiff.data(extent.offset + first, last - first))
        out.write(memoryview(data)[first:last])


def _split(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The extents, none of them in two blocks."""
    for extent in extents:
        at = extent.offset
        while at < extent.end:
            end = min(extent.end, (at // BLOCK_BYTES + 1) * BLOCK_BYTES)
            yield Extent(offset=at, length=end - at, data=extent.data)
            at = end


def _put(disk: Disk, image: Any, stretch: rbddiff.Stretch) -> None:
    image.write(disk.bytes_of(stretch), stretch.start)
