"""Which host should run the VM that boots from an image: a ranking, with its reasons.

The first object of an image holds boot sector, partition table and qcow2 or file system metadata;
the host of its primary OSD answers those reads without crossing the network. That pull is weighed
against load, because the images that are booted most are clones of one golden image, and all
their first reads go to the *same* primary: without the weighing, sixty clones end on one host.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storvirt.osdmap import ObjectLocation, OsdMap

# A replica serves reads only to clients with the read policy `localize`, and takes over when the
# primary fails: worth a tie-break, no more.
PRIMARY_PULL = 1.0
REPLICA_PULL = 0.1
# A host loses the whole pull of a primary once it runs about half as much again as its share.
LOAD_PUSH = 2.0
# Guests per host below which an uneven spread says nothing yet.
SLACK_GUESTS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedHost:
    """One host's place in the ranking. `score` only orders; `reason` is for people."""

    host: str
    score: float
    role: str
    guests: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an image's first object is served, and the hosts for its VM, best first.

    `primary_host` is the plain answer (None while the placement group has no primary);
    `ranking[0]` is the recommended one and differs from it when that host is loaded. `read_from`
    names the image whose object is read: a clone's parent until the clone has its own copy.
    """

    image: str
    read_from: str
    object_name: str
    pool: str
    pg: str
    epoch: int
    acting: tuple[int, ...]
    primary_osd: int | None
    primary_host: str | None
    ranking: tuple[RankedHost, ...]


def rank(
    osdmap: OsdMap, location: ObjectLocation, guests: Mapping[str, int]
) -> tuple[RankedHost, ...]:
    """All hosts of `osdmap`, best first, for one more guest that reads from `location`.

    `guests` counts what already runs on each host; a host that is missing there runs nothing.
    Equal scores are ordered by name.
    """
    acting = location.acting
    primary = osdmap.host_of.get(acting.primary) if acting.primary is not None else None
    replicas = {osdmap.host_of[osd] for osd in acting.osds if osd in osdmap.host_of}
    total_capacity = sum(osdmap.capacity.values())
    total_guests = sum(guests.get(host, 0) for host in osdmap.capacity)

    def judge(host: str, capacity: float) -> RankedHost:
        if host == primary:
            role, pull = "primary", PRIMARY_PULL
            why = f"osd.{acting.primary} here is the primary of pg {location.pg}"
        elif host in replicas:
            role, pull = "replica", REPLICA_PULL
            why = "holds a replica, reads still go to the primary"
        else:
            role, pull = "none", 0.0
            why = "every first read crosses the network"
        running = guests.get(host, 0)
        share = total_guests * capacity / total_capacity if total_capacity else 0.0
        overload = max(0.0, (running - share) / (share + SLACK_GUESTS))
        if capacity == 0:
            why += "; none of its OSDs is up"
        if overload > 0:
            why += f"; runs {running} guests where its share is {share:.1f}"
        return RankedHost(
            host=host,
            score=round(pull - LOAD_PUSH * overload, 3),
            role=role,
            guests=running,
            reason=why,
        )

    judged = (judge(host, capacity) for host, capacity in osdmap.capacity.items())
    return tuple(sorted(judged, key=lambda ranked: (-ranked.score, ranked.host)))


def spread(
    osdmap: OsdMap, locations: Sequence[ObjectLocation], guests: Mapping[str, int]
) -> tuple[str, ...]:
    """A host for each of `locations` in order, each guest counted before the next is placed."""
    counted = dict(guests)
    chosen = []
    for location in locations:
        best = rank(osdmap, location, counted)[0].host
        counted[best] = counted.get(best, 0) + 1
        chosen.append(best)
    return tuple(chosen)
