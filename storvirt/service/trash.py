"""The trash: images that were deleted and can be had back for a time. They count against quota
until they are purged, for their data is there.

A row in the trash is called `.trash-<row id>`, so that its old name is free at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from storvirt.backends import images, naming, trash
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, State
from storvirt.service import admission, catalog, deleting, parallel
from storvirt.service.catalog import ImageEntry
from storvirt.service.parallel import Failure, Outcome, Progress, Step, no_progress
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, InvalidRequest, NotFound, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Trashed:
    """An image in the trash. Times are seconds since 1970."""

    id: str
    tenant: str
    name: str
    pool: str
    size_bytes: int
    trashed_at: int
    expires_at: int


def move(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    names: Sequence[ImageName],
    *,
    now: int,
    keep_s: int,
    progress: Progress = no_progress,
) -> Outcome:
    """Put images into the trash for `keep_s` seconds at least."""
    times = {"trashed_at": now, "expires_at": now + keep_s}

    def discard(entry: ImageEntry) -> None:
        deleting.refuse_used(cluster, entry)
        trash.move(cluster, entry.record.path, entry.row["ceph_id"], keep_s)

    def record(moved: Sequence[tuple[ImageEntry, None]]) -> list[Failure[ImageEntry]]:
        transaction = fabric.transaction()
        for entry, _ in moved:
            columns = {
                "name": f".trash-{entry.row.id}",
                "old_name": entry.record.name,
                "state": State.TRASHED,
            }
            transaction.guard(entry.row, "name")
            transaction.update(entry.row, columns)
        transaction.commit()
        return []

    return deleting.take_away(
        fabric,
        tenant,
        names,
        Step(work=discard, record=record),
        columns=times,
        whole=True,
        progress=progress,
    )


def list_all(fabric: Fabric, tenant: str | None = None) -> list[Trashed]:
    """What is in the trash, the oldest first."""
    return [_trashed(entry) for entry in _entries(fabric, tenant)]


def restore(
    fabric: Fabric, cluster: Cluster, tenant: str, which: str, name: ImageName | None = None
) -> ImageName:
    """Take an image, by its former name or its id, out of the trash; its name from now on."""
    entry = _one(fabric, tenant, which)
    target = name or ImageName(entry.row["old_name"])

    def reserve(transaction: Transaction) -> None:
        transaction.guard(entry.row, "state", "name")
        transaction.update(entry.row, {"name": target})

    def release(transaction: Transaction) -> None:
        transaction.update(entry.row, {"name": f".trash-{entry.row.id}"})

    try:
        fabric.change(reserve)
    except UniqueViolation as error:
        raise AlreadyExists(
            f"tenant {tenant} has an image {target} already. Restore it under another name: "
            f"svctl trash restore {which} --name NAME --tenant {tenant}."
        ) from error
    path, id = entry.record.path.named(target), entry.row["ceph_id"]
    try:
        trash.restore(cluster, path, id)
    except AlreadyExists as error:
        fabric.change(release)
        raise Refused(
            f"image {path} exists in Ceph, made by somebody else. Choose another name: --name."
        ) from error
    if naming.image_id(cluster, path) != id:
        fabric.change(release)
        raise NotFound(
            f"Ceph has lost image {which}: it is not in its trash. Take it off the books: "
            f"svctl trash purge {entry.row.id} --tenant {tenant}."
        )
    transaction = fabric.transaction()
    transaction.update(
        entry.row,
        {"state": State.READY, "old_name": None, "trashed_at": None, "expires_at": None},
    )
    transaction.commit()
    return target


def purge(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str | None,
    which: Sequence[str] = (),
    *,
    now: int,
    everything: bool = False,
    progress: Progress = no_progress,
) -> Outcome:
    """Delete what is in the trash: these images, or all, or those whose time is over."""
    if which:
        if tenant is None:
            raise InvalidRequest("say whose image it is: --tenant.")
        entries = [_one(fabric, tenant, one) for one in which]
    else:
        found = _entries(fabric, tenant)
        entries = [one for one in found if everything or one.row["expires_at"] <= now]

    def remove(entry: ImageEntry) -> None:
        trash.remove(cluster, entry.record.path, entry.row["ceph_id"])
        # A restore that was interrupted had given it its new name.
        if naming.image_id(cluster, entry.record.path) == entry.row["ceph_id"]:
            images.remove(cluster, entry.record.path)

    def forget(removed: Sequence[tuple[ImageEntry, None]]) -> list[Failure[ImageEntry]]:
        of: dict[str, list[ImageEntry]] = {}
        for entry, _ in removed:
            of.setdefault(entry.record.tenant, []).append(entry)
        for owned in of.values():
            admission.forget_all(fabric, owned)
        return []

    steps: list[Step[ImageEntry]] = [Step(work=remove, record=forget)]
    failures = parallel.run(entries, steps, progress=progress)
    return parallel.outcome(entries, failures, lambda entry: str(entry.row["old_name"]))


def _entries(fabric: Fabric, tenant: str | None) -> list[ImageEntry]:
    found = catalog.images(fabric, tenant, state=State.TRASHED)
    return sorted(found, key=lambda entry: int(entry.row["trashed_at"]))


def _one(fabric: Fabric, tenant: str, which: str) -> ImageEntry:
    tenants.find(fabric, tenant)
    found = [
        entry
        for entry in _entries(fabric, tenant)
        if which in (entry.row["old_name"], str(entry.row.id))
    ]
    if not found:
        raise NotFound(
            f"the trash of tenant {tenant} has no image {which}. "
            f"See `svctl trash list --tenant {tenant}`."
        )
    if len(found) > 1:
        ids = ", ".join(str(entry.row.id) for entry in found)
        raise InvalidRequest(f"the trash has several images {which}. Choose by id: {ids}.")
    return found[0]


def _trashed(entry: ImageEntry) -> Trashed:
    return Trashed(
        id=str(entry.row.id),
        tenant=entry.record.tenant,
        name=entry.row["old_name"],
        pool=entry.record.pool,
        size_bytes=entry.record.size_bytes,
        trashed_at=entry.row["trashed_at"],
        expires_at=entry.row["expires_at"],
    )
