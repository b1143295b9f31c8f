"""Ceph pools: making, describing and removing them."""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import rbd

from storvirt import caps
from storvirt.backends.cluster import Cluster, CommandFailed, application_tags, translated
from storvirt.model import PoolName
from storvirt.poolplan import Wish
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
    read_only: bool
    tier_of: PoolName | None
    cache: PoolName | None
    applications: tuple[str, ...]
    rule: int
    profile: str | None
    autoscale: str
    compression: Mapping[str, str]


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
            read_only=caps.READ_ONLY_TAG in application_tags(pool, caps.APPLICATION)
            and caps.TAG not in application_tags(pool, caps.APPLICATION),
            tier_of=by_id.get(pool["tier_of"]),
            cache=by_id.get(pool["tiers"][0]) if pool["tiers"] else None,
            applications=tuple(sorted(pool.get("application_metadata", {}))),
            rule=pool["crush_rule"],
            profile=pool.get("erasure_code_profile") or None,
            autoscale=pool.get("pg_autoscale_mode", "off"),
            compression={
                key.removeprefix("compression_"): str(value)
                for key, value in pool.get("options", {}).items()
                if key in ("compression_mode", "compression_algorithm")
                or key == "compression_required_ratio"
            },
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


def default_replicas(cluster: Cluster) -> int:
    """The copies of a pool for which no number is given."""
    return int(cluster.raw_command("config get", who="mon", key="osd_pool_default_size") or 3)


def create(cluster: Cluster, name: PoolName, wish: Wish, *, rule: str | None) -> None:
    """Make a replicated pool, unless it is there; None leaves a number, or rule, to the cluster."""
    arguments: dict[str, Any] = {"pool": name, "pool_type": "replicated"}
    if wish.replicas is not None:
        arguments["size"] = wish.replicas
    if wish.pg_num is not None:
        arguments["pg_num"] = wish.pg_num
    if wish.autoscale is not None:
        arguments["autoscale_mode"] = str(wish.autoscale)
    if rule is not None:
        arguments["rule"] = rule
    cluster.raw_command("osd pool create", **arguments)


def create_data_pool(cluster: Cluster, name: PoolName, wish: Wish, *, profile: str) -> None:
    """Make an erasure-coded pool that images can have their data in, unless it is there.

    Its CRUSH rule is called like the pool; Ceph makes it from the profile.
    """
    arguments: dict[str, Any] = {"pool": name, "pool_type": "erasure"}
    if wish.pg_num is not None:
        arguments["pg_num"] = wish.pg_num
    if wish.autoscale is not None:
        arguments["autoscale_mode"] = str(wish.autoscale)
    cluster.raw_command("osd pool create", **arguments, erasure_code_profile=profile)
    cluster.raw_command("osd pool set", pool=name, var="allow_ec_overwrites", val="true")


def lead_data_to(cluster: Cluster, name: PoolName, data_pool: PoolName) -> None:
    """Have every image that is made in a pool, whoever makes it, keep its data in another.

    It is a setting of the pool that librbd itself reads, so stock tools and clones follow it.
    """
    with translated(f"pool {name}"), cluster.pool(name) as context:
        rbd.RBD().pool_metadata_set(context, "conf_rbd_default_data_pool", data_pool)


def set_values(cluster: Cluster, name: PoolName, values: Mapping[str, str]) -> None:
    """Set what `ceph osd pool set` sets. Raises CommandFailed."""
    for key, value in values.items():
        cluster.raw_command("osd pool set", pool=name, var=key, val=value)


def tag(cluster: Cluster, name: PoolName, *, as_part_of: PoolName | None = None) -> None:
    """Mark a pool as one for tenants, by the tag that their caps refer to.

    A data pool carries the tag of the pool that it is part of, and caps reach both.
    """
    cluster.raw_command("osd pool application enable", pool=name, app=caps.APPLICATION)
    note(cluster, name, caps.TAG, as_part_of or name)
    remove_note(cluster, name, caps.READ_ONLY_TAG)


def seal(cluster: Cluster, name: PoolName) -> None:
    """Let tenants' keys only read in the pool; reading goes on without a gap."""
    note(cluster, name, caps.READ_ONLY_TAG, name)
    remove_note(cluster, name, caps.TAG)


def untag(cluster: Cluster, name: PoolName) -> None:
    """Take away the tags, and with them what tenants' keys could do in the pool."""
    for key in (caps.TAG, caps.READ_ONLY_TAG):
        remove_note(cluster, name, key)


def note(cluster: Cluster, name: PoolName, key: str, value: str) -> None:
    """Write `key` into the pool's application metadata."""
    cluster.raw_command(
        "osd pool application set", pool=name, app=caps.APPLICATION, key=key, value=value
    )


def remove_note(cluster: Cluster, name: PoolName, key: str) -> None:
    """Take `key` out of the pool's application metadata, if it is there."""
    try:
        cluster.raw_command("osd pool application rm", pool=name, app=caps.APPLICATION, key=key)
    except CommandFailed as error:
        if error.code != errno.ENOENT:
            raise


def let_osds_copy(cluster: Cluster, name: PoolName, allowed: bool) -> None:
    """Let OSDs copy objects out of a pool for others, as its cache tier needs; or not any more."""
    where = {"pool": name, "app": caps.APPLICATION, "key": caps.TIER_TAG}
    if allowed:
        cluster.raw_command("osd pool application enable", pool=name, app=caps.APPLICATION)
        cluster.raw_command("osd pool application set", **where, value="yes")
        return
    try:
        cluster.raw_command("osd pool application rm", **where)
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
