"""Which placement groups to lead from a host, and what has become of those that are. Pure.

A pin changes which OSD of an acting set is its primary, by writing the same set in another order
into the osdmap. All of its OSDs have all of its data already, so nothing moves. It moves *work*,
though: the primary answers every read and passes on every write of everything in the group,
whichever image and tenant it belongs to. So what a host leads is limited.

Not for erasure-coded pools: their OSDs hold different parts, and another order is other data.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from storvirt.placement.osdmap import ActingSet, OsdMap
from storvirt.placement.ranking import Group

# A host may lead half as much again as its share of a pool's groups, and always one more.
MOST_OF_SHARE = 1.5
# From this release on the primary alone can be set: `pg-upmap-primary`.
_FIRST_WITH_PRIMARIES = "reef"


class Method(StrEnum):
    """How a primary is chosen in the osdmap."""

    UPMAP = "upmap"
    UPMAP_PRIMARY = "upmap-primary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A group that a host is to lead.

    `before` and `wanted` are its acting set, primary first; `previous` is the set that stood in
    the osdmap explicitly before, if one did.
    """

    group: Group
    pool: str
    host: str
    before: tuple[int, ...]
    wanted: tuple[int, ...]
    previous: tuple[int, ...] | None
    method: Method

    @property
    def pg(self) -> str:
        """The group as Ceph writes it."""
        return pg_name(self.group)


class Standing(StrEnum):
    """What the osdmap says of a pin."""

    ACTIVE = "active"
    MISSING = "missing"
    CHANGED = "changed"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The pins to make, with each group's share of the image's reads, and why not others."""

    pins: tuple[Pin, ...]
    shares: Mapping[Group, float]
    left_out: Mapping[Group, str]


def choose(
    osdmap: OsdMap,
    weights: Mapping[Group, float],
    host: str,
    *,
    budget: int,
    taken: Mapping[Group, str],
    method: Method,
) -> Choice:
    """The heaviest groups that `host` can come to lead, at most `budget` of them.

    `taken` names what must be left alone, with the reason.
    """
    total = sum(weights.values())
    leads = {number: _leads(osdmap, number, host) for number, _ in weights}
    most = {number: most_led(osdmap, number, host) for number in leads}
    pins: list[Pin] = []
    left_out: dict[Group, str] = {}
    for group, _ in sorted(weights.items(), key=lambda item: (-item[1], item[0])):
        pool = osdmap.pools[group[0]]
        acting = pool.acting[group[1]]
        here = [osd for osd in acting.osds if osdmap.host_of.get(osd) == host]
        if acting.primary in here:
            continue
        if group in taken:
            left_out[group] = taken[group]
        elif not pool.replicated:
            left_out[group] = f"pool {pool.name} is erasure-coded"
        elif not here:
            left_out[group] = f"{host} has no replica of it, and data is never moved"
        elif not _is_settled(osdmap, group):
            left_out[group] = "its data is moving now"
        elif leads[group[0]] >= most[group[0]]:
            left_out[group] = (
                f"{host} would lead more than {most[group[0]]} of the {pool.pg_num} groups of "
                f"{pool.name}"
            )
        elif len(pins) >= budget:
            left_out[group] = "the budget is used up"
        else:
            leads[group[0]] += 1
            pins.append(_pin(osdmap, group, host, here[0], method))
    return Choice(
        pins=tuple(pins),
        shares={group: weight / total for group, weight in weights.items()},
        left_out=left_out,
    )


def most_led(osdmap: OsdMap, pool: int, host: str) -> int:
    """How many of a pool's groups a host may lead: its share, and half as much again."""
    capacity = sum(osdmap.capacity.values())
    fair = osdmap.pools[pool].pg_num * osdmap.capacity.get(host, 0.0) / capacity if capacity else 0
    return max(ceil(fair * MOST_OF_SHARE), ceil(fair) + 1)


def standing(osdmap: OsdMap, pin: Pin) -> Standing:
    """What has become of a pin: whether it is in the map as written, gone, or somebody else's."""
    pool = osdmap.pools.get(pin.group[0])
    if pool is None or pin.group[1] >= pool.pg_num:
        return Standing.STALE
    if written(osdmap, pin):
        return Standing.ACTIVE
    # An OSD that is down leaves the acting set for a while; one that is out, for good.
    if not set(pool.acting[pin.group[1]].osds) <= set(pin.before):
        return Standing.STALE
    return Standing.MISSING if current(osdmap, pin) == pin.previous else Standing.CHANGED


def written(osdmap: OsdMap, pin: Pin) -> bool:
    """Whether the map holds exactly what the pin put there."""
    wanted = pin.wanted if pin.method is Method.UPMAP else pin.wanted[:1]
    return current(osdmap, pin) == wanted


def current(osdmap: OsdMap, pin: Pin) -> tuple[int, ...] | None:
    """What stands in the map explicitly for the pin's group, in the pin's own way."""
    upmap = osdmap.upmaps.get(pin.group)
    if upmap is None:
        return None
    if pin.method is Method.UPMAP:
        return upmap.osds
    return None if upmap.primary is None else (upmap.primary,)


def holds(osdmap: OsdMap, pin: Pin) -> bool:
    """Whether the host leads the group and its data is where it was, all of it."""
    pool = osdmap.pools[pin.group[0]]
    acting = pool.acting[pin.group[1]]
    return (
        acting.primary == pin.wanted[0]
        and set(acting.osds) == set(pin.before)
        and _is_settled(osdmap, pin.group)
    )


def method_for(require_osd_release: str, require_min_compat_client: str) -> Method:
    """How this cluster lets a primary be chosen. Releases are named in alphabetical order."""
    newest = min(require_osd_release, require_min_compat_client)
    return Method.UPMAP_PRIMARY if newest >= _FIRST_WITH_PRIMARIES else Method.UPMAP


def touched(groups: Collection[Group], weights: Mapping[Group, float]) -> float:
    """The share of `weights` that lies in `groups`."""
    total = sum(weights.values())
    return sum(weights.get(group, 0.0) for group in groups) / total if total else 0.0


def pg_name(group: Group) -> str:
    """A group as Ceph writes it: `2.1f`."""
    return f"{group[0]}.{group[1]:x}"


def group_of(pg: str) -> Group:
    """The group that Ceph writes as `pg`."""
    pool, _, seed = pg.partition(".")
    return int(pool), int(seed, 16)


def _pin(osdmap: OsdMap, group: Group, host: str, osd: int, method: Method) -> Pin:
    pool = osdmap.pools[group[0]]
    before = _ordered(pool.acting[group[1]])
    upmap = osdmap.upmaps.get(group)
    previous: tuple[int, ...] | None = None
    if upmap is not None and method is Method.UPMAP:
        previous = upmap.osds
    elif upmap is not None and upmap.primary is not None:
        previous = (upmap.primary,)
    return Pin(
        group=group,
        pool=pool.name,
        host=host,
        before=before,
        wanted=(osd, *(one for one in before if one != osd)),
        previous=previous,
        method=method,
    )


def _ordered(acting: ActingSet) -> tuple[int, ...]:
    if acting.primary is None:
        return acting.osds
    return (acting.primary, *(osd for osd in acting.osds if osd != acting.primary))


def _is_settled(osdmap: OsdMap, group: Group) -> bool:
    pool = osdmap.pools[group[0]]
    acting = pool.acting[group[1]]
    return acting.primary is not None and (pool.up is None or pool.up[group[1]] == acting)


def _leads(osdmap: OsdMap, pool: int, host: str) -> int:
    counts = Counter(
        osdmap.host_of.get(one.primary)
        for one in osdmap.pools[pool].acting
        if one.primary is not None
    )
    return counts[host]
