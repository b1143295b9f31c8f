"""What somebody wants of a pool, and whether the cluster at hand can give it. Pure.

Ceph accepts much that never works: a rule for a device class without OSDs gives a pool whose
placement groups never become active, and the first write to it waits for ever. So a wish is
judged before anything is made.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Self

from storvirt.model import PoolName
from tenancy.errors import InvalidRequest, Refused

MOST_REPLICAS = 10
MOST_PLACEMENT_GROUPS = 65536
MOST_SHARDS = 32

_ERASURE = re.compile(r"(\d{1,2})\+(\d{1,2})")


class Autoscale(StrEnum):
    """Whether Ceph chooses the number of placement groups: itself, never, or only says so."""

    ON = "on"
    OFF = "off"
    WARN = "warn"


class CompressionMode(StrEnum):
    """Which writes BlueStore compresses: none, those whose client hints at it, all that don't
    hint against it, all."""

    NONE = "none"
    PASSIVE = "passive"
    AGGRESSIVE = "aggressive"
    FORCE = "force"


class CompressionAlgorithm(StrEnum):
    LZ4 = "lz4"
    SNAPPY = "snappy"
    ZLIB = "zlib"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Data in `k` pieces with `m` more computed from them; any `k` of them are enough."""

    k: int
    m: int

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be changed while a pool is used; None leaves it to the cluster, or as it is.

    `compression_ratio`: a chunk is kept compressed if it shrinks to this share or less.
    """

    replicas: int | None = None
    pg_num: int | None = None
    autoscale: Autoscale | None = None
    compression_mode: CompressionMode | None = None
    compression_algorithm: CompressionAlgorithm | None = None
    compression_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish(Settings):
    """All that is said of a new pool. The rest stays as it was made.

    With `erasure`, images' data go to a second pool, while headers stay in this replicated one.
    """

    erasure: Erasure | None = None
    device_class: str | None = None
    failure_domain: str | None = None

    def noted(self) -> dict[str, str]:
        """The wish as the fabric database keeps it."""
        return {
            key: str(getattr(self, key))
            for key in (field.name for field in fields(self))
            if getattr(self, key) is not None
        }

    @property
    def has_rule(self) -> bool:
        """Whether the pool gets a CRUSH rule of its own."""
        return bool(self.device_class or self.failure_domain)

    def settings(self) -> Settings:
        return Settings(
            **{field.name: getattr(self, field.name) for field in fields(Settings)},
        )

    @classmethod
    def none(cls) -> Self:
        return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where the cluster has OSDs. `domains[kind][class]` counts the buckets of a kind, `host` for
    instance, that hold an OSD of a class; class `""` is any."""

    root: str
    default_domain: str
    domains: Mapping[str, Mapping[str, int]]

    @property
    def classes(self) -> list[str]:
        return sorted({name for counts in self.domains.values() for name in counts if name})


def data_pool_of(name: PoolName) -> PoolName:
    """The pool that holds the data of an erasure-coded pool's images."""
    return PoolName(f"{name}.data")


def erasure(text: str) -> Erasure:
    """`K+M`, such as `4+2`. Raises InvalidRequest."""
    found = _ERASURE.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"erasure {text!r} is not K+M. Write it as 4+2.")
    k, m = int(found[1]), int(found[2])
    if k < 2 or m < 1 or k + m > MOST_SHARDS:
        raise InvalidRequest(
            f"erasure {text}: K must be at least 2, M at least 1, and both together at most "
            f"{MOST_SHARDS}. With one piece of data replicas are the same and cheaper to read."
        )
    return Erasure(k=k, m=m)


def checked(name: PoolName, wish: Settings) -> None:
    """Refuse values that no cluster takes. Raises InvalidRequest."""
    if wish.replicas is not None and not 2 <= wish.replicas <= MOST_REPLICAS:
        raise InvalidRequest(
            f"pool {name}: {wish.replicas} replicas are not between 2 and {MOST_REPLICAS}. With "
            "one replica a single lost disk loses every tenant's data."
        )
    if wish.pg_num is not None and not 1 <= wish.pg_num <= MOST_PLACEMENT_GROUPS:
        raise InvalidRequest(
            f"pool {name}: {wish.pg_num} placement groups are not between 1 and "
            f"{MOST_PLACEMENT_GROUPS}."
        )
    ratio = wish.compression_ratio
    if ratio is not None and not 0 < ratio <= 1:
        raise InvalidRequest(
            f"pool {name}: compression ratio {ratio:g} is not above 0 and at most 1. 0.875 keeps "
            "what shrinks by an eighth or more."
        )


def refuse_impossible(
    name: PoolName,
    topology: Topology,
    *,
    copies: int,
    what: str,
    device_class: str | None = None,
    failure_domain: str | None = None,
) -> None:
    """Refuse a pool whose `copies` (`what`: replicas, or pieces) have nowhere to be."""
    kind = failure_domain or topology.default_domain
    if kind not in topology.domains:
        raise InvalidRequest(
            f"pool {name}: failure domain {kind!r} is none of this cluster's: "
            f"{', '.join(sorted(topology.domains))}. Choose one of them."
        )
    if device_class is not None and device_class not in topology.classes:
        raise Refused(
            f"pool {name}: no OSD has the device class {device_class!r}. "
            f"Choose of {', '.join(topology.classes) or 'none: no OSD has a class'}, or give one "
            "to OSDs: ceph osd crush set-device-class."
        )
    number = topology.domains[kind].get(device_class or "", 0)
    if copies > number:
        of = f" of class {device_class}" if device_class else ""
        raise Refused(
            f"pool {name}: {copies} {what} need {copies} of `{kind}` with OSDs{of}, and Ceph has "
            f"{number}. Choose at most {number}, or another failure domain."
        )


def ceph_settings(wish: Settings) -> dict[str, str]:
    """The settings as `ceph osd pool set` names them."""
    names = {
        "replicas": "size",
        "pg_num": "pg_num",
        "autoscale": "pg_autoscale_mode",
        "compression_mode": "compression_mode",
        "compression_algorithm": "compression_algorithm",
        "compression_ratio": "compression_required_ratio",
    }
    values = asdict(wish)
    return {ceph: str(values[ours]) for ours, ceph in names.items() if values[ours] is not None}
