"""Where an image's first object is served, and the hosts ranked for its VM."""

from collections import Counter

from storvirt import osdmap
from storvirt.backends import images, osdmaps
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName
from storvirt.placement import Placement, rank
from storvirt.service import catalog
from tenancy.backends.fabric import Fabric


def place(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> Placement:
    """The placement of one image by the newest osdmap and the load that the fabric knows."""
    path = catalog.ready_image(fabric, tenant, name).record.path
    first = images.first_object(cluster, path)
    newest = osdmaps.read(cluster)
    pool = newest.serving(newest.pool(first.pool))
    location = osdmap.locate(pool, first.namespace, first.name)
    primary = location.acting.primary
    return Placement(
        image=str(path),
        read_from=str(first.image),
        object_name=first.name,
        pool=location.pool,
        pg=location.pg,
        epoch=newest.epoch,
        acting=location.acting.osds,
        primary_osd=primary,
        primary_host=None if primary is None else newest.host_of.get(primary),
        ranking=rank(newest, location, guests(fabric)),
    )


def guests(fabric: Fabric) -> dict[str, int]:
    """How many ports, of VMs and containers alike, are bound on each CRUSH host now."""
    hosts, bindings = fabric.select_many([("Host", {}), ("Binding", {"active": True})])
    crush_host: dict[str, str] = {
        row["name"]: row["crush_host"] if row["crush_host"] else row["name"] for row in hosts
    }
    return Counter(crush_host.get(row["host"], str(row["host"])) for row in bindings)
