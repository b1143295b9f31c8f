"""A quick look: do the fabric database and Ceph answer, and do they agree?"""

from typing import Any

from storvirt.backends import namespaces, osdkeys
from storvirt.backends.cluster import Cluster
from storvirt.model import State
from storvirt.service import catalog, golden_catalog
from tenancy.backends.fabric import Fabric
from tenancy.errors import NotFound


def check(fabric: Fabric, cluster: Cluster) -> dict[str, Any]:
    """Both sides' state, what is not finished, and images that only one side knows.

    A tenant's key can make images in its namespace with stock tools, and no quota admits those:
    they are the ones called unknown.
    """
    entries = catalog.images(fabric)
    golden = [entry.record for entry in golden_catalog.entries(fabric)]
    promised = [entry.record for entry in entries]
    pools = catalog.pools(fabric)
    spaces = [entry.record for entry in catalog.namespaces(fabric)]
    groups, moments = fabric.select_many([("ImageGroup", {}), ("GroupSnapshot", {})])
    unknown, missing = [], []
    for space in spaces:
        here = [i for i in promised if (i.tenant, i.pool) == (space.tenant, space.pool)]
        known = {i.name for i in here}
        try:
            found = set(namespaces.images(cluster, space.pool, space.tenant))
        except NotFound:
            found = set()
        where = f"{space.pool}/{space.tenant}"
        unfinished = {
            f".virtkit-{e.row.id}"
            for e in entries
            if e.record.state is State.CREATING or e.row["moving"]
        }
        unfinished |= {e.row["old_name"] for e in entries if e.record.state is State.RENAMING}
        unknown += [f"{where}/{name}" for name in sorted(found - known - unfinished)]
        missing += [str(i.path) for i in here if i.state is State.READY and i.name not in found]
    return {
        "fabric": fabric.remote,
        "ceph": cluster.fsid,
        "health": cluster.command("health")["status"],
        "pools": [pool.name for pool in pools],
        "images": len(promised),
        "unfinished": [
            *(f"pool {pool.name}" for pool in pools if pool.state is not State.READY),
            *(f"namespace {s.pool}/{s.tenant}" for s in spaces if s.state is not State.READY),
            *(f"image {i.path}" for i in promised if i.state is not State.READY),
            *(f"move of image {e.record.path}" for e in entries if e.row["moving"]),
            *(f"rollback of {e.record.path}" for e in entries if e.row["rollback"] is not None),
            *(f"group {row['name']}" for row in groups if row["state"] != State.READY),
            *(f"group snapshot {row['name']}" for row in moments if row["state"] != State.READY),
            *(f"golden image {g.tenant}/{g.name}" for g in golden if g.state is not State.READY),
        ],
        "unknown_in_fabric": unknown,
        "missing_in_ceph": missing,
        "osds_that_copy_for_anybody": sorted(osdkeys.wide(cluster)),
    }
