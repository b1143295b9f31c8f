"""A golden image as hosts read it: the list of its chunks, and how their block servers count. Pure.

The manifest is what a host trusts: every chunk that it reads is compared with it before a guest
sees a byte. Its layout is described in plugins/golden/manifest.h, which reads it; the counters are
those of plugins/golden/counters.h.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields

from storvirt.model import ImagePath
from tenancy.errors import VerificationFailed

# What one small read brings from the cluster. librbd's read-ahead grows from the size of the
# reads and never gets there.
CHUNK_BYTES = 1 << 20
# A clone's first write to an object writes all of it. With Ceph's usual 4 MiB, sixty guests that
# boot would write gigabytes; much smaller ones cost an OSD more than they spare it.
CLONE_OBJECT_BYTES = 256 << 10
# Its manifest is one object of 32 MiB, and OSDs refuse writes beyond 90 MiB.
LARGEST_IMAGE_BYTES = 1 << 40

_MAGIC = b"VKGOLD01"
_HEADER = struct.Struct("<8sQII")
_DIGEST_BYTES = 32
_ZEROS = bytes(CHUNK_BYTES)
_COUNTERS_MAGIC = b"VKGSTAT1"


@dataclass(frozen=True, slots=True)
class Counters:
    """What a block server has counted since it began; see plugins/golden/counters.h."""

    process: int
    connections: int
    disks: int
    reads: int
    read_bytes: int
    golden_bytes: int
    hits: int
    misses: int
    fetched_bytes: int
    passed_bytes: int
    fallen_bytes: int
    corrupt: int
    mismatched: int
    evicted: int
    unpublished: int
    written_bytes: int
    composed: int

    @property
    def hit_ratio(self) -> float | None:
        """The share of looks into a chunk that found it here; None before the first."""
        looks = self.hits + self.misses
        return self.hits / looks if looks else None

    @property
    def cluster_bytes(self) -> int:
        """All that was read from the cluster for guests."""
        return self.fetched_bytes + self.passed_bytes + self.fallen_bytes


_COUNTERS = struct.Struct(f"<8s{len(fields(Counters))}Q")


def manifest(size_bytes: int, digests: Sequence[bytes | None]) -> bytes:
    """The manifest of an image whose chunks have these SHA-256 digests; None is all zeros."""
    body = _HEADER.pack(_MAGIC, size_bytes, CHUNK_BYTES, len(digests)) + b"".join(
        digest or bytes(_DIGEST_BYTES) for digest in digests
    )
    return body + hashlib.sha256(body).digest()


def digests_of(data: bytes) -> tuple[int, list[bytes | None]]:
    """Size and digests that `manifest` was made of. Raises VerificationFailed if it is none."""
    body, checksum = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(data) < _HEADER.size + _DIGEST_BYTES or hashlib.sha256(body).digest() != checksum:
        raise VerificationFailed("the manifest is damaged. Make the golden image again.")
    _, size_bytes, _, count = _HEADER.unpack_from(body)
    found = [body[at : at + _DIGEST_BYTES] for at in range(_HEADER.size, len(body), _DIGEST_BYTES)]
    assert len(found) == count
    return size_bytes, [digest if any(digest) else None for digest in found]


def chunk_digest(content: bytes) -> bytes | None:
    """What the manifest says of a chunk; None if it holds only zeros."""
    if content == _ZEROS[: len(content)]:
        return None
    return hashlib.sha256(content).digest()


def manifest_object(image_id: str, snapshot_id: int) -> str:
    """The object that holds a snapshot's manifest, in the pool and namespace of the image.

    Named by ids: another image that gets the same name later has another one.
    """
    return f"virtkit_golden.{image_id}.{snapshot_id}"


def export_name(path: ImagePath) -> str:
    """What the tenant's block server calls an image."""
    return f"{path.pool}/{path.name}"


def counters(data: bytes) -> Counters | None:
    """The counters out of a server's file, or None if it is of another version."""
    if len(data) != _COUNTERS.size or not data.startswith(_COUNTERS_MAGIC):
        return None
    return Counters(*_COUNTERS.unpack(data)[1:])


# How a guest's disk is attached through the host's block server


def qemu_blockdev(path: ImagePath, node: str, socket: str, patience_s: int) -> dict[str, object]:
    """The block node, as -blockdev and QMP's blockdev-add take it.

    While the server is away QEMU keeps the guest's requests for `patience_s` and sends them again
    when it is back. (Without, they would fail, and a guest's file system become read-only.)
    """
    return {
        "driver": "nbd",
        "node-name": node,
        "server": {"type": "unix", "path": socket},
        "export": export_name(path),
        "reconnect-delay": patience_s,
        "open-timeout": min(patience_s, 30),
        "discard": "unmap",
    }


def libvirt_disk(path: ImagePath, socket: str, patience_s: int, target: str) -> str:
    """The <disk> element; libvirt knows NBD, so that block jobs and hot-plug work with it."""
    return (
        "<disk type='network' device='disk'>\n"
        "  <driver name='qemu' type='raw' cache='none' discard='unmap'/>\n"
        f"  <source protocol='nbd' name='{export_name(path)}'>\n"
        f"    <host transport='unix' socket='{socket}'/>\n"
        f"    <reconnect delay='{patience_s}'/>\n"
        "  </source>\n"
        f"  <target dev='{target}' bus='virtio'/>\n"
        "</disk>\n"
    )
