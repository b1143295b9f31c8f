"""Images that other tenants may clone, and read as their clones' parent: golden images.

Sharing is recorded first and then carried out in the other tenant's caps, so an interrupted call
is finished by the same call, or by `svctl namespace repair`. It reaches the whole image, all its
snapshots and what is in it now: Ceph's caps know objects, and a snapshot is no object of its own.
"""

from collections.abc import Sequence

from storvirt.backends import images
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, TenantName
from storvirt.service import catalog, namespaces
from storvirt.service.catalog import ImageEntry
from tenancy import service as tenants
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import InvalidRequest, NotFound, Refused


def share(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, readers: Sequence[str]
) -> list[str]:
    """Let `readers` clone the image; returns all with whom it is shared, by name."""
    entry = catalog.ready_image(fabric, tenant, name)
    if tenant in readers:
        raise InvalidRequest(
            f"image {name} is {tenant}'s own. Name the tenants that are to read it."
        )
    added = {tenants.find(fabric, reader).id for reader in readers}

    def build(transaction: Transaction) -> None:
        row = _row(fabric, entry)
        transaction.guard(row, "shared_with", "state")
        transaction.update(row, {"shared_with": {*row["shared_with"], *added}})

    fabric.change(build)
    for reader in readers:
        namespaces.set_caps(fabric, cluster, TenantName(reader))
    return readers_of(fabric, tenant, name)


def unshare(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, readers: Sequence[str]
) -> list[str]:
    """Let `readers` read the image no longer. Refused while they have clones of it."""
    entry = catalog.image(fabric, tenant, name)
    removed = {tenants.find(fabric, reader).id for reader in readers}

    def build(transaction: Transaction) -> None:
        row = _row(fabric, entry)
        snapshots = {snapshot.id for snapshot in fabric.select("Snapshot", image=row.id)}
        for reader in removed:
            clones = sorted(
                image["name"]
                for image in fabric.select("Image", tenant=reader)
                if image["parent"] in snapshots
            )
            if clones:
                raise Refused(
                    f"image {name} has clones there: {', '.join(clones[:5])}"
                    f"{' and more' if len(clones) > 5 else ''}, which read it. Flatten or delete "
                    "them first."
                )
        transaction.guard(row, "shared_with")
        transaction.update(row, {"shared_with": set(row["shared_with"]) - removed})

    fabric.change(build)
    for reader in readers:
        namespaces.set_caps(fabric, cluster, TenantName(reader))
    return readers_of(fabric, tenant, name)


def renew(fabric: Fabric, cluster: Cluster, entry: ImageEntry) -> None:
    """Let those with whom the image is shared read it as it is now: one that has been moved has
    another id, which their caps name."""
    shared = _row(fabric, entry)["shared_with"]
    for reader in fabric.select("Tenant") if shared else ():
        if reader.id in shared:
            namespaces.set_caps(fabric, cluster, TenantName(reader["name"]))


def refuse_read(fabric: Fabric, cluster: Cluster, entry: ImageEntry) -> None:
    """Raise Refused if a clone of another tenant is open, and so reads the image.

    A session keeps the caps that it began with, for an hour perhaps, and they name the image's id.
    """
    snapshots = {row.id for row in fabric.select("Snapshot", image=entry.row.id)}
    for clone in catalog.images(fabric) if entry.row["shared_with"] and snapshots else ():
        if clone.tenant == entry.tenant or clone.row["parent"] not in snapshots:
            continue
        if users := images.users(cluster, clone.record.path):
            raise Refused(
                f"image {entry.record.name} is read by {clone.record.tenant}/{clone.record.name}, "
                f"which is open on {', '.join(users)} and could not read it in another pool. Have "
                "that guest stopped for the move."
            )


def readers_of(fabric: Fabric, tenant: str, name: ImageName) -> list[str]:
    """The tenants with whom an image is shared, by name."""
    shared = catalog.image(fabric, tenant, name).row["shared_with"]
    return sorted(row["name"] for row in fabric.select("Tenant") if row.id in shared)


def _row(fabric: Fabric, entry: ImageEntry) -> Row:
    row = fabric.find("Image", id=entry.row.id)
    if row is None:
        raise NotFound(f"image {entry.record.name} has just been deleted.")
    return row
