"""Golden images in the cluster: reading one to make its manifest, which is kept beside it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from storvirt.backends.cluster import Cluster, translated
from storvirt.golden import CHUNK_BYTES, chunk_digest, manifest, manifest_object
from storvirt.model import ImagePath, SnapshotName
from tenancy.errors import NotFound

# Reads in flight; librados and hashlib both let other threads run.
PARALLEL_READS = 8

Progress = Callable[[int, int], None]


def write_manifest(
    cluster: Cluster, path: ImagePath, snapshot: SnapshotName, progress: Progress
) -> int:
    """Read the snapshot, write its manifest, and return how many bytes are not zeros."""
    with cluster.image(path, snapshot=snapshot, read_only=True) as image:
        size = image.size()
        name = manifest_object(image.id(), _snapshot_id(image, path, snapshot))
        # Whole chunks: what lies in no object of the image or of its parents is zeros.
        filled = sorted(_filled(image, size))
        digests: list[bytes | None] = [None] * -(-size // CHUNK_BYTES)
        data = 0
        for at, length, digest in _read_all(image, filled, size):
            digests[at // CHUNK_BYTES] = digest
            data += length if digest else 0
            progress(at + length, size)
    with translated(f"manifest of {path}@{snapshot}"), _pool(cluster, path) as context:
        context.write_full(name, manifest(size, digests))
    return data


def read_manifest(cluster: Cluster, path: ImagePath, snapshot: SnapshotName) -> bytes:
    """The manifest as it is in the cluster. Raises NotFound."""
    with cluster.image(path, snapshot=snapshot, read_only=True) as image:
        name = manifest_object(image.id(), _snapshot_id(image, path, snapshot))
    with translated(f"manifest of {path}@{snapshot}"), _pool(cluster, path) as context:
        length, _ = context.stat(name)
        return bytes(context.read(name, length))


def remove_manifest(cluster: Cluster, path: ImagePath, snapshot: SnapshotName) -> None:
    """Take the manifest away, if it is there: from then on, hosts read through librbd only."""
    try:
        with cluster.image(path, snapshot=snapshot, read_only=True) as image:
            name = manifest_object(image.id(), _snapshot_id(image, path, snapshot))
        with translated(f"manifest of {path}@{snapshot}"), _pool(cluster, path) as context:
            context.remove_object(name)
    except NotFound:
        return


def _pool(cluster: Cluster, path: ImagePath) -> Any:
    return cluster.pool(path.pool, path.namespace)


def _snapshot_id(image: Any, path: ImagePath, snapshot: SnapshotName) -> int:
    for found in image.list_snaps():
        if found["name"] == snapshot:
            return int(found["id"])
    raise NotFound(f"image {path} has no snapshot {snapshot} in Ceph.")


def _filled(image: Any, size: int) -> set[int]:
    """Where the chunks begin that may hold something."""
    filled: set[int] = set()

    def note(offset: int, length: int, exists: bool) -> None:
        if exists:
            first = offset - offset % CHUNK_BYTES
            filled.update(range(first, offset + length, CHUNK_BYTES))

    image.diff_iterate(0, size, None, note, include_parent=True, whole_object=False)
    return filled


def _read_all(image: Any, offsets: list[int], size: int) -> Iterator[tuple[int, int, bytes | None]]:
    def read(at: int) -> tuple[int, int, bytes | None]:
        length = min(CHUNK_BYTES, size - at)
        return at, length, chunk_digest(image.read(at, length))

    # A few at a time: a map over all would read ahead of the consumer without bound.
    remaining = iter(offsets)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        while batch := list(islice(remaining, 4 * PARALLEL_READS)):
            yield from pool.map(read, batch)
