"""An image's way into the fabric database and out of it, with the quota it takes.

An image under construction is called `.virtkit-<row id>` in Ceph and gets its own name last, by
rename. So a name never shows a half-made image, a leftover is known by whose it is, and an image
that a tenant made under the same name with stock tools is never taken for ours.
"""

from collections.abc import Callable

from storvirt.backends import images
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, ImagePath, PoolName, State
from storvirt.service import catalog
from storvirt.service.catalog import ImageEntry, SnapshotEntry
from tenancy import ledger
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import GuardFailed, Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, Conflict, NotFound, Refused
from tenancy.model import Resource


def admit(
    fabric: Fabric,
    tenant: str,
    name: ImageName,
    size_bytes: int,
    *,
    pool: PoolName | None,
    parent: SnapshotEntry | None = None,
    source: str | None = None,
) -> ImageEntry:
    """Record the intent to make an image, or find the same intent that was interrupted.

    Raises QuotaExceeded, AlreadyExists, or Refused if another intent holds the name.
    """

    def build(transaction: Transaction) -> None:
        if catalog.find_image(fabric, tenant, name) is not None:
            return
        space = catalog.namespace(fabric, tenant, pool)
        transaction.guard(space.row, "state")
        if parent is not None:
            transaction.guard(parent.row, "state", "protected")
        transaction.insert(
            "Image",
            {
                "tenant": space.tenant.id,
                "namespace": space.row.id,
                "name": name,
                "size_bytes": size_bytes,
                "state": State.CREATING,
                "parent": parent.row.id if parent else None,
                "source": source,
            },
        )
        ledger.charge(transaction, space.tenant.id, tenant, _amounts(size_bytes))

    try:
        fabric.change(build)
    except UniqueViolation as error:
        raise AlreadyExists(f"image {name} has just been created by somebody else.") from error
    entry = catalog.image(fabric, tenant, name)
    asked = (size_bytes, parent.row.id if parent else None, source)
    if entry.record.state is not State.CREATING:
        raise AlreadyExists(
            f"tenant {tenant} has an image {name} already ({entry.record.state}). "
            "Choose another name."
        )
    if (entry.row["size_bytes"], entry.row["parent"], entry.row["source"]) != asked:
        raise Refused(
            f"image {name} was begun otherwise and not finished. Run the same command as then, "
            f"or give it up: svctl image delete {name} --tenant {tenant}."
        )
    return entry


def unfinished(entry: ImageEntry) -> ImagePath:
    """What the image is called in Ceph until it is complete."""
    return entry.record.path.named(f".virtkit-{entry.row.id}")


def is_complete(cluster: Cluster, entry: ImageEntry) -> bool:
    """Whether the image has its own name in Ceph already; finishes giving it, if that was begun."""
    path = entry.record.path
    if images.note(cluster, path, images.OWNER) != str(entry.row.id):
        return False
    images.finish_rename(cluster, unfinished(entry), path.name)
    return True


def complete(
    fabric: Fabric, cluster: Cluster, entry: ImageEntry, make: Callable[[ImagePath], None]
) -> None:
    """Let `make` build the image under its unfinished name, name it, and mark it ready."""
    path = unfinished(entry)
    if not is_complete(cluster, entry):
        try:
            make(path)
            images.set_note(cluster, path, images.OWNER, str(entry.row.id))
            _publish(fabric, cluster, entry)
        except NotFound as error:
            raise Conflict(
                f"image {entry.record.name} is being created or deleted by another svctl. "
                "Look at it and try again."
            ) from error
    mark_ready(fabric, entry)


def mark_ready(fabric: Fabric, entry: ImageEntry) -> None:
    transaction = fabric.transaction()
    transaction.guard(entry.row, "state")
    transaction.update(entry.row, {"state": State.READY})
    try:
        transaction.commit()
    except GuardFailed as error:
        raise Conflict(
            f"image {entry.record.name} was finished or deleted by another svctl meanwhile."
        ) from error


def withdraw(fabric: Fabric, cluster: Cluster, entry: ImageEntry) -> None:
    """Undo an intent that can't be carried out: nothing of it is left."""
    images.remove(cluster, unfinished(entry))
    forget(fabric, entry)


def forget(fabric: Fabric, entry: ImageEntry) -> None:
    """Take the image out of the database and give its quota back; quiet if it is gone."""

    def build(transaction: Transaction) -> None:
        row = fabric.find("Image", id=entry.row.id)
        if row is None:
            return
        transaction.guard(row, "size_bytes")
        transaction.delete(row)
        ledger.refund(transaction, entry.tenant, _amounts(row["size_bytes"]))

    fabric.change(build)


def _publish(fabric: Fabric, cluster: Cluster, entry: ImageEntry) -> None:
    try:
        images.rename(cluster, unfinished(entry), entry.record.name)
    except AlreadyExists as error:
        withdraw(fabric, cluster, entry)
        raise Refused(
            f"image {entry.record.path} exists in Ceph, made by somebody else. "
            "Choose another name, or remove it with `rbd rm`."
        ) from error


def _amounts(size_bytes: int) -> dict[Resource, int]:
    return {Resource.IMAGES: 1, Resource.BYTES: size_bytes}
