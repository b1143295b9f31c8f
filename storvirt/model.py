"""The nouns of tenant storage, as virtkit sees them, and what may name them.

Values are checked here, once, on the way in: librbd itself accepts image names such as `a/b` or
`a@b` and a size of zero, and none of them can be addressed or used afterwards.
"""

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NewType

from tenancy.errors import InvalidRequest
from tenancy.names import format_size, parse_size, shortened

PoolName = NewType("PoolName", str)
ImageName = NewType("ImageName", str)
SnapshotName = NewType("SnapshotName", str)
TenantName = NewType("TenantName", str)

SECTOR_BYTES = 512
# The one way of encrypting an image.
LUKS2 = "luks2"
LARGEST_IMAGE_BYTES = 1 << 60
# Rows of one transaction; the database answers nobody else while it takes them in.
MOST_AT_ONCE = 10_000

# Wider than a DNS label: people name images after releases, `debian-12.5`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DURATION = re.compile(r"(\d{1,9})([dhms])")
_UNIT_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
LONGEST_S = 3_650 * 86_400


class State(StrEnum):
    """How far a promise in the fabric database has been carried out in Ceph."""

    CREATING = "creating"
    READY = "ready"
    RENAMING = "renaming"
    TRASHED = "trashed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePath:
    """Where Ceph keeps an image: `pool/namespace/name`."""

    pool: PoolName
    namespace: TenantName
    name: str

    def __str__(self) -> str:
        return f"{self.pool}/{self.namespace}/{self.name}"

    def named(self, name: str) -> "ImagePath":
        """Another image of the same namespace."""
        return replace(self, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRef:
    """A snapshot as a tenant writes it: `image@snapshot`."""

    image: ImageName
    snapshot: SnapshotName

    def __str__(self) -> str:
        return f"{self.image}@{self.snapshot}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """A Ceph pool that virtkit may give to tenants. `adopted`: made by somebody else.

    `data_pool`: the erasure-coded pool that has the data of its images, if one has.
    """

    name: PoolName
    state: State
    adopted: bool
    data_pool: PoolName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """A tenant's place in a pool: the RBD namespace of its name, and its key's caps there."""

    tenant: TenantName
    pool: PoolName
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A tenant's disk. `parent` is the snapshot it was cloned from, `source` the file imported."""

    tenant: TenantName
    pool: PoolName
    name: ImageName
    size_bytes: int
    state: State
    parent: str | None
    source: str | None
    encryption: str | None = None

    @property
    def path(self) -> ImagePath:
        return ImagePath(pool=self.pool, namespace=self.tenant, name=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A moment of an image. A protected one can be cloned and can't be deleted.

    `holder` says what relies on it, in words; then only that deletes it.
    """

    image: ImageName
    name: SnapshotName
    size_bytes: int
    state: State
    protected: bool
    holder: str | None = None


def pool_name(text: str) -> PoolName:
    """`text` as the name of a Ceph pool. Raises InvalidRequest."""
    return PoolName(_checked_name("pool", text))


def image_name(text: str) -> ImageName:
    """`text` as the name of an image. Raises InvalidRequest."""
    return ImageName(_checked_name("image", text))


def numbered(base: ImageName, count: int) -> list[ImageName]:
    """`base-1` to `base-COUNT`. Raises InvalidRequest."""
    if not 1 <= count <= MOST_AT_ONCE:
        raise InvalidRequest(f"count {count} is not between 1 and {MOST_AT_ONCE}.")
    image_name(f"{base}-{count}")
    return [ImageName(f"{base}-{number}") for number in range(1, count + 1)]


def snapshot_name(text: str) -> SnapshotName:
    """`text` as the name of a snapshot. Raises InvalidRequest."""
    return SnapshotName(_checked_name("snapshot", text))


def snapshot_ref(text: str) -> SnapshotRef:
    """`image@snapshot`, taken apart. Raises InvalidRequest."""
    image, at, snapshot = text.partition("@")
    if not at:
        raise InvalidRequest(
            f"{text!r} does not name a snapshot. Write IMAGE@SNAPSHOT, for example golden@base."
        )
    return SnapshotRef(image=image_name(image), snapshot=snapshot_name(snapshot))


def image_size(text: str) -> int:
    """A size such as `10GiB`, in bytes, if an image can have it. Raises InvalidRequest."""
    return checked_size(parse_size("size", text))


def duration(text: str) -> int:
    """Seconds meant by `7d`, `12h`, `30m` or `90s`. Raises InvalidRequest."""
    found = _DURATION.fullmatch(text.strip())
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else -1
    if not 0 <= seconds <= LONGEST_S:
        raise InvalidRequest(
            f"{shortened(text)!r} is not a time up to 10 years. Write a whole number and d, h, m "
            "or s: 7d."
        )
    return seconds


def checked_size(size_bytes: int) -> int:
    """`size_bytes` if an image can have it: whole sectors, above zero, at most 1 EiB."""
    if size_bytes <= 0:
        raise InvalidRequest("size 0 holds nothing. Choose at least 512 bytes.")
    if size_bytes > LARGEST_IMAGE_BYTES:
        raise InvalidRequest(
            f"size {format_size(size_bytes)} is beyond 1 EiB. Choose a smaller one."
        )
    if size_bytes % SECTOR_BYTES:
        raise InvalidRequest(
            f"size {size_bytes} is not a multiple of {SECTOR_BYTES} bytes, so no guest could use "
            f"its last sector. Choose {whole_sectors(size_bytes)}."
        )
    return size_bytes


def whole_sectors(size_bytes: int) -> int:
    """`size_bytes` rounded up to the next sector."""
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def _checked_name(noun: str, text: str) -> str:
    if not _NAME.fullmatch(text):
        raise InvalidRequest(
            f"{noun} name {shortened(text)!r} is not usable. Choose 1 to 63 letters, digits, dots, "
            "underscores and dashes that begin with a letter or digit."
        )
    return text
