"""Golden images: made of a snapshot or a file, shown, taken back."""

from collections.abc import Callable
from pathlib import Path

from storvirt.backends import golden_images
from storvirt.backends.cluster import Cluster
from storvirt.golden import LARGEST_IMAGE_BYTES
from storvirt.model import ImageName, PoolName, SnapshotName, SnapshotRef, State
from storvirt.service import catalog, deleting, golden_catalog, importing, snapshots
from storvirt.service.golden_catalog import Golden, GoldenEntry
from storvirt.service.importing import Say
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, InvalidRequest, NotFound, Refused
from tenancy.names import format_size

# The snapshot of an image that is imported to be golden.
IMPORTED = SnapshotName("golden")

Progress = Callable[[int, int], None]


def create_from_file(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    path: Path,
    *,
    pool: PoolName | None = None,
    progress: Progress = lambda _done, _total: None,
    say: Say = lambda _sentence: None,
) -> Golden:
    """Import the file as an image of this name, and make that golden.

    The image takes quota like any other. Interrupted, the same call goes on.
    """
    entry = _admit(fabric, tenant, name, str(path.absolute()), imported=True)
    ref = SnapshotRef(image=name, snapshot=IMPORTED)
    try:
        importing.import_file(
            fabric,
            cluster,
            tenant,
            name,
            path,
            pool=pool,
            snapshot=IMPORTED,
            progress=progress,
            say=say,
        )
    except (InvalidRequest, Refused):
        if catalog.find_image(fabric, tenant, name) is None or _is_foreign(fabric, entry, name):
            _forget(fabric, entry)
        raise
    return _complete(fabric, cluster, tenant, entry, ref, progress)


def create_from_snapshot(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    ref: SnapshotRef,
    *,
    progress: Progress = lambda _done, _total: None,
) -> Golden:
    """Make a snapshot golden. It is protected, and stays as it is when this is taken back."""
    origin = catalog.snapshot(fabric, tenant, ref)
    if origin.record.state is not State.READY:
        raise Refused(
            f"snapshot {ref} is {origin.record.state}. Run the command that began it again first."
        )
    if origin.image.row["encryption"] is not None:
        raise Refused(
            f"image {ref.image} is encrypted, and hosts' caches hold what guests read. "
            "Choose one that is not."
        )
    if origin.record.size_bytes > LARGEST_IMAGE_BYTES:
        raise InvalidRequest(
            f"snapshot {ref} has {format_size(origin.record.size_bytes)}, and a golden image has "
            f"at most {format_size(LARGEST_IMAGE_BYTES)}. Choose a smaller one."
        )
    entry = _admit(fabric, tenant, name, str(ref), imported=False)
    if not origin.record.protected:
        snapshots.protect(fabric, cluster, tenant, ref)
    return _complete(fabric, cluster, tenant, entry, ref, progress)


def list_all(fabric: Fabric, tenant: str | None = None) -> list[Golden]:
    """All golden images, or one tenant's."""
    return [entry.record for entry in golden_catalog.entries(fabric, tenant)]


def get(fabric: Fabric, tenant: str, name: ImageName) -> tuple[Golden, list[str]]:
    """One golden image, and the names of its clones."""
    entry = golden_catalog.get(fabric, tenant, name)
    return entry.record, _clones(fabric, entry)


def delete(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> None:
    """Take a golden image back; the image with it if it was imported for it.

    Refused while it has clones. What hosts have of it in their caches makes room by and by.
    """
    entry = golden_catalog.get(fabric, tenant, name)

    def mark(transaction: Transaction) -> None:
        clones = _clones(fabric, entry)
        if clones:
            raise Refused(
                f"golden image {name} has clones: {', '.join(clones[:5])}"
                f"{' and more' if len(clones) > 5 else ''}. Delete them first."
            )
        if entry.row["snapshot"] is not None:
            transaction.require_none("Image", parent=entry.row["snapshot"])
        transaction.guard(entry.row)
        transaction.update(entry.row, {"state": State.DELETING})

    fabric.change(mark)
    ref = entry.record.snapshot or (
        SnapshotRef(image=name, snapshot=IMPORTED) if entry.record.imported else None
    )
    if ref is not None:
        try:
            path = catalog.image(fabric, tenant, ref.image).record.path
            golden_images.remove_manifest(cluster, path, ref.snapshot)
        except NotFound:
            ref = None
    if ref is not None and entry.record.imported:
        _remove_imported(fabric, cluster, tenant, entry, ref)
    _forget(fabric, entry)


def _admit(
    fabric: Fabric, tenant: str, name: ImageName, source: str, *, imported: bool
) -> GoldenEntry:
    """Record the intent, or find the same one that was interrupted."""
    entry = golden_catalog.find(fabric, tenant, name)
    if entry is None:
        if imported and catalog.find_image(fabric, tenant, name) is not None:
            raise AlreadyExists(
                f"tenant {tenant} has an image {name} already. Choose another name, or make a "
                f"snapshot of it golden: --from {name}@SNAPSHOT."
            )
        transaction = fabric.transaction()
        transaction.insert(
            "GoldenImage",
            {
                "tenant": tenants.find(fabric, tenant).id,
                "name": name,
                "source": source,
                "imported": imported,
                "state": State.CREATING,
            },
        )
        try:
            transaction.commit()
        except UniqueViolation as error:
            raise AlreadyExists(
                f"golden image {name} has just been created by somebody else."
            ) from error
        entry = golden_catalog.get(fabric, tenant, name)
    if entry.record.state is not State.CREATING:
        raise AlreadyExists(
            f"tenant {tenant} has a golden image {name} already ({entry.record.state}). "
            "Choose another name."
        )
    if (entry.record.source, entry.record.imported) != (source, imported):
        raise Refused(
            f"golden image {name} was begun from {entry.record.source} and not finished. Run the "
            f"same command as then, or give it up: svctl golden delete {name} --tenant {tenant}."
        )
    return entry


def _complete(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    entry: GoldenEntry,
    ref: SnapshotRef,
    progress: Progress,
) -> Golden:
    snapshot = catalog.snapshot(fabric, tenant, ref)

    def hold(transaction: Transaction) -> None:
        """From now on the snapshot can't be deleted."""
        transaction.guard(entry.row, "state")
        transaction.guard(snapshot.row, "state", "protected")
        transaction.update(entry.row, {"snapshot": snapshot.row.id})

    snapshot = catalog.snapshot(fabric, tenant, ref)
    fabric.change(hold)
    path = snapshot.image.record.path
    data_bytes = golden_images.write_manifest(cluster, path, ref.snapshot, progress)
    transaction = fabric.transaction()
    transaction.guard(entry.row, "state")
    transaction.update(entry.row, {"state": State.READY, "data_bytes": data_bytes})
    transaction.commit()
    return golden_catalog.get(fabric, tenant, entry.record.name).record


def _is_foreign(fabric: Fabric, entry: GoldenEntry, name: ImageName) -> bool:
    """Whether an image of this name is not the one that was imported to be golden."""
    image = catalog.find_image(fabric, entry.record.tenant, name)
    return image is not None and not (image.record.source or "").startswith(entry.record.source)


def _remove_imported(
    fabric: Fabric, cluster: Cluster, tenant: str, entry: GoldenEntry, ref: SnapshotRef
) -> None:
    # Let the snapshot go first: a row that refers to it would keep it.
    transaction = fabric.transaction()
    transaction.guard(entry.row)
    transaction.update(entry.row, {"snapshot": None})
    transaction.commit()
    image = catalog.find_image(fabric, tenant, ref.image)
    if image is None:
        return
    for held in catalog.snapshots(fabric, image):
        if held.record.name == IMPORTED:
            if held.record.protected:
                snapshots.unprotect(fabric, cluster, tenant, ref)
            snapshots.delete(fabric, cluster, tenant, ref)
    for _, error in deleting.delete(fabric, cluster, tenant, [ref.image]).failed:
        raise error


def _forget(fabric: Fabric, entry: GoldenEntry) -> None:
    transaction = fabric.transaction()
    transaction.delete(entry.row)
    transaction.commit()


def _clones(fabric: Fabric, entry: GoldenEntry) -> list[str]:
    if entry.row["snapshot"] is None:
        return []
    return sorted(row["name"] for row in fabric.select("Image", parent=entry.row["snapshot"]))
