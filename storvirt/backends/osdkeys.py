"""The OSDs' own keys, and what they let OSDs do for tenants: see `storvirt.caps.OSD_WIDE`."""

from collections.abc import Mapping

from storvirt import caps
from storvirt.backends import pools
from storvirt.backends.cluster import Cluster
from storvirt.model import PoolName


def wide(cluster: Cluster) -> Mapping[str, Mapping[str, str]]:
    """The caps of the OSDs' keys that let any tenant read everything, by entity."""
    return {
        one["entity"]: dict(one["caps"])
        for one in cluster.command("auth ls")["auth_dump"]
        if one["entity"].startswith("osd.") and one["caps"].get("osd") == caps.OSD_WIDE
    }


def narrow(cluster: Cluster) -> list[str]:
    """Narrow those keys and return whose they were; pools that have a cache tier now keep it."""
    for pool in pools.describe_all(cluster).values():
        if pool.cache:
            for one in (pool.name, pool.cache):
                pools.let_osds_copy(cluster, PoolName(one), True)
    found = wide(cluster)
    for entity, held in found.items():
        words = {**held, "osd": caps.OSD_NARROW}
        flat = [word for service, cap in words.items() for word in (service, cap)]
        cluster.raw_command("auth caps", entity=entity, caps=flat)
    return sorted(found)
