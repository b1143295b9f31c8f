"""What can be wrong between what is promised in the fabric database and what Ceph has. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from storvirt.caps import ENTITY_PREFIX
from storvirt.model import ImageName, ImagePath, PoolName, State, TenantName
from tenancy.diagnosis import Finding

CLOCK_SKEW_S = 2.0
# What an unfinished image is called in Ceph; see `storvirt.service.admission`.
_UNFINISHED = re.compile(r"\.virtkit-([0-9a-f-]{36})")
_CAP_POOL = re.compile(r"virtkit(?:-read-only)?=([^\s,]+)")
# Ceph's own complaints that keep virtkit from working; others are for `ceph -s`.
_SERIOUS = (
    "MON_CLOCK_SKEW",
    "MON_DOWN",
    "OSD_DOWN",
    "OSD_FULL",
    "PG_AVAILABILITY",
    "POOL_FULL",
    "SLOW_OPS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromisedImage:
    """A row of table Image; `state` is as in the database."""

    id: UUID
    path: ImagePath
    state: State
    source: str | None = None
    moving: bool = False
    rollback: bool = False
    old_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A namespace that is promised, with the names of the images that Ceph has there.

    `images` is None if Ceph does not have the namespace.
    """

    tenant: TenantName
    pool: PoolName
    state: State
    images: frozenset[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An image whose parent or snapshots are to be there, as Ceph has it.

    `failure` is why it can't be opened.
    """

    path: ImagePath
    wants_parent: str | None = None
    parent: str | None = None
    wants_snapshots: frozenset[str] = frozenset()
    snapshots: frozenset[str] = frozenset()
    failure: str | None = None


# What is done about findings.


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Delete what was never finished, or finish deleting it."""

    tenant: TenantName
    name: ImageName
    id: UUID


@dataclass(frozen=True, slots=True)
class RemoveLeftover:
    path: ImagePath


@dataclass(frozen=True, slots=True)
class SetCaps:
    tenant: TenantName


@dataclass(frozen=True, slots=True)
class DeleteKey:
    entity: str


@dataclass(frozen=True, slots=True)
class Repair:
    tenant: TenantName
    pool: PoolName


def images(
    promised: Iterable[PromisedImage], spaces: Iterable[Space], *, busy: bool
) -> list[Finding]:
    """Images half-made, half-deleted, lost and left over.

    While it is `busy`, that is while somebody else is connected who may be making or deleting
    them, what is not finished is left alone.
    """
    rows = list(promised)
    findings = [finding for row in rows for finding in _unfinished(row, busy=busy)]
    ids = {row.id for row in rows}
    for space in spaces:
        if space.images is None:
            continue
        here = [r for r in rows if (r.path.namespace, r.path.pool) == (space.tenant, space.pool)]
        known = {row.path.name for row in here} | {row.old_name for row in here}
        for row in here:
            if row.state is State.READY and not row.moving and row.path.name not in space.images:
                findings.append(_lost(row))
        # A move has its image, for a time, in another pool than the row says.
        known |= {r.path.name for r in rows if r.moving and r.path.namespace == space.tenant}
        for name in sorted(space.images - known):
            path = ImagePath(pool=space.pool, namespace=space.tenant, name=name)
            match = _UNFINISHED.fullmatch(name)
            if match is None:
                findings.append(_unknown(path))
            elif UUID(match[1]) not in ids:
                findings.append(_leftover(path, busy=busy))
    return findings


def spaces(found: Iterable[Space]) -> list[Finding]:
    """Namespaces that are not finished, or that Ceph has lost."""
    findings = []
    for space in found:
        subject = f"namespace of tenant {space.tenant} in pool {space.pool}"
        verb = "delete" if space.state is State.DELETING else "create"
        if space.state is not State.READY:
            command = f"svctl namespace {verb} {space.tenant} --pool {space.pool}"
            findings.append(
                Finding(
                    kind="namespace-unfinished",
                    object=subject,
                    found=f"it is {space.state}, since a command was interrupted or still runs",
                    remedy=f"finish that: {command}",
                )
            )
        elif space.images is None:
            findings.append(
                Finding(
                    kind="namespace-lost",
                    object=subject,
                    found="Ceph does not have it",
                    remedy="it is made again, empty, as `svctl namespace repair` does",
                    mend=Repair(space.tenant, space.pool),
                )
            )
    return findings


def keys(
    found: Mapping[str, Mapping[str, str]],
    wanted: Mapping[TenantName, Mapping[str, str]],
    in_flux: frozenset[TenantName],
    pools: frozenset[str],
) -> list[Finding]:
    """Tenants' cephx keys that are missing, may other things than they should, or are nobody's.

    `pools` are those that this fabric knows: a key that reaches others, or does not say which, may
    be another fabric's, and is not touched. Tenants `in_flux` have a namespace that is being made
    or deleted.
    """
    findings = []
    for tenant, caps in wanted.items():
        entity = f"{ENTITY_PREFIX}{tenant}"
        has = found.get(entity)
        if tenant in in_flux or has == caps:
            continue
        findings.append(
            Finding(
                kind="key-missing" if has is None else "caps-differ",
                object=f"cephx key {entity}",
                found="it does not exist"
                if has is None
                else f"its caps are not tenant {tenant}'s: {_difference(has, caps)}",
                remedy="it is made, with the tenant's caps; guests need the new key"
                if has is None
                else "its caps are set; the key itself stays",
                mend=SetCaps(tenant),
            )
        )
    for entity, has in sorted(found.items()):
        tenant = TenantName(entity.removeprefix(ENTITY_PREFIX))
        if tenant in wanted or tenant in in_flux:
            continue
        reaches = set(_CAP_POOL.findall(has.get("osd", "")))
        is_ours = bool(reaches) and reaches <= pools
        where = f", and the key reaches {', '.join(sorted(reaches)) or 'no pool that it names'}"
        findings.append(
            Finding(
                kind="key-orphaned",
                object=f"cephx key {entity}",
                found=f"no tenant {tenant} has a namespace{'' if is_ours else where}",
                remedy="it is deleted"
                if is_ours
                else f"if no other fabric uses this cluster: ceph auth del {entity}",
                mend=DeleteKey(entity) if is_ours else None,
            )
        )
    return findings


def layers(found: Iterable[Layer]) -> list[Finding]:
    """Clones without their parents, and snapshots that are promised and not there."""
    findings = []
    for one in found:
        tenant = one.path.namespace
        if one.failure is not None:
            findings.append(
                Finding(
                    kind="image-unreadable",
                    object=f"image {one.path}",
                    found=f"it is listed and can't be opened ({one.failure})"
                    + (f"; its parent is {one.wants_parent}" if one.wants_parent else ""),
                    remedy="restore it, or its parent, from a backup (`svctl backup list`), or "
                    f"delete it: svctl image delete {one.path.name} --tenant {tenant}",
                )
            )
            continue
        if one.wants_parent is not None and one.parent is None:
            findings.append(
                Finding(
                    kind="clone-without-parent",
                    object=f"image {one.path}",
                    found=f"it is on record as a clone of {one.wants_parent}, and Ceph has it "
                    "without a parent",
                    remedy="if it was flattened, finish that: svctl image flatten "
                    f"{one.path.name} --tenant {tenant}",
                )
            )
        for name in sorted(one.wants_snapshots - one.snapshots):
            findings.append(
                Finding(
                    kind="snapshot-lost",
                    object=f"snapshot {one.path}@{name}",
                    found="it is on record, and Ceph does not have it",
                    remedy=f"delete it: svctl snapshot delete {one.path.name}@{name} "
                    f"--tenant {tenant}",
                )
            )
    return findings


def clocks(offset_s: float | None, monitors: Mapping[str, float]) -> list[Finding]:
    """Monitors whose clocks differ, from this machine's and among themselves."""
    findings = [
        Finding(
            kind="clock-skew",
            object=f"mon.{name}",
            found=f"its clock is {skew:.3f} s off the leading monitor's",
            remedy="have both set by NTP; `ceph time-sync-status`",
        )
        for name, skew in sorted(monitors.items())
    ]
    if offset_s is not None and abs(offset_s) > CLOCK_SKEW_S:
        order = "ahead of" if offset_s > 0 else "behind"
        findings.append(
            Finding(
                kind="clock-skew",
                object="Ceph's leading monitor",
                found=f"its clock is about {abs(offset_s):.0f} s {order} this machine's",
                remedy="have both set by NTP (`chronyc tracking`, `timedatectl`)",
            )
        )
    return findings


def versions(daemons: Mapping[str, Mapping[str, int]], own: str | None) -> list[Finding]:
    """Daemons of several releases, and a client that is further away than Ceph supports."""
    findings = []
    releases = sorted({release for found in daemons.values() for release in found})
    if len(releases) > 1:
        told = "; ".join(
            f"{kind}: " + ", ".join(f"{count} of {release}" for release, count in found.items())
            for kind, found in daemons.items()
        )
        findings.append(
            Finding(
                kind="version-differs",
                object="Ceph's daemons",
                found=f"they run several releases ({told})",
                remedy="finish the upgrade; `ceph versions`",
            )
        )
    majors = {int(release.split(".")[0]) for release in releases if release[:1].isdigit()}
    if own and own[:1].isdigit() and majors:
        distance = max(abs(int(own.split(".")[0]) - major) for major in majors)
        if distance > 2:
            findings.append(
                Finding(
                    kind="version-differs",
                    object="Ceph's programs on this machine",
                    found=f"they are release {own}, and the cluster runs {', '.join(releases)}",
                    remedy="upgrade the older: Ceph supports two releases' distance",
                )
            )
    return findings


def health(found: Mapping[str, str]) -> list[Finding]:
    """What Ceph itself says is wrong, as far as it keeps images from being used."""
    return [
        Finding(
            kind="ceph-health",
            object=f"Ceph, {code}",
            found=text,
            remedy="see `ceph health detail`",
        )
        for code, text in found.items()
        if code in _SERIOUS
    ]


def wide_keys(entities: Iterable[str]) -> list[Finding]:
    """OSDs that copy for any tenant what it may not read."""
    return [
        Finding(
            kind="osd-key-wide",
            object=f"cephx key {entity}",
            found="this OSD copies for anybody what he may not read",
            remedy="narrow it: svctl harden",
        )
        for entity in entities
    ]


def others(rows: Iterable[tuple[str, str, str]]) -> list[Finding]:
    """What else is not finished: (object, its state, the command that finishes it)."""
    return [
        Finding(
            kind="unfinished",
            object=subject,
            found=f"it is {state}, since a command was interrupted or still runs",
            remedy=f"finish that: {command}",
        )
        for subject, state, command in rows
    ]


def _unfinished(row: PromisedImage, *, busy: bool) -> list[Finding]:
    tenant, name = row.path.namespace, row.path.name
    subject = f"image {row.path}"
    give_up = GiveUp(tenant, ImageName(name), row.id)
    wait = "somebody is connected to Ceph with virtkit's key and may be at it; if not: "
    delete = f"svctl image delete {name} --tenant {tenant}"
    if row.state is State.CREATING and row.source is None:
        return [
            Finding(
                kind="image-half-made",
                object=subject,
                found="it was begun and not finished; it was never to be used",
                remedy=f"{wait}run its command again to finish it, or give it up: {delete}"
                if busy
                else "it is given up, and its quota given back; the same command makes it anew",
                mend=None if busy else give_up,
            )
        ]
    if row.state is State.DELETING:
        return [
            Finding(
                kind="image-half-deleted",
                object=subject,
                found="deleting it was begun and not finished",
                remedy=f"{wait}{delete}" if busy else "that is finished",
                mend=None if busy else give_up,
            )
        ]
    command = None
    state = str(row.state)
    if row.state is State.CREATING:
        state = f"half imported from {row.source}"
        command = f"run the same import again, which goes on, or give it up: {delete}"
    elif row.state is State.RENAMING:
        command = f"svctl image rename {row.old_name} {name} --tenant {tenant}"
    elif row.moving:
        state = "being moved to another pool"
        command = (
            f"run the same `svctl migrate {name}` again, or undo it: svctl migrate {name} "
            f"--abort --tenant {tenant}"
        )
    elif row.rollback:
        state = "being rolled back"
        command = "run the same rollback again"
    if command is None:
        return []
    return others([(subject, state, command)])


def _lost(row: PromisedImage) -> Finding:
    return Finding(
        kind="image-lost",
        object=f"image {row.path}",
        found="it is promised, and Ceph does not have it",
        remedy="restore it from a backup (`svctl backup list`), or take it off the record: "
        f"svctl image delete {row.path.name} --tenant {row.path.namespace}",
    )


def _unknown(path: ImagePath) -> Finding:
    return Finding(
        kind="image-unknown",
        object=f"image {path}",
        found="Ceph has it, and no quota admitted it: somebody made it with stock tools",
        remedy=f"take it in: svctl image adopt {path.name} --tenant {path.namespace}; or: "
        f"rbd rm {path}",
    )


def _leftover(path: ImagePath, *, busy: bool) -> Finding:
    return Finding(
        kind="image-left-over",
        object=f"image {path}",
        found="it is an unfinished image of virtkit's that is on no record",
        remedy=f"somebody may be at it; if not: rbd rm {path}" if busy else "it is deleted",
        mend=None if busy else RemoveLeftover(path),
    )


def _difference(has: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    told = []
    for service in sorted({*has, *wanted}):
        if has.get(service) != wanted.get(service):
            told.append(f"{service} {has.get(service, 'nothing')!r}")
    return "; ".join(told)
