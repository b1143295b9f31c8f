"""Taking over an image that somebody made in a tenant's namespace with stock tools."""

from uuid import uuid4

from storvirt.backends import adoption
from storvirt.backends.cluster import Cluster
from storvirt.model import Image, ImageName, ImagePath, PoolName, State, checked_size
from storvirt.service import catalog
from tenancy import ledger
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, Refused
from tenancy.model import Resource


def adopt(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    *,
    pool: PoolName | None = None,
) -> Image:
    """The image as one of the tenant's own, charged with its snapshots. Ceph changes nothing.

    A guest may use it meanwhile. Raises QuotaExceeded, and Refused for what virtkit could not
    treat as its own: a clone, for its parent could be deleted under it.
    """
    space = catalog.namespace(fabric, tenant, pool)
    if catalog.find_image(fabric, tenant, name) is not None:
        raise AlreadyExists(f"tenant {tenant} has an image {name} already, so it is adopted.")
    path = ImagePath(pool=space.record.pool, namespace=space.record.tenant, name=name)
    found = adoption.inspect(cluster, path)
    checked_size(found.size_bytes)
    if found.parent is not None:
        raise Refused(
            f"image {path} is a clone of {found.parent}, which could be deleted under it. Make it "
            f"whole first: rbd flatten {path}."
        )
    row_id = uuid4()

    def build(transaction: Transaction) -> None:
        transaction.guard(space.row, "state")
        transaction.require_none("Image", tenant=space.tenant.id, old_name=name)
        transaction.insert_as(
            row_id,
            "Image",
            {
                "tenant": space.tenant.id,
                "namespace": space.row.id,
                "name": name,
                "size_bytes": found.size_bytes,
                "state": State.READY,
                "ceph_id": found.id,
                "encryption": found.encryption,
            },
        )
        for snapshot in found.snapshots:
            transaction.insert(
                "Snapshot",
                {
                    "image": row_id,
                    "name": snapshot.name,
                    "size_bytes": snapshot.size_bytes,
                    "state": State.READY,
                    "protected": snapshot.protected,
                },
            )
        amounts = {
            Resource.IMAGES: 1,
            Resource.BYTES: found.size_bytes,
            Resource.SNAPSHOTS: len(found.snapshots),
        }
        ledger.charge(transaction, space.tenant.id, tenant, amounts)

    try:
        fabric.change(build)
    except UniqueViolation as error:
        raise AlreadyExists(f"image {name} has just been created by somebody else.") from error
    return catalog.image(fabric, tenant, name).record
