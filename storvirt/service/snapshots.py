"""Snapshots of images: create, list, protect, delete; many at a time where that is asked."""

from collections.abc import Sequence
from uuid import UUID, uuid4

from storvirt.backends import images
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, Snapshot, SnapshotName, SnapshotRef, State
from storvirt.service import catalog, golden_catalog, parallel
from storvirt.service.catalog import ImageEntry, SnapshotEntry
from storvirt.service.parallel import (
    SNAPSHOT_THREADS,
    Failure,
    Outcome,
    Progress,
    Step,
    no_progress,
)
from tenancy import ledger
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, NotFound, Refused
from tenancy.model import Resource


def create(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    ref: SnapshotRef,
    *,
    protect: bool = False,
    holder: str | None = None,
) -> Snapshot:
    """The image as it is now, kept. `protect` makes it fit to clone from.

    `holder` names what relies on the snapshot, in words: only it can delete the snapshot then.
    """
    made = create_all(fabric, cluster, tenant, [ref], protect=protect, holder=holder)
    if made.present:
        raise AlreadyExists(f"snapshot {ref} exists already. Choose another name.")
    for _, error in made.failed:
        raise error
    return catalog.snapshot(fabric, tenant, ref).record


def create_all(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    refs: Sequence[SnapshotRef],
    *,
    protect: bool = False,
    holder: str | None = None,
    progress: Progress = no_progress,
) -> Outcome:
    """Snapshots of several images, admitted together; those that are there are passed over."""
    if not refs:
        return Outcome(done=())
    entries, fresh, present = _admit(fabric, tenant, refs, holder)

    def take(entry: SnapshotEntry) -> int:
        return images.take_snapshot(
            cluster,
            entry.image.record.path,
            entry.record.name,
            protect=protect,
            exclusively=entry.row.id in fresh,
        )

    def finish(taken: Sequence[tuple[SnapshotEntry, int]]) -> list[Failure[SnapshotEntry]]:
        transaction = fabric.transaction()
        for entry, size_bytes in taken:
            transaction.update(
                entry.row,
                {"state": State.READY, "protected": protect, "size_bytes": size_bytes},
            )
        transaction.commit()
        return []

    steps: list[Step[SnapshotEntry]] = [Step(work=take, record=finish)]
    failures = parallel.run(entries, steps, threads=SNAPSHOT_THREADS, progress=progress)
    foreign = [
        failure.item
        for failure in failures
        if isinstance(failure.error, AlreadyExists | NotFound) and failure.item.row.id in fresh
    ]
    _forget(fabric, foreign)
    return parallel.outcome(entries, failures, _name, [str(ref) for ref in present])


def list_all(fabric: Fabric, tenant: str, image: ImageName) -> list[Snapshot]:
    """The snapshots of an image. Raises NotFound."""
    found = catalog.snapshots(fabric, catalog.image(fabric, tenant, image))
    return [entry.record for entry in found]


def of_all_images(fabric: Fabric, tenant: str, name: SnapshotName) -> list[SnapshotRef]:
    """What `name` would be called on each of the tenant's images that can be used."""
    return [
        SnapshotRef(image=entry.record.name, snapshot=name)
        for entry in catalog.images(fabric, tenant)
        if entry.record.state is State.READY
    ]


def protect(fabric: Fabric, cluster: Cluster, tenant: str, ref: SnapshotRef) -> Snapshot:
    """Keep the snapshot from being deleted, so that it can be cloned."""
    entry = ready(fabric, tenant, ref)
    images.protect_snapshot(cluster, entry.image.record.path, ref.snapshot, True)
    _update(fabric, entry, {"protected": True})
    return catalog.snapshot(fabric, tenant, ref).record


def unprotect(fabric: Fabric, cluster: Cluster, tenant: str, ref: SnapshotRef) -> Snapshot:
    """Let the snapshot be deleted again. Refused while it has clones."""
    entry = ready(fabric, tenant, ref)

    def build(transaction: Transaction) -> None:
        golden_catalog.refuse_golden(fabric, entry.row, str(ref), tenant)
        _refuse_cloned(entry, fabric.select("Image", parent=entry.row.id))
        transaction.require_none("Image", parent=entry.row.id)
        transaction.update(entry.row, {"protected": False})

    fabric.change(build)
    images.protect_snapshot(cluster, entry.image.record.path, ref.snapshot, False)
    return catalog.snapshot(fabric, tenant, ref).record


def delete(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    ref: SnapshotRef,
    *,
    holder: str | None = None,
) -> None:
    """Remove a snapshot without protection or clones that nobody but `holder` relies on."""
    catalog.snapshot(fabric, tenant, ref)
    for _, error in delete_all(fabric, cluster, tenant, [ref], holder=holder).failed:
        raise error


def delete_all(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    refs: Sequence[SnapshotRef],
    *,
    holder: str | None = None,
    progress: Progress = no_progress,
) -> Outcome:
    """Remove snapshots; those that are gone already are passed over."""
    if not refs:
        return Outcome(done=())
    entries = _find(fabric, tenant, refs)
    failures = _mark_deleting(fabric, tenant, entries, holder)
    refused = {id(failure.item) for failure in failures}
    marked = [entry for entry in entries if id(entry) not in refused]

    def remove(entry: SnapshotEntry) -> None:
        images.remove_snapshot(cluster, entry.image.record.path, entry.record.name)

    def forget(removed: Sequence[tuple[SnapshotEntry, None]]) -> list[Failure[SnapshotEntry]]:
        _forget(fabric, [entry for entry, _ in removed])
        return []

    steps: list[Step[SnapshotEntry]] = [Step(work=remove, record=forget)]
    lost = parallel.run(marked, steps, threads=SNAPSHOT_THREADS, progress=progress)
    there = {_name(entry) for entry in entries}
    gone = [str(ref) for ref in refs if str(ref) not in there]
    return parallel.outcome(entries, [*failures, *lost], _name, gone)


def ready(fabric: Fabric, tenant: str, ref: SnapshotRef) -> SnapshotEntry:
    """A snapshot that can be used. Raises NotFound or Refused."""
    entry = catalog.snapshot(fabric, tenant, ref)
    if entry.record.state is not State.READY:
        raise Refused(
            f"snapshot {ref} is {entry.record.state}. Run the command that began it again."
        )
    return entry


def _admit(
    fabric: Fabric, tenant: str, refs: Sequence[SnapshotRef], holder: str | None
) -> tuple[list[SnapshotEntry], frozenset[UUID], list[SnapshotRef]]:
    """Record the intents; those to carry out, which of them are new, and those that are done."""
    fresh: dict[UUID, tuple[ImageEntry, SnapshotName]] = {}

    def build(transaction: Transaction) -> None:
        fresh.clear()
        of = _images(fabric, tenant, refs)
        there = {_key(row) for row in _rows(fabric, of, refs)}
        for ref in refs:
            image = of[ref.image]
            catalog.refuse_unready(image)
            if (image.row.id, ref.snapshot) not in there:
                fresh[uuid4()] = image, ref.snapshot
        for row_id, (image, name) in fresh.items():
            transaction.guard(image.row, "state")
            row = {
                "image": image.row.id,
                "name": name,
                "size_bytes": image.record.size_bytes,
                "state": State.CREATING,
                "protected": False,
                "holder": holder,
            }
            transaction.insert_as(row_id, "Snapshot", row)
        if fresh:
            owner = next(iter(of.values())).tenant
            ledger.charge(transaction, owner, tenant, {Resource.SNAPSHOTS: len(fresh)})

    try:
        fabric.change(build)
    except UniqueViolation as error:
        raise AlreadyExists(
            f"snapshot {refs[0]} has just been taken by somebody else. Look at it and try again."
        ) from error
    found = _find(fabric, tenant, refs)
    begun = [entry for entry in found if entry.record.state is State.CREATING]
    present = [
        SnapshotRef(image=entry.image.record.name, snapshot=entry.record.name)
        for entry in found
        if entry.record.state is State.READY
    ]
    leaving = [entry for entry in found if entry.record.state is State.DELETING]
    if leaving:
        raise Refused(
            f"snapshot {_name(leaving[0])} is being deleted. Finish that: svctl snapshot delete "
            f"{_name(leaving[0])} --tenant {tenant}."
        )
    return begun, frozenset(fresh), present


def _mark_deleting(
    fabric: Fabric, tenant: str, entries: Sequence[SnapshotEntry], holder: str | None
) -> list[Failure[SnapshotEntry]]:
    def build(transaction: Transaction) -> list[Failure[SnapshotEntry]]:
        clones: dict[UUID, list[Row]] = {}
        one = {"parent": entries[0].row.id} if len(entries) == 1 else {}
        for row in fabric.select("Image", **one) if entries else ():
            clones.setdefault(row["parent"], []).append(row)
        failures: list[Failure[SnapshotEntry]] = []
        for entry in entries:
            try:
                _refuse_held(tenant, entry, holder)
                _refuse_protected(tenant, entry)
                _refuse_cloned(entry, clones.get(entry.row.id, []))
            except Refused as error:
                failures.append(Failure(item=entry, error=error))
                continue
            transaction.require_none("Image", parent=entry.row.id)
            transaction.guard(entry.row, "protected")
            transaction.update(entry.row, {"state": State.DELETING})
        return failures

    return fabric.change(build)


def _forget(fabric: Fabric, entries: Sequence[SnapshotEntry]) -> None:
    def build(transaction: Transaction) -> None:
        one = {"id": entries[0].row.id} if len(entries) == 1 else {}
        there = {row.id for row in fabric.select("Snapshot", **one)}
        left = [entry for entry in entries if entry.row.id in there]
        for entry in left:
            transaction.guard(entry.row)
            transaction.delete(entry.row)
        ledger.refund(transaction, entries[0].image.tenant, {Resource.SNAPSHOTS: len(left)})

    if entries:
        fabric.change(build)


def _images(
    fabric: Fabric, tenant: str, refs: Sequence[SnapshotRef]
) -> dict[ImageName, ImageEntry]:
    names = {ref.image for ref in refs}
    found = {entry.record.name: entry for entry in catalog.images_named(fabric, tenant, names)}
    for ref in refs:
        if ref.image not in found:
            catalog.image(fabric, tenant, ref.image)
    return found


def _find(fabric: Fabric, tenant: str, refs: Sequence[SnapshotRef]) -> list[SnapshotEntry]:
    of = _images(fabric, tenant, refs)
    image = {entry.row.id: entry for entry in of.values()}
    rows = _rows(fabric, of, refs)
    return [catalog.snapshot_entry(row, image[row["image"]]) for row in rows]


def _rows(
    fabric: Fabric, of: dict[ImageName, ImageEntry], refs: Sequence[SnapshotRef]
) -> list[Row]:
    wanted = {(of[ref.image].row.id, str(ref.snapshot)) for ref in refs}
    names = {ref.snapshot for ref in refs}
    equals: dict[str, object] = {"name": refs[0].snapshot} if len(names) == 1 else {}
    if len(wanted) == 1:
        equals["image"] = of[refs[0].image].row.id
    rows = [row for row in fabric.select("Snapshot", **equals) if _key(row) in wanted]
    return sorted(rows, key=lambda row: str(row["name"]))


def _key(row: Row) -> tuple[UUID, str]:
    return row["image"], row["name"]


def _name(entry: SnapshotEntry) -> str:
    return f"{entry.record.image}@{entry.record.name}"


def _update(fabric: Fabric, entry: SnapshotEntry, columns: dict[str, object]) -> None:
    transaction = fabric.transaction()
    transaction.guard(entry.row, "state")
    transaction.update(entry.row, columns)
    transaction.commit()


def _refuse_held(tenant: str, entry: SnapshotEntry, holder: str | None) -> None:
    if entry.row["holder"] not in (None, holder):
        raise Refused(
            f"snapshot {_name(entry)} is needed by {entry.row['holder']}. If that is given up: "
            f"svctl backup release {_name(entry)} --tenant {tenant}."
        )


def _refuse_protected(tenant: str, entry: SnapshotEntry) -> None:
    if entry.record.protected:
        raise Refused(
            f"snapshot {_name(entry)} is protected. "
            f"First: svctl snapshot unprotect {_name(entry)} --tenant {tenant}."
        )


def _refuse_cloned(entry: SnapshotEntry, rows: Sequence[Row]) -> None:
    clones = sorted(str(row["name"]) for row in rows)
    if clones:
        raise Refused(
            f"snapshot {_name(entry)} has clones: "
            f"{', '.join(clones[:5])}{' and more' if len(clones) > 5 else ''}. Delete them first, "
            "or make them independent with `svctl image flatten`."
        )
