"""Ceph pools: making, describing and removing them."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rbd

from storvirt import caps
from storvirt.backends.cluster import Cluster, CommandFailed, application_tags, translated
from storvirt.model import PoolName
from tenancy.errors import NotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """What Ceph says of a pool. `tier_of` and `cache` name the other side of a cache tier."""

    name: PoolName
    replicas: int
    replicated: bool
    pg_num: int
    stored_bytes: int
    available_bytes: int
    tagged: bool
    tier_of: PoolName | None
    cache: PoolName | None
    applications: tuple[str, ...]


def names(cluster: Cluster) -> frozenset[str]:
    """The pools that exist."""
    return frozenset(pool["pool_name"] for pool in cluster.command("osd dump")["pools"])


def describe_all(cluster: Cluster) -> dict[str, PoolFacts]:
    """All pools by name. Stored and available bytes lag by some seconds."""
    pools = cluster.command("osd dump")["pools"]
    stats = {pool["name"]: pool["stats"] for pool in cluster.command("df")["pools"]}
    by_id = {pool["pool"]: PoolName(pool["pool_name"]) for pool in pools}
    return {
        pool["pool_name"]: PoolFacts(
            name=PoolName(pool["pool_name"]),
            replicas=pool["size"],
            replicated=pool["type"] == 1,
            pg_num=pool["pg_num"],
            stored_bytes=stats.get(pool["pool_name"], {}).get("stored", 0),
            available_bytes=stats.get(pool["pool_name"], {}).get("max_avail", 0),
            tagged=caps.TAG in application_tags(pool, caps.APPLICATION),
            tier_of=by_id.get(pool["tier_of"]),
            cache=by_id.get(pool["tiers"][0]) if pool["tiers"] else None,
            applications=tuple(sorted(pool.get("application_metadata", {}))),
        )
        for pool in pools
    }


def describe(cluster: Cluster, name: PoolName) -> PoolFacts:
    """One pool. Raises NotFound."""
    found = describe_all(cluster).get(name)
    if found is None:
        raise NotFound(
            f"pool {name} does not exist in Ceph. See `svctl pool list`, "
            f"or create it: svctl pool create {name}."
        )
    return found


def failure_domains(cluster: Cluster) -> tuple[str, int]:
    """What the rule of new replicated pools puts copies on, such as `host`, and how many hold OSDs.

    `osd_pool_default_crush_rule` may name another rule; the first is what Ceph takes without it.
    """
    rules = cluster.command("osd crush rule dump")
    steps = min((rule for rule in rules if rule["type"] == 1), key=lambda rule: rule["rule_id"])
    kinds = [step["type"] for step in steps["steps"] if step["op"].startswith("choose")]
    nodes = {node["id"]: node for node in cluster.command("osd tree")["nodes"]}

    def holds_osd(node: dict[str, Any]) -> bool:
        below = (nodes[child] for child in node.get("children", ()) if child in nodes)
        return node["type"] == "osd" or any(map(holds_osd, below))

    return kinds[-1], sum(n["type"] == kinds[-1] and holds_osd(n) for n in nodes.values())


def create(cluster: Cluster, name: PoolName, replicas: int | None, pg_num: int | None) -> None:
    """Make a replicated pool, unless it is there; None leaves a number to the cluster."""
    arguments: dict[str, Any] = {"pool": name, "pool_type": "replicated"}
    if replicas is not None:
        arguments["size"] = replicas
    if pg_num is not None:
        arguments["pg_num"] = pg_num
    cluster.raw_command("osd pool create", **arguments)


def tag(cluster: Cluster, name: PoolName) -> None:
    """Mark a pool as one for tenants, by the tag that their caps refer to."""
    cluster.raw_command("osd pool application enable", pool=name, app=caps.APPLICATION)
    cluster.raw_command(
        "osd pool application set", pool=name, app=caps.APPLICATION, key=caps.TAG, value=name
    )


def untag(cluster: Cluster, name: PoolName) -> None:
    """Take away the tag, and with it what tenants' keys could do in the pool."""
    try:
        cluster.raw_command(
            "osd pool application rm", pool=name, app=caps.APPLICATION, key=caps.TAG
        )
    except CommandFailed as error:
        if error.code != errno.ENOENT:
            raise


def initialise(cluster: Cluster, name: PoolName) -> None:
    """Write the objects that RBD wants in each pool, unless they are there.

    Not when the pool is made: a pool that is to be a cache must be empty.
    """
    with translated(f"pool {name}"), cluster.pool(name) as context:
        rbd.RBD().pool_init(context, True)


def residents(cluster: Cluster, name: PoolName) -> Sequence[str]:
    """RBD namespaces (`name/`) and images of the default namespace that are in the pool."""
    with translated(f"pool {name}"), cluster.pool(name) as context:
        images = sorted(rbd.RBD().list(context))
        return [*(f"{n}/" for n in sorted(rbd.RBD().namespace_list(context))), *images]


def delete(cluster: Cluster, name: PoolName) -> None:
    """Remove a pool with all that is in it, unless it is gone already."""
    if name not in names(cluster):
        return
    cluster.raw_command("osd pool delete", pool=name, pool2=name, yes_i_really_really_mean_it=True)
