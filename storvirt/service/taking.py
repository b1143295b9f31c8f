"""Taking a disk away from whoever has it, so that another host can start its guest."""

from storvirt.backends import fencing, images
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName
from storvirt.service import catalog
from tenancy.backends.fabric import Fabric


def take(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> list[str]:
    """Fence every client that has the image open or locked, and free its lock.

    Returns their addresses, once they can't write any more. Killed and called again, it fences
    those that are left.
    """
    entry = catalog.ready_image(fabric, tenant, name)
    facts = images.describe(cluster, entry.record.path)
    held = {*facts.users, *([facts.lock_owner] if facts.lock_owner else [])}
    fencing.fence(cluster, held)
    if images.break_lock(cluster, entry.record.path):
        # librbd has blocklisted the owner once more, and for an hour only.
        fencing.fence(cluster, held)
    return sorted(held)
