"""A quick look: do the fabric database and Ceph answer, and do they agree?"""

from typing import Any

from storvirt.backends import namespaces
from storvirt.backends.cluster import Cluster
from storvirt.model import State
from storvirt.service import catalog
from tenancy.backends.fabric import Fabric
from tenancy.errors import NotFound


def check(fabric: Fabric, cluster: Cluster) -> dict[str, Any]:
    """Both sides' state, images that are not finished, and images that only one side knows.

    A tenant's key can make images in its namespace with stock tools, and no quota admits those:
    they are the ones called unknown.
    """
    promised = [entry.record for entry in catalog.images(fabric)]
    unknown, missing = [], []
    for entry in catalog.namespaces(fabric):
        space = entry.record
        here = [i for i in promised if (i.tenant, i.pool) == (space.tenant, space.pool)]
        known = {i.name for i in here}
        try:
            found = set(namespaces.images(cluster, space.pool, space.tenant))
        except NotFound:
            found = set()
        where = f"{space.pool}/{space.tenant}"
        unknown += [f"{where}/{n}" for n in sorted(found - known) if not n.startswith(".virtkit-")]
        missing += [str(i.path) for i in here if i.state is State.READY and i.name not in found]
    return {
        "fabric": fabric.remote,
        "ceph": cluster.fsid,
        "health": cluster.command("health")["status"],
        "pools": [pool.name for pool in catalog.pools(fabric)],
        "images": len(promised),
        "unfinished": [str(i.path) for i in promised if i.state is not State.READY],
        "unknown_in_fabric": unknown,
        "missing_in_ceph": missing,
    }
