"""Which OSDs hold an object, answered from one osdmap and nothing else.

The hash from name to placement group is Ceph's own (`ceph_str_hash_rjenkins`,
`ceph_stable_mod`; src/common/ceph_hash.cc, src/include/rados.h). The step from placement group to
OSDs is not repeated here: it depends on CRUSH rules, tunables, weight sets, upmaps and temporary
mappings of the release at hand, so the table of acting sets is part of the map that
`backends.osdmaps` reads, computed there by Ceph's `osdmaptool`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from storvirt.model import PoolName
from storvirt.placement.hashing import hash_all
from tenancy.errors import NotFound, Refused

_NAMESPACE_SEPARATOR = b"\x1f"
_RJENKINS = 2
_WORD = 0xFFFFFFFF
_GOLDEN_RATIO = 0x9E3779B9


@dataclass(frozen=True, slots=True, kw_only=True)
class ActingSet:
    """The OSDs that serve a placement group now. `primary` is None while there is none."""

    osds: tuple[int, ...]
    primary: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMap:
    """What the osdmap says of one pool. `acting[i]` belongs to placement group `i`.

    `up[i]` is where the map wants it, which differs while data moves; None where that was not
    asked. Of an erasure-coded pool (`replicated` false), each OSD holds another part.
    """

    id: int
    name: PoolName
    pg_num: int
    object_hash: int
    read_tier: int | None
    acting: tuple[ActingSet, ...]
    replicated: bool = True
    up: tuple[ActingSet, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upmap:
    """What stands in the map for one placement group against CRUSH's own choice.

    `osds` is the whole set (`pg-upmap`), `primary` the primary only (`pg-upmap-primary`).
    """

    osds: tuple[int, ...] | None = None
    primary: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OsdMap:
    """One epoch of the cluster's map.

    `host_of` gives the CRUSH host of each OSD; `capacity` the CRUSH weight of each host, counting
    only OSDs that are up and in.
    """

    epoch: int
    pools: Mapping[int, PoolMap]
    host_of: Mapping[int, str]
    capacity: Mapping[str, float]
    upmaps: Mapping[tuple[int, int], Upmap] = field(default_factory=dict)

    def pool(self, name: str) -> PoolMap:
        """The pool called `name`. Raises NotFound."""
        for pool in self.pools.values():
            if pool.name == name:
                return pool
        raise NotFound(
            f"pool {name} is not in the cluster. `svctl pool list` shows those that are."
        )

    def serving(self, pool: PoolMap) -> PoolMap:
        """The pool that clients read from: `pool`, or the cache tier that is laid over it."""
        return pool if pool.read_tier is None else self.pools[pool.read_tier]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectLocation:
    """Where one object is: its placement group (`pool.seed`, hexadecimal) and acting OSDs."""

    pool: PoolName
    pg: str
    acting: ActingSet


def locate(pool: PoolMap, namespace: str, name: str) -> ObjectLocation:
    """Where the object `name` of `namespace` is, or would be if it were written."""
    _refuse_other_hash(pool)
    seed = stable_mod(object_hash(namespace, name), pool.pg_num)
    return ObjectLocation(pool=pool.name, pg=f"{pool.id}.{seed:x}", acting=pool.acting[seed])


def seeds(pool: PoolMap, namespace: str, names: Sequence[str]) -> list[int]:
    """The placement groups of many objects of one namespace, as numbers within the pool."""
    _refuse_other_hash(pool)
    prefix = namespace.encode() + _NAMESPACE_SEPARATOR if namespace else b""
    count = pool.pg_num
    mask = (1 << (count - 1).bit_length()) - 1
    half = mask >> 1
    return [
        folded if (folded := value & mask) < count else value & half
        for value in hash_all([prefix + name.encode() for name in names])
    ]


def _refuse_other_hash(pool: PoolMap) -> None:
    if pool.object_hash != _RJENKINS:
        raise Refused(
            f"pool {pool.name} hashes object names with method {pool.object_hash}, which Ceph has "
            "not used for new pools since 2012. Move its images to a newer pool."
        )


def object_hash(namespace: str, name: str) -> int:
    """Ceph's 32-bit hash of an object name within its namespace."""
    key = name.encode()
    if namespace:
        key = namespace.encode() + _NAMESPACE_SEPARATOR + key
    return rjenkins(key)


def stable_mod(value: int, count: int) -> int:
    """`value` folded onto `count` placement groups, moving few objects when `count` grows."""
    mask = (1 << (count - 1).bit_length()) - 1
    folded = value & mask
    return folded if folded < count else value & (mask >> 1)


def rjenkins(key: bytes) -> int:
    """Robert Jenkins' 1996 hash, as Ceph uses it for object names."""
    a = b = _GOLDEN_RATIO
    c = 0
    whole = len(key) - len(key) % 12
    for at in range(0, whole, 12):
        a = (a + int.from_bytes(key[at : at + 4], "little")) & _WORD
        b = (b + int.from_bytes(key[at + 4 : at + 8], "little")) & _WORD
        c = (c + int.from_bytes(key[at + 8 : at + 12], "little")) & _WORD
        a, b, c = _mix(a, b, c)
    tail = key[whole:]
    a = (a + int.from_bytes(tail[:4], "little")) & _WORD
    b = (b + int.from_bytes(tail[4:8], "little")) & _WORD
    # The lowest byte of c is kept for the length.
    c = (c + len(key) + (int.from_bytes(tail[8:], "little") << 8)) & _WORD
    return _mix(a, b, c)[2]


def _mix(a: int, b: int, c: int) -> tuple[int, int, int]:
    a = ((a - b - c) ^ (c >> 13)) & _WORD
    b = ((b - c - a) ^ (a << 8)) & _WORD
    c = ((c - a - b) ^ (b >> 13)) & _WORD
    a = ((a - b - c) ^ (c >> 12)) & _WORD
    b = ((b - c - a) ^ (a << 16)) & _WORD
    c = ((c - a - b) ^ (b >> 5)) & _WORD
    a = ((a - b - c) ^ (c >> 3)) & _WORD
    b = ((b - c - a) ^ (a << 10)) & _WORD
    c = ((c - a - b) ^ (b >> 15)) & _WORD
    return a, b, c
