"""Which host should run the VM that boots from an image: a ranking, with its reasons.

What counts is the share of an image's reads that a host's own OSDs answer, because those do not
cross the network: `led` where they are the primary, which answers every client, `held` where they
have a replica, which answers clients with the read policy `localize`. That pull is weighed
against load: the images that are booted most are clones of one golden image, so all their reads
go to the *same* primaries, and without the weighing sixty clones end on one host.

Which reads count, and for how much, is the objective's choice (`storvirt.placement.objectives`).
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from storvirt.placement.osdmap import ActingSet, ObjectLocation, OsdMap, seeds

# A replica serves reads only to clients with the read policy `localize`, and takes over when the
# primary fails: worth a tie-break, no more.
PRIMARY_PULL = 1.0
REPLICA_PULL = 0.1
# A host loses the whole pull of a primary once it runs about half as much again as its share.
LOAD_PUSH = 2.0
# Guests per host below which an uneven spread says nothing yet.
SLACK_GUESTS = 2
# Placement groups whose primaries a pin may move, unless more are asked for.
PIN_BUDGET = 8

# A placement group by pool number and number in the pool.
Group = tuple[int, int]


class Objective(StrEnum):
    """Which of an image's reads placement is for."""

    FIRST_OBJECT = "first-object"
    HEAT = "heat"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """The share of an image's reads, 0 to 1, by host: `led` by its primaries, `held` by any OSD."""

    led: Mapping[str, float]
    held: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedHost:
    """One host's place in the ranking. `score` only orders; `reason` is for people."""

    host: str
    score: float
    role: str
    local: float
    guests: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What could be done for an image on a host, and the share of its reads served there then."""

    action: str
    host: str
    local: float
    how: str


def locality(osdmap: OsdMap, weights: Mapping[Group, float]) -> Locality:
    """Where reads are answered that go to groups with these weights."""
    total = sum(weights.values())
    led = dict.fromkeys(osdmap.capacity, 0.0)
    held = dict.fromkeys(osdmap.capacity, 0.0)
    for (pool, seed), weight in weights.items():
        primary, holders = _hosts(osdmap, osdmap.pools[pool].acting[seed])
        for host in holders:
            held[host] = held.get(host, 0.0) + weight / total
        if primary is not None:
            led[primary] = led.get(primary, 0.0) + weight / total
    return Locality(led=led, held=held)


def at(osdmap: OsdMap, acting: ActingSet) -> Locality:
    """The locality of reads that all go to one object."""
    primary, holders = _hosts(osdmap, acting)
    return Locality(led={} if primary is None else {primary: 1.0}, held=dict.fromkeys(holders, 1.0))


def rank(
    osdmap: OsdMap, local: Locality, guests: Mapping[str, int], *, coming: int = 0
) -> tuple[RankedHost, ...]:
    """All hosts of `osdmap`, best first, for one more guest with reads like `local`.

    `guests` counts what already runs on each host; a host that is missing there runs nothing.
    `coming` guests more count for the shares, but are on no host yet. Equal scores are ordered by
    name.
    """
    total_capacity = sum(osdmap.capacity.values())
    total_guests = coming + sum(guests.get(host, 0) for host in osdmap.capacity)

    def judge(host: str, capacity: float) -> RankedHost:
        led, held = local.led.get(host, 0.0), local.held.get(host, 0.0)
        role = "primary" if led > 0 else "replica" if held > 0 else "none"
        running = guests.get(host, 0)
        share = total_guests * capacity / total_capacity if total_capacity else 0.0
        overload = _overload(running, share)
        why = _why(led, held)
        if capacity == 0:
            why += "; none of its OSDs is up"
        if overload > 0:
            why += f"; runs {running} guests where its share is {share:.1f}"
        return RankedHost(
            host=host,
            score=round(_pull(led, held) - LOAD_PUSH * overload, 3),
            role=role,
            local=round(led, 4),
            guests=running,
            reason=why,
        )

    judged = (judge(host, capacity) for host, capacity in osdmap.capacity.items())
    return tuple(sorted(judged, key=lambda ranked: (-ranked.score, ranked.host)))


def spread(
    osdmap: OsdMap, wanted: Iterable[Locality], guests: Mapping[str, int], *, coming: int
) -> tuple[str, ...]:
    """A host for each of `wanted` in order, each guest counted before the next is placed.

    There are `coming` of them. The hosts' shares are those of when all run. The same hosts as
    `rank` would choose one by one, in time that hardly grows with the number of hosts.
    """
    capacity = sum(osdmap.capacity.values())
    running = {host: guests.get(host, 0) for host in osdmap.capacity}
    total = coming + sum(running.values())
    share = {
        host: total * weight / capacity if capacity else 0.0
        for host, weight in osdmap.capacity.items()
    }
    push = {host: LOAD_PUSH * _overload(running[host], share[host]) for host in running}
    # Hosts without any pull are alike but for their load; what is out of date is passed over.
    idlest = [(load, host) for host, load in push.items()]
    heapq.heapify(idlest)
    pulls: dict[int, list[tuple[str, float]]] = {}
    chosen = []
    for local in wanted:
        if (pull := pulls.get(id(local))) is None:
            pull = [
                (host, _pull(local.led.get(host, 0.0), held))
                for host, held in local.held.items()
                if host in running
            ]
            pulls[id(local)] = pull
        while idlest[0][0] != push[idlest[0][1]]:
            heapq.heappop(idlest)
        load, best = idlest[0]
        score = -load
        for host, attraction in pull:
            here = attraction - push[host]
            if here > score or (here == score and host < best):
                score, best = here, host
        running[best] += 1
        push[best] = LOAD_PUSH * _overload(running[best], share[best])
        heapq.heappush(idlest, (push[best], best))
        chosen.append(best)
    return tuple(chosen)


@dataclass(frozen=True, slots=True)
class Boot:
    """The object that a guest's first reads go to: pool number, namespace, name."""

    pool: int
    namespace: str
    name: str


def plan(osdmap: OsdMap, boots: Sequence[Boot], guests: Mapping[str, int]) -> tuple[str, ...]:
    """A host for each of very many guests by their first objects, as `spread` chooses.

    All names are hashed together: 1,000 guests take a few milliseconds.
    """
    together: dict[tuple[int, str], list[int]] = {}
    for place, boot in enumerate(boots):
        together.setdefault((boot.pool, boot.namespace), []).append(place)
    known: dict[int, Locality] = {}
    wanted: list[Locality | None] = [None] * len(boots)
    for (number, namespace), places in together.items():
        pool = osdmap.serving(osdmap.pools[number])
        found = seeds(pool, namespace, [boots[place].name for place in places])
        for place, seed in zip(places, found, strict=True):
            acting = pool.acting[seed]
            if (local := known.get(id(acting))) is None:
                local = known[id(acting)] = at(osdmap, acting)
            wanted[place] = local
    return spread(osdmap, (one for one in wanted if one is not None), guests, coming=len(boots))


def options(
    osdmap: OsdMap, weights: Mapping[Group, float], host: str, *, budget: int = PIN_BUDGET
) -> tuple[Option, ...]:
    """What can be done for a guest on `host`, and what each would bring; best first.

    Shares are of the reads that reach Ceph, as the objective counts them.
    """
    total = sum(weights.values())
    local = locality(osdmap, weights)
    movable = sorted(
        (
            weight
            for (pool, seed), weight in weights.items()
            if osdmap.pools[pool].replicated
            and _is_follower(osdmap, osdmap.pools[pool].acting[seed], host)
        ),
        reverse=True,
    )[:budget]
    led = local.led.get(host, 0.0)
    plural = "" if len(movable) == 1 else "s"
    found = [
        Option(
            action="place",
            host=host,
            local=round(led, 4),
            how="run the guest there; nothing else is changed",
        ),
        Option(
            action="localize",
            host=host,
            local=round(local.held.get(host, 0.0), 4),
            how="let it read the near replica: svctl image read-policy, mode localize",
        ),
        Option(
            action="pin",
            host=host,
            local=round(led + sum(movable) / total, 4),
            how=f"lead {len(movable)} placement group{plural} more from there: svctl pin",
        ),
    ]
    return tuple(sorted(found, key=lambda one: -one.local))


def named(location: ObjectLocation, osdmap: OsdMap) -> str | None:
    """The host that serves an object, or None while there is none."""
    primary = location.acting.primary
    return None if primary is None else osdmap.host_of.get(primary)


def _hosts(osdmap: OsdMap, acting: ActingSet) -> tuple[str | None, tuple[str, ...]]:
    primary = osdmap.host_of.get(acting.primary) if acting.primary is not None else None
    holders = dict.fromkeys(osdmap.host_of[osd] for osd in acting.osds if osd in osdmap.host_of)
    return primary, tuple(holders)


def _is_follower(osdmap: OsdMap, acting: ActingSet, host: str) -> bool:
    primary, holders = _hosts(osdmap, acting)
    return host in holders and host != primary


def _pull(led: float, held: float) -> float:
    return PRIMARY_PULL * led + REPLICA_PULL * max(0.0, held - led)


def _overload(running: int, share: float) -> float:
    return max(0.0, (running - share) / (share + SLACK_GUESTS))


def _why(led: float, held: float) -> str:
    if led >= 0.9995:
        return "its OSDs are the primaries of all that is read"
    if led > 0:
        return f"its OSDs answer {led:.1%} of the reads, and hold {held:.1%}"
    if held > 0:
        return f"holds replicas of {held:.1%}, reads still go to the primaries"
    return "every read crosses the network"
