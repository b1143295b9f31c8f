"""Images: create, clone, resize, delete, show, and free from a dead host's lock."""

from dataclasses import dataclass

from storvirt.backends import images
from storvirt.backends.cluster import Cluster, CommandFailed
from storvirt.backends.images import ImageFacts
from storvirt.model import Image, ImageName, ImagePath, PoolName, SnapshotRef, State
from storvirt.service import admission, catalog
from storvirt.service.catalog import ImageEntry, SnapshotEntry
from tenancy import ledger
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import BackendUnavailable, InvalidRequest, NotFound, Refused
from tenancy.model import Resource
from tenancy.names import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """An image as promised and as Ceph has it; `facts` is None if it is not there."""

    image: Image
    facts: ImageFacts | None


def create(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    size_bytes: int,
    *,
    pool: PoolName | None = None,
) -> Image:
    """An empty image."""
    entry = admission.admit(fabric, tenant, name, size_bytes, pool=pool)

    def make(path: ImagePath) -> None:
        images.remove(cluster, path)
        images.create(cluster, path, size_bytes)

    admission.complete(fabric, cluster, entry, make)
    return catalog.image(fabric, tenant, name).record


def clone(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    parent: SnapshotRef,
    name: ImageName,
    *,
    pool: PoolName | None = None,
) -> Image:
    """An image that shares its blocks with a protected snapshot until it writes them."""
    origin = catalog.snapshot(fabric, tenant, parent)
    _refuse_unprotected(tenant, origin)
    source = origin.image.record.path
    entry = admission.admit(
        fabric,
        tenant,
        name,
        origin.record.size_bytes,
        pool=pool or source.pool,
        parent=origin,
    )

    def make(path: ImagePath) -> None:
        images.remove(cluster, path)
        images.clone(cluster, source, parent.snapshot, path)

    admission.complete(fabric, cluster, entry, make)
    return catalog.image(fabric, tenant, name).record


def list_all(fabric: Fabric, tenant: str | None = None) -> list[Image]:
    """All images, or one tenant's."""
    return [entry.record for entry in catalog.images(fabric, tenant)]


def get(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> ImageReport:
    """One image with what Ceph says of it. Raises NotFound."""
    image = catalog.image(fabric, tenant, name).record
    try:
        facts = images.describe(cluster, image.path)
    except NotFound:
        facts = None
    return ImageReport(image=image, facts=facts)


def resize(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    size_bytes: int,
    *,
    allow_shrink: bool = False,
) -> Image:
    """Give the image another size.

    Growing charges the quota before Ceph grows it, shrinking gives back after Ceph has shrunk it:
    wherever this is interrupted, the tenant never has more than it is charged for. Only an image
    that nobody has open is shrunk.
    """
    entry = catalog.ready_image(fabric, tenant, name)
    facts = images.describe(cluster, entry.record.path)
    present = facts.size_bytes
    if size_bytes < max(present, entry.record.size_bytes) and not allow_shrink:
        raise InvalidRequest(
            f"image {name} has {format_size(present)}, and what lies beyond "
            f"{format_size(size_bytes)} would be lost. Say so: --shrink."
        )
    if size_bytes < present and facts.users:
        raise Refused(
            f"image {name} is open on {', '.join(facts.users)}, and a guest does not survive that "
            "its disk is cut. Stop it first; a client that died is forgotten after 30 s."
        )
    if size_bytes >= entry.record.size_bytes:
        _promise_size(fabric, tenant, entry, size_bytes)
        images.resize(cluster, entry.record.path, size_bytes)
    else:
        images.resize(cluster, entry.record.path, size_bytes)
        _promise_size(fabric, tenant, entry, size_bytes)
    return catalog.image(fabric, tenant, name).record


def delete(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> None:
    """Remove the image and its data, or what an interrupted command left of it."""
    entry = catalog.image(fabric, tenant, name)
    if entry.record.state is State.CREATING:
        if not admission.is_complete(cluster, entry):
            admission.withdraw(fabric, cluster, entry)
            return
        admission.mark_ready(fabric, entry)
        entry = catalog.image(fabric, tenant, name)
    _refuse_used(cluster, entry)
    _mark_deleting(fabric, tenant, entry)
    try:
        images.remove(cluster, entry.record.path)
    except BackendUnavailable:
        raise
    except Refused:
        # Somebody opened it or took a snapshot just now; nothing was deleted yet.
        _mark(fabric, entry, State.READY)
        raise
    admission.forget(fabric, entry)


def unlock(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> str | None:
    """Free an image whose guest's host has died, and return the address that was fenced.

    The tenant's own key can't do it: breaking a lock means blocklisting, see `storvirt.caps`.
    """
    entry = catalog.ready_image(fabric, tenant, name)
    facts = images.describe(cluster, entry.record.path)
    if facts.lock_owner in facts.users:
        raise Refused(
            f"image {name} is open on {facts.lock_owner}, which answers. Stop the guest there; "
            "if its host has just died, Ceph notices within 30 s: try again then."
        )
    return images.break_lock(cluster, entry.record.path)


def _promise_size(fabric: Fabric, tenant: str, entry: ImageEntry, size_bytes: int) -> None:
    def build(transaction: Transaction) -> None:
        row = fabric.find("Image", id=entry.row.id)
        if row is None or row["state"] != State.READY:
            raise Refused(f"image {entry.record.name} is being deleted by another svctl.")
        transaction.guard(row, "size_bytes", "state")
        transaction.update(row, {"size_bytes": size_bytes})
        growth = size_bytes - row["size_bytes"]
        if growth > 0:
            ledger.charge(transaction, entry.tenant, tenant, {Resource.BYTES: growth})
        else:
            ledger.refund(transaction, entry.tenant, {Resource.BYTES: -growth})

    fabric.change(build)


def _mark_deleting(fabric: Fabric, tenant: str, entry: ImageEntry) -> None:
    def build(transaction: Transaction) -> None:
        held = catalog.snapshots(fabric, entry)
        if held:
            name = entry.record.name
            raise Refused(
                f"image {name} has snapshots: {', '.join(one.record.name for one in held)}. "
                f"First: svctl snapshot delete {name}@{held[0].record.name} --tenant {tenant}."
            )
        transaction.require_none("Snapshot", image=entry.row.id)
        transaction.update(entry.row, {"state": State.DELETING})

    fabric.change(build)


def _mark(fabric: Fabric, entry: ImageEntry, state: State) -> None:
    transaction = fabric.transaction()
    transaction.update(entry.row, {"state": state})
    transaction.commit()


def _refuse_used(cluster: Cluster, entry: ImageEntry) -> None:
    path = entry.record.path
    try:
        facts = images.describe(cluster, path)
    except (NotFound, CommandFailed):
        # Removed half-way: its header is gone, and removing goes on from there.
        return
    if facts.users:
        raise Refused(
            f"image {path.name} is open on {', '.join(facts.users)}. Stop its guest; a client "
            "that died is forgotten after 30 s."
        )


def _refuse_unprotected(tenant: str, origin: SnapshotEntry) -> None:
    ref = f"{origin.record.image}@{origin.record.name}"
    if origin.record.state is not State.READY:
        raise Refused(
            f"snapshot {ref} is {origin.record.state}. "
            "Finish that first: run the command that began it again."
        )
    if not origin.record.protected:
        raise Refused(
            f"snapshot {ref} is not protected. "
            f"First: svctl snapshot protect {ref} --tenant {tenant}."
        )
