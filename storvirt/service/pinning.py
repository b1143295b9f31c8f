"""Leading an image's placement groups from a host, and giving them back.

Each pin is a row in the fabric database, written before Ceph is told and removed after Ceph has
taken it back. What a row says and the osdmap does not is finished by the next `pin` or `unpin`
of the image, or cleaned by `place --check`. What somebody else has put in a pin's place is left.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import UUID

from storvirt.backends import layers, osdmaps, upmaps
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, State
from storvirt.placement import pins
from storvirt.placement.layout import first_served, held
from storvirt.placement.objectives import group_weights
from storvirt.placement.osdmap import OsdMap
from storvirt.placement.pins import Choice, Method, Pin, Standing
from storvirt.placement.ranking import PIN_BUDGET, Group, Objective, locality
from storvirt.service import catalog, placing
from storvirt.service.catalog import ImageEntry
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import (
    BackendUnavailable,
    Conflict,
    InvalidRequest,
    Refused,
    VerificationFailed,
    VirtkitError,
)

MOST_BUDGET = 1024
# A new map is published within a second or two, and groups peer within another.
SETTLE_S = 30.0
POLL_S = 0.2
# Images of others that are looked at, to say how much of each a pin touches.
MOST_EXAMINED = 2000
EXAMINERS = 8

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedGroup:
    """A pinned group and the share of the image's counted reads that goes to it."""

    pg: str
    share: float
    primary_before: int
    primary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Touched:
    """Another image whose reads a pin also leads elsewhere: the share of its bytes."""

    image: str
    share: float
    first_object: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What pinning an image did. `left_out` counts groups that were not pinned, by reason."""

    image: str
    host: str
    objective: Objective
    local_before: float
    local: float
    new: tuple[PinnedGroup, ...]
    kept: int
    left_out: dict[str, int]
    touched: tuple[Touched, ...]
    not_examined: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PinReport:
    """A pin as it is on record and in the map."""

    pg: str
    pool: str
    host: str
    standing: Standing
    state: State
    primary: int | None
    wanted: int
    images: tuple[str, ...]


def pin(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    host: str,
    *,
    budget: int = PIN_BUDGET,
    objective: Objective | None = None,
    dry_run: bool = False,
) -> Pinned:
    """Lead the groups that most of the image's reads go to from `host`, at most `budget` of them.

    By its heat map, or all its bytes if it has none, unless the objective is said. Running again
    finishes what was interrupted and adds nothing. Raises Refused if nothing can be pinned.
    """
    if not 1 <= budget <= MOST_BUDGET:
        raise InvalidRequest(
            f"--budget {budget} is no number of placement groups. Choose 1 to {MOST_BUDGET}."
        )
    entry = catalog.ready_image(fabric, tenant, name)
    newest = osdmaps.read(cluster)
    where = placing.crush_host(fabric, newest, host)
    cache: layers.Cache = {}
    reads, chosen_by = _reads(cluster, newest, entry, objective, cache)
    _refuse_erasure_coded(newest, entry, reads.groups)
    rows = fabric.select("Pin")
    own = [row for row in rows if entry.row.id in row["images"]]
    elsewhere = sorted({row["host"] for row in own} - {where})
    if elsewhere:
        raise Refused(
            f"image {name} is pinned to {', '.join(elsewhere)}. "
            f"First: svctl unpin {name} --tenant {tenant}."
        )
    unfinished = _unfinished(newest, own, name, tenant)
    choice = pins.choose(
        newest,
        reads.groups,
        where,
        budget=max(0, budget - len(own)),
        taken=_taken(rows, entry, where),
        method=upmaps.method(cluster),
    )
    adopted = [
        row
        for row in rows
        if row["host"] == where
        and row["state"] == State.READY
        and entry.row.id not in row["images"]
        and pins.group_of(row["group"]) in reads.groups
    ]
    local_before = locality(newest, reads.groups).led.get(where, 0.0)
    if not choice.pins and not own and not adopted and local_before < 1:
        raise Refused(
            f"image {name}: no placement group can be pinned to {where}: "
            f"{_reasons(choice)}. Choose another host."
        )
    touched, not_examined = _touched(fabric, cluster, newest, entry, choice, cache)
    if not dry_run:
        _record(fabric, entry, choice.pins, adopted)
        newest = _carry_out(fabric, cluster, [*unfinished, *choice.pins])
    led = locality(newest, reads.groups).led.get(where, 0.0)
    return Pinned(
        image=str(entry.record.path),
        host=where,
        objective=chosen_by,
        local_before=round(local_before, 4),
        local=round(
            led + sum(choice.shares[one.group] for one in choice.pins) if dry_run else led, 4
        ),
        new=tuple(
            PinnedGroup(
                pg=one.pg,
                share=round(choice.shares[one.group], 4),
                primary_before=one.before[0],
                primary=one.wanted[0],
            )
            for one in choice.pins
        ),
        kept=len(own) + len(adopted),
        left_out=_counted(choice.left_out.values()),
        touched=touched,
        not_examined=not_examined,
    )


def unpin(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, *, say: Say
) -> list[PinReport]:
    """Give back what is pinned for the image alone; groups that others want too stay.

    What another has put in a pin's place is left as it is, and said.
    """
    entry = catalog.image(fabric, tenant, name)
    rows = [row for row in fabric.select("Pin") if entry.row.id in row["images"]]
    if not rows:
        raise Refused(f"image {name} is not pinned. See `svctl pin list`.")
    released = _release(fabric, rows, entry.row.id)
    reports = _report(fabric, osdmaps.read(cluster), released)
    _take_back(fabric, cluster, released, say)
    return reports


def list_all(fabric: Fabric, cluster: Cluster) -> list[PinReport]:
    """All pins, with what the newest map says of each."""
    return _report(fabric, osdmaps.read(cluster), fabric.select("Pin"))


def clean(fabric: Fabric, cluster: Cluster, *, say: Say) -> list[PinReport]:
    """Give back pins without a purpose: the image is gone, or the OSDs are others now.

    A group whose data has moved is led as CRUSH says again. Returns those that were cleaned.
    """
    newest = osdmaps.read(cluster)
    useless = [
        row
        for row in fabric.select("Pin")
        if not row["images"]
        or row["state"] == State.DELETING
        or pins.standing(newest, _pin_of(row)) in (Standing.STALE, Standing.CHANGED)
    ]
    if not useless:
        return []
    reports = _report(fabric, newest, useless)
    _take_back(fabric, cluster, _mark_deleting(fabric, useless), say)
    return reports


def _reads(
    cluster: Cluster,
    newest: OsdMap,
    entry: ImageEntry,
    objective: Objective | None,
    cache: layers.Cache,
) -> tuple[placing.Reads, Objective]:
    if objective is not None:
        return placing.reads(cluster, newest, entry, objective, cache), objective
    generations = layers.read(cluster, entry.record.path, cache=cache)
    chosen = Objective.HEAT if placing.recorded_heat(generations) else Objective.BYTES
    return placing.reads(cluster, newest, entry, chosen, cache), chosen


def _refuse_erasure_coded(newest: OsdMap, entry: ImageEntry, groups: Iterable[Group]) -> None:
    pools = [newest.pools[number] for number, _ in groups]
    found = sorted(pool.name for pool in pools if not pool.replicated)
    if found:
        raise Refused(
            f"image {entry.record.name}: its data is in pool {found[0]}, which "
            "is erasure-coded: each OSD holds another part, and no order changes who reads. "
            "Choose its host: svctl place."
        )


def _unfinished(newest: OsdMap, own: Sequence[Row], name: str, tenant: str) -> list[Pin]:
    """The image's pins that are not in the map. Raises Refused if others have replaced some."""
    found = [(_pin_of(row), row) for row in own]
    for one, _ in found:
        if pins.standing(newest, one) in (Standing.CHANGED, Standing.STALE):
            raise Refused(
                f"image {name}: pg {one.pg}, pinned for it, is led otherwise by somebody else now. "
                f"First: svctl unpin {name} --tenant {tenant}, which leaves that as it is."
            )
    return [
        one
        for one, row in found
        if row["state"] == State.CREATING or pins.standing(newest, one) is Standing.MISSING
    ]


def _taken(rows: Iterable[Row], entry: ImageEntry, host: str) -> dict[Group, str]:
    return {
        pins.group_of(row["group"]): "it is being unpinned"
        if row["state"] == State.DELETING
        else "it is pinned already"
        if row["host"] == host or entry.row.id in row["images"]
        else f"it is pinned to {row['host']}"
        for row in rows
    }


def _record(fabric: Fabric, entry: ImageEntry, new: Sequence[Pin], adopted: Sequence[Row]) -> None:
    def build(transaction: Transaction) -> None:
        transaction.guard(entry.row)
        for one in new:
            transaction.insert(
                "Pin",
                {
                    "group": one.pg,
                    "pool": one.pool,
                    "host": one.host,
                    "method": one.method,
                    "before": _text(one.before),
                    "wanted": _text(one.wanted),
                    "previous": None if one.previous is None else _text(one.previous),
                    "state": State.CREATING,
                    "images": frozenset([entry.row.id]),
                },
            )
        for row in adopted:
            found = fabric.find("Pin", id=row.id)
            if found is not None:
                transaction.guard(found, "state", "images")
                transaction.update(found, {"images": found["images"] | {entry.row.id}})

    try:
        fabric.change(build)
    except UniqueViolation as error:
        raise Conflict("another svctl pins the same placement groups. Try again.") from error


def _carry_out(fabric: Fabric, cluster: Cluster, wanted: Sequence[Pin]) -> OsdMap:
    """Have the map say what the rows say, see that it came so, and mark them ready."""
    newest = osdmaps.read(cluster)
    if not wanted:
        return newest
    try:
        upmaps.write(cluster, [one for one in wanted if not pins.written(newest, one)])
        newest = _settled(cluster, lambda osdmap: all(pins.holds(osdmap, p) for p in wanted))
    except (VerificationFailed, Refused):
        # It did not do what it should: nothing is left of it.
        newest = osdmaps.read(cluster)
        upmaps.restore(cluster, [one for one in wanted if pins.written(newest, one)])
        _delete(fabric, wanted)
        raise

    def ready(transaction: Transaction) -> None:
        for one in wanted:
            row = fabric.find("Pin", group=one.pg)
            if row is not None and row["state"] == State.CREATING:
                transaction.guard(row, "state")
                transaction.update(row, {"state": State.READY})

    fabric.change(ready)
    return newest


def _release(fabric: Fabric, rows: Sequence[Row], image: UUID) -> list[Row]:
    """Take the image out of the rows; those that nobody else wants are marked, and returned."""

    def build(transaction: Transaction) -> list[UUID]:
        alone = []
        for row in rows:
            found = fabric.find("Pin", id=row.id)
            if found is None:
                continue
            transaction.guard(found, "state", "images")
            others = found["images"] - {image}
            if others:
                transaction.update(found, {"images": others})
            else:
                # The image stays on it, so that the same command finds it again if interrupted.
                transaction.update(found, {"state": State.DELETING})
                alone.append(found.id)
        return alone

    released = set(fabric.change(build))
    return [row for row in rows if row.id in released]


def _mark_deleting(fabric: Fabric, rows: Sequence[Row]) -> list[Row]:
    def build(transaction: Transaction) -> None:
        for row in rows:
            if fabric.find("Pin", id=row.id) is not None:
                transaction.guard(row, "images")
                transaction.update(row, {"state": State.DELETING})

    fabric.change(build)
    return list(rows)


def _take_back(fabric: Fabric, cluster: Cluster, rows: Sequence[Row], say: Say) -> None:
    newest = osdmaps.read(cluster)
    found = [_pin_of(row) for row in rows]
    ours = [one for one in found if pins.written(newest, one)]
    for one in found:
        if pins.current(newest, one) not in (one.previous, None) and one not in ours:
            say(f"pg {one.pg}: somebody else has changed it since; it is left as it is.")
    upmaps.restore(cluster, ours)
    if ours:
        _settled(cluster, lambda osdmap: not any(pins.written(osdmap, one) for one in ours))
    _delete(fabric, found)


def _settled(cluster: Cluster, reached: Callable[[OsdMap], bool]) -> OsdMap:
    deadline = time.monotonic() + SETTLE_S
    while True:
        newest = osdmaps.read(cluster)
        if reached(newest):
            return newest
        if time.monotonic() > deadline:
            raise VerificationFailed(
                f"the osdmap {newest.epoch} does not show the new primaries after "
                f"{SETTLE_S:g} s. See `ceph -s`, and try again when all OSDs are up."
            )
        time.sleep(POLL_S)


def _delete(fabric: Fabric, found: Iterable[Pin]) -> None:
    def build(transaction: Transaction) -> None:
        for one in found:
            transaction.delete_where("Pin", group=one.pg)

    fabric.change(build)


def _report(fabric: Fabric, newest: OsdMap, rows: Iterable[Row]) -> list[PinReport]:
    name_of = {e.row.id: str(e.record.path) for e in catalog.images(fabric)}
    reports = []
    for row in rows:
        one = _pin_of(row)
        standing = pins.standing(newest, one)
        pool = newest.pools.get(one.group[0])
        reports.append(
            PinReport(
                pg=one.pg,
                pool=one.pool,
                host=one.host,
                standing=standing,
                state=State(row["state"]),
                primary=pool.acting[one.group[1]].primary
                if pool and one.group[1] < pool.pg_num
                else None,
                wanted=one.wanted[0],
                images=tuple(sorted(name_of[i] for i in row["images"] if i in name_of)),
            )
        )
    return sorted(reports, key=lambda report: pins.group_of(report.pg))


def _touched(
    fabric: Fabric,
    cluster: Cluster,
    newest: OsdMap,
    entry: ImageEntry,
    choice: Choice,
    cache: layers.Cache,
) -> tuple[tuple[Touched, ...], int]:
    """Other images with bytes in the chosen groups, the most touched first."""
    groups = {one.group for one in choice.pins}
    if not groups:
        return (), 0
    others = [
        one
        for one in catalog.images(fabric)
        if one.row.id != entry.row.id and one.record.state is State.READY
    ]

    def examine(one: ImageEntry) -> Touched | None:
        try:
            generations = layers.read(cluster, one.record.path, cache=cache)
            weights = {key: float(size) for key, size in held(generations).items()}
            first = group_weights(newest, generations, {first_served(generations): 1.0})
            share = pins.touched(groups, group_weights(newest, generations, weights))
        except BackendUnavailable:
            raise
        except VirtkitError:
            # It was deleted meanwhile, or is broken: nobody reads it.
            return None
        led_elsewhere = bool(groups & first.keys())
        if not share and not led_elsewhere:
            return None
        return Touched(
            image=str(one.record.path), share=round(share, 4), first_object=led_elsewhere
        )

    with ThreadPoolExecutor(max_workers=EXAMINERS) as threads:
        found = [one for one in threads.map(examine, others[:MOST_EXAMINED]) if one is not None]
    found.sort(key=lambda one: (-one.share, one.image))
    return tuple(found), max(0, len(others) - MOST_EXAMINED)


def _reasons(choice: Choice) -> str:
    reasons = _counted(choice.left_out.values())
    return "; ".join(f"{reason} ({count})" for reason, count in reasons.items()) or "it reads none"


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for reason in reasons:
        found[reason] = found.get(reason, 0) + 1
    return found


def _pin_of(row: Row) -> Pin:
    return Pin(
        group=pins.group_of(row["group"]),
        pool=row["pool"],
        host=row["host"],
        before=_osds(row["before"]),
        wanted=_osds(row["wanted"]),
        previous=None if row["previous"] is None else _osds(row["previous"]),
        method=Method(row["method"]),
    )


def _text(osds: Iterable[int]) -> str:
    return ",".join(map(str, osds))


def _osds(text: str) -> tuple[int, ...]:
    return tuple(int(osd) for osd in text.split(",") if osd)
