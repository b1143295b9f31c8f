"""Images: create, clone, resize, show, and free from a dead host's lock."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storvirt import features
from storvirt.backends import fencing, images
from storvirt.backends.cluster import Cluster
from storvirt.backends.images import ImageFacts
from storvirt.features import Layout
from storvirt.model import Image, ImageName, ImagePath, PoolName, SnapshotRef, State
from storvirt.service import admission, catalog, creating, flattening, making
from storvirt.service.catalog import ImageEntry, SnapshotEntry
from storvirt.service.parallel import Outcome, Progress, no_progress, outcome
from tenancy import ledger
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import InvalidRequest, NotFound, Refused
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
    passphrase: str | None = None,
    layout: Layout | None = None,
) -> Image:
    """An empty image of that size, as `creating.create` makes it."""
    made = creating.create(
        fabric,
        cluster,
        tenant,
        [name],
        size_bytes,
        pool=pool,
        passphrase=passphrase,
        layout=layout,
    )
    for _, error in made.failed:
        raise error
    return catalog.image(fabric, tenant, name).record


def clone(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    parent: SnapshotRef,
    names: Sequence[ImageName],
    *,
    pool: PoolName | None = None,
    owner: str | None = None,
    max_depth: int = flattening.DEPTH,
    flatten_deep: bool = False,
    object_bytes: int | None = None,
    progress: Progress = no_progress,
) -> Outcome:
    """Images that share their blocks with a protected snapshot until they write them.

    All are admitted or none. Those that are there already as asked are left as they are, so the
    same call finishes what was interrupted. `owner` is whose the snapshot is, if it is shared.
    `max_depth` generations are allowed; with `flatten_deep`, clones beyond that are copied whole.
    """
    origin = catalog.snapshot(fabric, owner or tenant, parent)
    catalog.refuse_unready(origin.image)
    _refuse_unprotected(tenant, origin)
    if owner not in (None, tenant) and not _is_shared(fabric, origin, tenant):
        raise Refused(
            f"image {parent.image} of tenant {owner} is not shared with {tenant}. Its owner can: "
            f"svctl image share {parent.image} --tenant {owner} --with {tenant}."
        )
    deep = flattening.is_too_deep(fabric, origin, max_depth, may_flatten=flatten_deep)
    source = origin.image.record.path

    def make(path: ImagePath) -> None:
        images.clone(cluster, source, parent.snapshot, path, data_pool, object_bytes=object_bytes)

    admitted = admission.admit_all(
        fabric,
        tenant,
        names,
        origin.record.size_bytes,
        pool=pool,
        beside=source.pool,
        parent=origin,
    )
    if len(names) == 1:
        admission.insist_on_one(tenant, admitted)
    data_pool = catalog.data_pool(fabric, admitted.pool)
    failures = making.carry_out(fabric, cluster, admitted, make, progress)
    present = [catalog.name_of(entry) for entry in admitted.present]
    made = outcome(admitted.entries, failures, catalog.name_of, present)
    if not deep or made.failed:
        return made
    flat = flattening.flatten_all(fabric, cluster, tenant, names, progress)
    return Outcome(done=made.done, present=made.present, failed=flat.failed)


def limit(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    settings: Mapping[str, str | None],
) -> None:
    """Set what the image may do per second, as `storvirt.qos` writes it."""
    entry = catalog.ready_image(fabric, tenant, name)
    images.set_metadata(cluster, entry.record.path, settings)


def switch(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    on: Sequence[str],
    off: Sequence[str],
) -> None:
    """Switch features of an image on and off. Raises InvalidRequest if they don't go together."""
    path = catalog.ready_image(fabric, tenant, name).record.path
    facts = images.describe(cluster, path)
    added, dropped = features.switch(facts.features, on, off)
    if dropped & {"exclusive-lock"} and facts.users:
        raise Refused(
            f"image {name} is open on {', '.join(facts.users)}, which holds its lock. "
            "Stop its guest first."
        )
    images.switch_features(cluster, path, added, dropped)


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
    if size_bytes < present:
        _refuse_grouped(fabric, entry)
    if size_bytes >= entry.record.size_bytes:
        promise_size(fabric, tenant, entry, size_bytes)
        images.resize(cluster, entry.record.path, size_bytes)
    else:
        images.resize(cluster, entry.record.path, size_bytes)
        promise_size(fabric, tenant, entry, size_bytes)
    return catalog.image(fabric, tenant, name).record


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
    owner = images.break_lock(cluster, entry.record.path)
    if owner is not None:
        # librbd has done it for an hour, after which a host that was paused would write again.
        fencing.fence(cluster, [owner])
    return owner


def _refuse_grouped(fabric: Fabric, entry: ImageEntry) -> None:
    # Rolling the group back would bring the size back, and there may be no quota for it then.
    if entry.row["group"] is None:
        return
    for row in fabric.select("GroupSnapshot", group=entry.row["group"]):
        if entry.row.id in row["images"]:
            raise Refused(
                f"image {entry.record.name} is in snapshot {row['name']} of its group. Delete "
                "that first: svctl group delete-snapshot."
            )


def _is_shared(fabric: Fabric, origin: SnapshotEntry, tenant: str) -> bool:
    return tenants.find(fabric, tenant).id in origin.image.row["shared_with"]


def promise_size(fabric: Fabric, tenant: str, entry: ImageEntry, size_bytes: int) -> None:
    """Record another size for the image, and charge or give back the difference."""

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
