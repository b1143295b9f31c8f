"""Deleting images, many at a time: marked together, removed in threads, forgotten together."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from storvirt.backends import images, trash
from storvirt.backends.cluster import Cluster, CommandFailed
from storvirt.model import ImageName, State
from storvirt.service import admission, catalog, parallel
from storvirt.service.catalog import ImageEntry
from storvirt.service.parallel import Failure, Outcome, Progress, Step, no_progress
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import NotFound, Refused


def delete(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    names: Sequence[ImageName],
    *,
    progress: Progress = no_progress,
) -> Outcome:
    """Remove images and their data, or what interrupted commands left of them.

    Of several names, those that are gone already are passed over. Raises NotFound if all are.
    """

    def remove(entry: ImageEntry) -> None:
        if entry.record.state is State.CREATING and not admission.is_complete(cluster, entry):
            images.remove(cluster, admission.unfinished(entry))
            return
        if entry.row["trashed_at"] is not None:
            # It was on its way to the trash.
            trash.remove(cluster, entry.record.path, entry.row["ceph_id"])
        refuse_used(cluster, entry)
        images.remove(cluster, entry.record.path)

    def forget(removed: Sequence[tuple[ImageEntry, None]]) -> list[Failure[ImageEntry]]:
        admission.forget_all(fabric, [entry for entry, _ in removed])
        return []

    step: Step[ImageEntry] = Step(work=remove, record=forget)
    return take_away(fabric, tenant, names, step, progress=progress)


def take_away(
    fabric: Fabric,
    tenant: str,
    names: Sequence[ImageName],
    step: Step[ImageEntry],
    *,
    columns: Mapping[str, object] | None = None,
    whole: bool = False,
    progress: Progress = no_progress,
) -> Outcome:
    """Mark images as leaving, with these columns, and let `step` take them away.

    Images with snapshots or in a group stay, and what was never finished too if it must be
    `whole`. One that `step` refuses is ready again.
    """
    entries = catalog.images_named(fabric, tenant, names)
    if not entries:
        catalog.image(fabric, tenant, names[0])
    failures = _mark_deleting(fabric, tenant, entries, columns or {}, whole)
    refused = {id(failure.item) for failure in failures}
    marked = [entry for entry in entries if id(entry) not in refused]
    lost = parallel.run(marked, [step], progress=progress)
    # Somebody has it open or took a snapshot just now: nothing of it was deleted yet.
    kept = [
        failure.item
        for failure in lost
        if isinstance(failure.error, Refused) and failure.item.record.state is State.READY
    ]
    _mark_ready(fabric, kept)
    here = {entry.record.name for entry in entries}
    gone = [name for name in names if name not in here]
    return parallel.outcome(entries, [*failures, *lost], catalog.name_of, gone)


def refuse_used(cluster: Cluster, entry: ImageEntry) -> None:
    """Raise Refused if somebody has the image open."""
    # Removing is refused by librbd too, but takes the lock from a guest before.
    path = entry.record.path
    try:
        users = images.users(cluster, path)
    except (NotFound, CommandFailed):
        # Removed half-way: its header is gone, and removing goes on from there.
        return
    if users:
        raise Refused(
            f"image {path.name} is open on {', '.join(users)}. Stop its guest; a client "
            "that died is forgotten after 30 s."
        )


def _mark_deleting(
    fabric: Fabric,
    tenant: str,
    entries: Sequence[ImageEntry],
    columns: Mapping[str, object],
    whole: bool,
) -> list[Failure[ImageEntry]]:
    def build(transaction: Transaction) -> list[Failure[ImageEntry]]:
        held = _holders(fabric, entries)
        failures = []
        for entry in entries:
            reason = held.get(entry.row.id) or _unfit(entry, whole)
            if reason:
                failures.append(Failure(item=entry, error=Refused(reason.format(tenant=tenant))))
            elif entry.record.state is not State.CREATING:
                transaction.require_none("Snapshot", image=entry.row.id)
                transaction.guard(entry.row, "group", "moving")
                transaction.update(entry.row, {"state": State.DELETING, **columns})
        return failures

    return fabric.change(build)


def _holders(fabric: Fabric, entries: Sequence[ImageEntry]) -> dict[UUID, str]:
    """Why images can't be deleted: snapshots, and groups that they are in."""
    if len(entries) == 1:
        rows = fabric.select("Snapshot", image=entries[0].row.id)
    else:
        rows = fabric.select("Snapshot")
    name_of = {entry.row.id: entry.record.name for entry in entries}
    held: dict[UUID, list[str]] = {}
    for row in rows:
        held.setdefault(row["image"], []).append(row["name"])
    reasons = {}
    for image, snapshots in held.items():
        if image in name_of:
            names, name = sorted(snapshots), name_of[image]
            reasons[image] = (
                f"image {name} has snapshots: {', '.join(names)}. "
                f"First: svctl snapshot delete {name}@{names[0]} --tenant {{tenant}}."
            )
    return reasons


def _unfit(entry: ImageEntry, whole: bool) -> str | None:
    name, state = entry.record.name, entry.record.state
    if entry.row["group"] is not None:
        return f"image {name} is in a group. First: svctl group remove GROUP {name}."
    if state is State.RENAMING:
        return (
            f"image {name} is being renamed. Finish that first: svctl image rename "
            f"{entry.row['old_name']} {name} --tenant {{tenant}}."
        )
    if entry.row["moving"] is not None:
        return (
            f"image {name} is being moved to another pool. Finish that first: run the same `svctl "
            f"migrate {name}` again, or undo it: svctl migrate {name} --abort --tenant {{tenant}}."
        )
    if state is State.TRASHED:
        return f"image {name} is being restored. Finish that first: svctl trash restore."
    if whole and (state is State.CREATING or entry.row["ceph_id"] is None):
        return f"image {name} is not complete. Delete it without --trash."
    return None


def _mark_ready(fabric: Fabric, entries: Sequence[ImageEntry]) -> None:
    if entries:
        transaction = fabric.transaction()
        for entry in entries:
            transaction.update(
                entry.row, {"state": State.READY, "trashed_at": None, "expires_at": None}
            )
        transaction.commit()
