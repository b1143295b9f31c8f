"""Snapshots of images: create, list, protect, delete."""

from storvirt.backends import images
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, Snapshot, SnapshotRef, State
from storvirt.service import catalog
from storvirt.service.catalog import ImageEntry, SnapshotEntry
from tenancy import ledger
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, Refused
from tenancy.model import Resource

_ONE = {Resource.SNAPSHOTS: 1}


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
    image = catalog.ready_image(fabric, tenant, ref.image)
    path = image.record.path
    row = fabric.find("Snapshot", image=image.row.id, name=ref.snapshot)
    if row is not None and row["state"] != State.CREATING:
        raise AlreadyExists(f"snapshot {ref} exists already. Choose another name.")
    if row is None:
        if ref.snapshot in images.snapshots(cluster, path):
            raise AlreadyExists(
                f"snapshot {ref} exists in Ceph, made by somebody else. Choose another name."
            )
        _admit(fabric, tenant, image, ref, images.describe(cluster, path).size_bytes, holder)
    images.create_snapshot(cluster, path, ref.snapshot)
    if protect:
        images.protect_snapshot(cluster, path, ref.snapshot, True)
    entry = catalog.snapshot(fabric, tenant, ref)
    _update(fabric, entry, {"state": State.READY, "protected": protect})
    return catalog.snapshot(fabric, tenant, ref).record


def list_all(fabric: Fabric, tenant: str, image: ImageName) -> list[Snapshot]:
    """The snapshots of an image. Raises NotFound."""
    found = catalog.snapshots(fabric, catalog.image(fabric, tenant, image))
    return [entry.record for entry in found]


def protect(fabric: Fabric, cluster: Cluster, tenant: str, ref: SnapshotRef) -> Snapshot:
    """Keep the snapshot from being deleted, so that it can be cloned."""
    entry = _ready(fabric, tenant, ref)
    images.protect_snapshot(cluster, entry.image.record.path, ref.snapshot, True)
    _update(fabric, entry, {"protected": True})
    return catalog.snapshot(fabric, tenant, ref).record


def unprotect(fabric: Fabric, cluster: Cluster, tenant: str, ref: SnapshotRef) -> Snapshot:
    """Let the snapshot be deleted again. Refused while it has clones."""
    entry = _ready(fabric, tenant, ref)

    def build(transaction: Transaction) -> None:
        _refuse_cloned(fabric, entry)
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
    entry = catalog.snapshot(fabric, tenant, ref)
    if entry.row["holder"] not in (None, holder):
        raise Refused(
            f"snapshot {ref} is needed by {entry.row['holder']}. If that is given up: "
            f"svctl backup release {ref} --tenant {tenant}."
        )
    if entry.record.protected:
        raise Refused(
            f"snapshot {ref} is protected. First: svctl snapshot unprotect {ref} --tenant {tenant}."
        )

    def mark(transaction: Transaction) -> None:
        _refuse_cloned(fabric, entry)
        transaction.require_none("Image", parent=entry.row.id)
        transaction.guard(entry.row, "protected")
        transaction.update(entry.row, {"state": State.DELETING})

    def forget(transaction: Transaction) -> None:
        if fabric.find("Snapshot", id=entry.row.id) is not None:
            transaction.guard(entry.row)
            transaction.delete(entry.row)
            ledger.refund(transaction, entry.image.tenant, _ONE)

    fabric.change(mark)
    # An `unprotect` that was interrupted has told the database only.
    path = entry.image.record.path
    if ref.snapshot in images.snapshots(cluster, path):
        images.protect_snapshot(cluster, path, ref.snapshot, False)
        images.remove_snapshot(cluster, path, ref.snapshot)
    fabric.change(forget)


def _admit(
    fabric: Fabric,
    tenant: str,
    image: ImageEntry,
    ref: SnapshotRef,
    size_bytes: int,
    holder: str | None,
) -> None:
    transaction = fabric.transaction()
    transaction.guard(image.row, "state")
    transaction.insert(
        "Snapshot",
        {
            "image": image.row.id,
            "name": ref.snapshot,
            "size_bytes": size_bytes,
            "state": State.CREATING,
            "protected": False,
            "holder": holder,
        },
    )
    ledger.charge(transaction, image.tenant, tenant, _ONE)
    try:
        transaction.commit()
    except UniqueViolation as error:
        raise AlreadyExists(f"snapshot {ref} has just been taken by somebody else.") from error


def _update(fabric: Fabric, entry: SnapshotEntry, columns: dict[str, object]) -> None:
    transaction = fabric.transaction()
    transaction.guard(entry.row, "state")
    transaction.update(entry.row, columns)
    transaction.commit()


def _ready(fabric: Fabric, tenant: str, ref: SnapshotRef) -> SnapshotEntry:
    entry = catalog.snapshot(fabric, tenant, ref)
    if entry.record.state is not State.READY:
        raise Refused(
            f"snapshot {ref} is {entry.record.state}. Run the command that began it again."
        )
    return entry


def _refuse_cloned(fabric: Fabric, entry: SnapshotEntry) -> None:
    clones = sorted(row["name"] for row in fabric.select("Image", parent=entry.row.id))
    if clones:
        raise Refused(
            f"snapshot {entry.record.image}@{entry.record.name} has clones: "
            f"{', '.join(clones[:5])}{' and more' if len(clones) > 5 else ''}. Delete them first."
        )
