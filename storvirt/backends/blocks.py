"""Reading an image's blocks in order: what is allocated is read ahead, what is not is known zero.

Everything here reads a snapshot, which does not change, with a read-only handle: a guest goes on
writing meanwhile and keeps its lock.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import rbd

from storvirt.backends import activity
from storvirt.backends.cluster import Cluster, translated
from storvirt.model import ImagePath

BLOCK_BYTES = 4 << 20
PARALLEL_READS = 8

_ZEROS = bytes(BLOCK_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A stretch of an image. `data` is False where it reads as zeros."""

    offset: int
    length: int
    data: bool

    @property
    def end(self) -> int:
        return self.offset + self.length


def size(cluster: Cluster, path: ImagePath, snapshot: str | None) -> int:
    """The image's bytes at that moment."""
    with cluster.image(path, snapshot=snapshot, read_only=True) as image:
        return int(image.size())


def allocated(cluster: Cluster, path: ImagePath, snapshot: str | None) -> list[Extent]:
    """Where the image may hold anything else than zeros, parents included; whole objects."""
    with cluster.image(path, snapshot=snapshot, read_only=True) as image:
        return _diff(image, None, 0, image.size(), whole_object=True)


def changed(cluster: Cluster, path: ImagePath, since: str | None, snapshot: str) -> list[Extent]:
    """What differs between two snapshots, in order; since None: what there is at all.

    Whole objects come first, for the object map knows them at once; only those are then asked
    which of their bytes changed.
    """
    with cluster.image(path, snapshot=snapshot, read_only=True) as image:
        whole = _diff(image, since, 0, image.size(), whole_object=True)
        found = []
        for extent in whole:
            found += _diff(image, since, extent.offset, extent.length, whole_object=False)
            activity.progressed()
    return sorted(found, key=lambda extent: extent.offset)


def read(
    cluster: Cluster, path: ImagePath, snapshot: str | None, extents: Iterable[Extent]
) -> Iterator[tuple[Extent, bytes | None]]:
    """The bytes of each extent in order, in parts of at most BLOCK_BYTES; None for zeros."""
    with (
        cluster.image(path, snapshot=snapshot, read_only=True) as image,
        ThreadPoolExecutor(PARALLEL_READS) as pool,
    ):
        waiting: deque[tuple[Extent, Future[bytes] | None]] = deque()
        try:
            for part in _parts(extents):
                future = pool.submit(image.read, part.offset, part.length) if part.data else None
                waiting.append((part, future))
                if len(waiting) > 2 * PARALLEL_READS:
                    yield _result(path, waiting.popleft())
            while waiting:
                yield _result(path, waiting.popleft())
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()


def filled(extents: Iterable[Extent], start: int, end: int) -> Iterator[Extent]:
    """The extents between `start` and `end`, and zeros between them, without a gap."""
    at = start
    for extent in extents:
        first, last = max(extent.offset, at), min(extent.end, end)
        if last <= first:
            continue
        if first > at:
            yield Extent(offset=at, length=first - at, data=False)
        yield Extent(offset=first, length=last - first, data=extent.data)
        at = last
    if at < end:
        yield Extent(offset=at, length=end - at, data=False)


def content_digest(
    cluster: Cluster,
    path: ImagePath,
    snapshot: str | None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> str:
    """SHA-256 of what a guest would read from first to last byte."""
    total = size(cluster, path, snapshot)
    digest = hashlib.sha256()
    extents = filled(allocated(cluster, path, snapshot), 0, total)
    for part, data in read(cluster, path, snapshot, extents):
        digest.update(zeros(part.length) if data is None else data)
        progress(part.end, total)
    return digest.hexdigest()


def zeros(length: int) -> memoryview:
    """`length` zero bytes, at most BLOCK_BYTES, without making them anew."""
    return memoryview(_ZEROS)[:length]


def _diff(
    image: rbd.Image, since: str | None, offset: int, length: int, *, whole_object: bool
) -> list[Extent]:
    found: list[Extent] = []

    def note(at: int, count: int, exists: bool) -> None:
        found.append(Extent(offset=at, length=count, data=bool(exists)))

    if length:
        image.diff_iterate(
            offset, length, since, note, include_parent=True, whole_object=whole_object
        )
    return sorted(found, key=lambda extent: extent.offset)


def _parts(extents: Iterable[Extent]) -> Iterator[Extent]:
    for extent in extents:
        for at in range(extent.offset, extent.end, BLOCK_BYTES):
            yield Extent(offset=at, length=min(BLOCK_BYTES, extent.end - at), data=extent.data)


def _result(
    path: ImagePath, waiting: tuple[Extent, Future[bytes] | None]
) -> tuple[Extent, bytes | None]:
    part, future = waiting
    activity.progressed()
    if future is None:
        return part, None
    with translated(f"image {path}"):
        return part, future.result()
