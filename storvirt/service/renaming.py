"""Renaming images. The new name is taken in the database first, so that two can't want it."""

from storvirt.backends import naming
from storvirt.backends.cluster import Cluster
from storvirt.model import Image, ImageName, State
from storvirt.service import catalog, deleting
from storvirt.service.catalog import ImageEntry
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, InvalidRequest, Refused


def rename(fabric: Fabric, cluster: Cluster, tenant: str, old: ImageName, new: ImageName) -> Image:
    """Call an image otherwise; its snapshots and clones follow it. Refused while it is open.

    A guest that runs would not notice, and not find its disk when it is started again.
    """
    if old == new:
        raise InvalidRequest(f"image {old} is called that already.")
    begun = catalog.find_image(fabric, tenant, new)
    if begun and begun.record.state is State.RENAMING and begun.row["old_name"] == old:
        entry = begun
    else:
        entry = catalog.ready_image(fabric, tenant, old)
        deleting.refuse_used(cluster, entry)
        _reserve(fabric, tenant, entry, new)
    try:
        naming.give(cluster, entry.record.path.named(old), entry.row["ceph_id"], new)
    except AlreadyExists as error:
        _update(fabric, entry, {"name": old, "old_name": None, "state": State.READY})
        raise Refused(
            f"image {entry.record.path.named(new)} exists in Ceph, made by somebody else. "
            "Choose another name, or remove it with `rbd rm`."
        ) from error
    _update(fabric, entry, {"old_name": None, "state": State.READY})
    return catalog.image(fabric, tenant, new).record


def _reserve(fabric: Fabric, tenant: str, entry: ImageEntry, new: ImageName) -> None:
    def build(transaction: Transaction) -> None:
        transaction.guard(entry.row, "state", "name")
        transaction.require_none("Image", tenant=entry.tenant, old_name=new, state=State.RENAMING)
        transaction.update(
            entry.row, {"name": new, "old_name": entry.record.name, "state": State.RENAMING}
        )

    try:
        fabric.change(build)
    except UniqueViolation as error:
        raise AlreadyExists(
            f"tenant {tenant} has an image {new} already. Choose another name."
        ) from error


def _update(fabric: Fabric, entry: ImageEntry, columns: dict[str, object]) -> None:
    transaction = fabric.transaction()
    transaction.guard(entry.row)
    transaction.update(entry.row, columns)
    transaction.commit()
