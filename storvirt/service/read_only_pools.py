"""Pools in which tenants only read, because a read-only cache is before them.

Over such a cache Ceph takes writes too: what is in the cache is changed there, what is not in the
base, and the cache can be dropped with it. So nobody writes there: tenants' keys can't (the
pool's tag says so, and Ceph enforces it at each request), and virtkit's own commands don't.
"""

from collections.abc import Sequence

from storvirt.backends import images, namespaces, pools
from storvirt.backends.cluster import Cluster
from storvirt.model import ImagePath, PoolName, State
from storvirt.service import catalog
from storvirt.service.namespaces import refresh_caps
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import NotFound, Refused

READ_ONLY = "read-only"


def claim(fabric: Fabric, cluster: Cluster, pool: PoolName) -> None:
    """Promise that nobody writes in the pool from now on; no image is begun there any more."""

    def build(transaction: Transaction) -> None:
        refuse_unfit(fabric, cluster, pool)
        for entry in catalog.images(fabric):
            if entry.record.pool == pool:
                transaction.guard(entry.row, "state")
        row = catalog.pool(fabric, pool)
        transaction.guard(row, "access")
        transaction.update(row, {"access": READ_ONLY})

    fabric.change(build)
    refresh_caps(fabric, cluster, pool)


def forget(fabric: Fabric, pool: PoolName) -> None:
    """Take the promise back, if it was given."""
    row = catalog.pool(fabric, pool)
    if row["access"] is not None:
        transaction = fabric.transaction()
        transaction.update(row, {"access": None})
        transaction.commit()


def refuse_unfit(fabric: Fabric, cluster: Cluster, pool: PoolName) -> None:
    """Refuse unless every image in the pool is a parent of clones that nobody writes."""
    found = [entry for entry in catalog.images(fabric) if entry.record.pool == pool]
    known = {(entry.record.tenant, entry.record.name) for entry in found}
    foreign = [
        f"{space.record.tenant}/{name}"
        for space in catalog.namespaces(fabric)
        if space.record.pool == pool
        for name in namespaces.images(cluster, pool, space.record.tenant)
        if (space.record.tenant, name) not in known
    ]
    reason = None
    if foreign:
        reason = f"image {foreign[0]} is not virtkit's. Move it away with `rbd`"
    for entry in found:
        name = f"{entry.record.tenant}/{entry.record.name}"
        if entry.record.state is not State.READY:
            reason = f"image {name} is {entry.record.state}. Finish that first"
        elif not any(one.record.protected for one in catalog.snapshots(fabric, entry)):
            reason = (
                f"image {name} has no protected snapshot, so nobody clones it and its tenant "
                "will write it. Move it to another pool, or choose --mode writeback"
            )
    writers = () if reason else users(cluster, [entry.record.path for entry in found])
    if writers:
        reason = (
            f"images are open for writing on {', '.join(writers[:5])}. Stop those guests, or "
            "choose --mode writeback"
        )
    if reason:
        raise Refused(
            f"pool {pool} can't have a read-only cache, over which writes are lost: {reason}."
        )


def refuse_late_writers(fabric: Fabric, cluster: Cluster, pool: PoolName) -> None:
    """Look once more, now that nobody new can come: who did is let work, and we give up."""
    cluster.wait_for_latest_map()
    try:
        refuse_unfit(fabric, cluster, pool)
    except Refused:
        pools.tag(cluster, pool)
        forget(fabric, pool)
        raise


def users(cluster: Cluster, paths: Sequence[ImagePath]) -> tuple[str, ...]:
    """The addresses of the clients that have one of the images open for writing."""
    found: set[str] = set()
    for path in paths:
        try:
            found.update(images.users(cluster, path))
        except NotFound:
            continue
    return tuple(sorted(found))
