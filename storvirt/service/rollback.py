"""Taking an image back to a snapshot.

Killed half-way, the image is a mixture of both, so the row says that it is being rolled back
before Ceph touches it, and nothing can use the image until it is done.
"""

from storvirt.backends import images
from storvirt.backends.cluster import Cluster
from storvirt.model import Image, SnapshotRef
from storvirt.service import catalog, deleting, snapshots
from storvirt.service.catalog import ImageEntry
from storvirt.service.images import promise_size
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import Refused


def rollback(fabric: Fabric, cluster: Cluster, tenant: str, ref: SnapshotRef) -> Image:
    """Make the image what it was when the snapshot was taken, its size too.

    Refused while it is open. What was written since is lost.
    """
    entry = catalog.image(fabric, tenant, ref.image)
    if entry.row["rollback"] not in (None, str(ref)):
        catalog.refuse_unready(entry)
    snapshot = snapshots.ready(fabric, tenant, ref)
    if entry.row["rollback"] is None:
        catalog.refuse_unready(entry)
        deleting.refuse_used(cluster, entry)
        _mark(fabric, entry, str(ref))
    size_bytes = snapshot.record.size_bytes
    if size_bytes > entry.record.size_bytes:
        promise_size(fabric, tenant, entry, size_bytes)
    try:
        deleting.refuse_used(cluster, entry)
        images.roll_back(cluster, entry.record.path, ref.snapshot)
    except Refused:
        # Somebody opened it just now, so nothing was touched.
        if entry.row["rollback"] is None:
            _mark(fabric, entry, None)
        raise
    if size_bytes < entry.record.size_bytes:
        promise_size(fabric, tenant, entry, size_bytes)
    _mark(fabric, entry, None)
    return catalog.image(fabric, tenant, ref.image).record


def _mark(fabric: Fabric, entry: ImageEntry, to: str | None) -> None:
    def build(transaction: Transaction) -> None:
        transaction.guard(entry.row, "state")
        transaction.update(entry.row, {"rollback": to})

    fabric.change(build)
