"""Pools that virtkit may give to tenants."""

from collections.abc import Mapping
from dataclasses import dataclass

from storvirt import caps, poolplan
from storvirt.backends import crush, librbd_caches, pools
from storvirt.backends.cluster import Cluster, CommandFailed
from storvirt.backends.pools import PoolFacts
from storvirt.model import Pool, PoolName, State
from storvirt.poolplan import Settings, Topology, Wish
from storvirt.service import catalog
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import ReferenceViolation, UniqueViolation
from tenancy.errors import AlreadyExists, InvalidRequest, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """A pool as promised and as Ceph has it; `facts` is None if it is missing there.

    `data` are the facts of its erasure-coded data pool. `erasure`, `device_class` and
    `failure_domain` are what was asked for when virtkit made it.
    """

    pool: Pool
    facts: PoolFacts | None
    data: PoolFacts | None
    wanted: Mapping[str, str]


def create(
    fabric: Fabric,
    cluster: Cluster,
    name: PoolName,
    wish: Wish,
    *,
    adopt: bool = False,
) -> PoolReport:
    """A pool fit for tenants. `adopt` takes over a replicated one that exists in Ceph instead."""
    poolplan.checked(name, wish)
    if adopt and wish != Wish.none():
        raise InvalidRequest(
            f"pool {name}: --adopt takes it as it is. Leave out the rest, and change it then: "
            f"svctl pool set {name}."
        )
    row = fabric.find("StoragePool", name=name)
    if row is not None and row["state"] != State.CREATING:
        raise AlreadyExists(f"pool {name} is {row['state']} already. See `svctl pool get {name}`.")
    if row is not None and (row["wanted"] != wish.noted() or row["adopted"] != adopt):
        raise Refused(
            f"pool {name} was begun otherwise and not finished. Run the same command as then, or "
            f"give it up: svctl pool delete {name}."
        )
    topology = crush.topology(cluster)
    if row is None:
        _refuse_taken(cluster, name, wish, adopt=adopt)
        if adopt:
            _refuse_unfit(pools.describe(cluster, name))
        else:
            _refuse_impossible(cluster, name, topology, wish)
        _record(fabric, name, wish, adopted=adopt)
    if not adopt:
        try:
            _make(cluster, name, topology, wish)
        except CommandFailed:
            _withdraw(fabric, cluster, name, wish)
            raise
    pools.tag(cluster, name)
    return _mark(fabric, cluster, name)


def list_all(fabric: Fabric, cluster: Cluster) -> list[PoolReport]:
    """The pools of this fabric, by name."""
    facts = pools.describe_all(cluster)
    rows = sorted(fabric.select("StoragePool"), key=lambda row: str(row["name"]))
    return [_report(row, facts) for row in rows]


def get(fabric: Fabric, cluster: Cluster, name: PoolName) -> PoolReport:
    """One pool. Raises NotFound, also if Ceph has lost it."""
    row = catalog.pool(fabric, name)
    pools.describe(cluster, name)
    return _report(row, pools.describe_all(cluster))


def change(fabric: Fabric, cluster: Cluster, name: PoolName, wish: Settings) -> PoolReport:
    """Set what can be set while the pool is used; more copies or pieces move data for a while."""
    poolplan.checked(name, wish)
    values = poolplan.ceph_settings(wish)
    if not values:
        raise InvalidRequest(f"pool {name}: nothing to set. Give an option, such as --replicas.")
    record = catalog.pool_record(catalog.pool(fabric, name))
    if record.state is not State.READY:
        raise Refused(f"pool {name} is {record.state}. Finish that first.")
    facts = pools.describe(cluster, name)
    if wish.replicas is not None:
        _, device_class, domain = crush.describe_rule(cluster, facts.rule)
        poolplan.refuse_impossible(
            name,
            crush.topology(cluster),
            copies=wish.replicas,
            what="replicas",
            device_class=device_class,
            failure_domain=domain,
        )
    pools.set_values(cluster, name, values)
    if record.data_pool:
        # Its pieces are not copies; all else is about data, which is there.
        shared = {key: value for key, value in values.items() if key != "size"}
        pools.set_values(cluster, record.data_pool, shared)
    return get(fabric, cluster, name)


def delete(fabric: Fabric, cluster: Cluster, name: PoolName) -> None:
    """Remove a pool that no tenant has a namespace in; an adopted one is only let go."""
    row = catalog.pool(fabric, name)
    spaces = [e.record for e in catalog.namespaces(fabric) if e.record.pool == name]
    if spaces:
        tenants = [space.tenant for space in spaces]
        raise Refused(
            f"pool {name} holds the namespaces of {', '.join(tenants[:5])}"
            f"{' and more' if len(tenants) > 5 else ''}. "
            f"First: svctl namespace delete {tenants[0]} --pool {name}."
        )
    if name in pools.names(cluster):
        facts = pools.describe(cluster, name)
        if facts.tier_of or facts.cache:
            base = facts.tier_of or name
            raise Refused(f"pool {name} is part of a tier. First: svctl tier remove {base}.")
        found = pools.residents(cluster, name)
        residents = [one for one in found if not librbd_caches.is_scratch(one)]
        if residents and not row["adopted"]:
            raise Refused(
                f"pool {name} still holds {', '.join(residents[:5])}"
                f"{' and more' if len(residents) > 5 else ''}, made by somebody else. "
                "Remove them with `rbd` first."
            )
    transaction = fabric.transaction()
    transaction.require_none("StorageNamespace", pool=row.id)
    transaction.update(row, {"state": State.DELETING})
    transaction.commit()
    if row["adopted"]:
        pools.untag(cluster, name)
    else:
        _unmake(cluster, name, row["wanted"])
    transaction = fabric.transaction()
    transaction.delete(row)
    try:
        transaction.commit()
    except ReferenceViolation as error:
        raise Refused(f"pool {name} has just been given to a tenant.") from error


def _report(row: Row, facts: Mapping[str, PoolFacts]) -> PoolReport:
    pool = catalog.pool_record(row)
    return PoolReport(
        pool=pool,
        facts=facts.get(pool.name),
        data=facts.get(pool.data_pool) if pool.data_pool else None,
        wanted=row["wanted"],
    )


def _record(fabric: Fabric, name: PoolName, wish: Wish, *, adopted: bool) -> None:
    transaction = fabric.transaction()
    transaction.insert(
        "StoragePool",
        {
            "name": name,
            "state": State.CREATING,
            "adopted": adopted,
            "data_pool": poolplan.data_pool_of(name) if wish.erasure else None,
            "wanted": wish.noted(),
        },
    )
    try:
        transaction.commit()
    except UniqueViolation as error:
        raise AlreadyExists(f"pool {name} has just been created by somebody else.") from error


def _make(cluster: Cluster, name: PoolName, topology: Topology, wish: Wish) -> None:
    """Rule, profile and pools, each unless it is there; the pool that is named comes last."""
    domain = wish.failure_domain or topology.default_domain
    if wish.has_rule:
        crush.create_rule(
            cluster,
            name,
            root=topology.root,
            failure_domain=domain,
            device_class=wish.device_class,
        )
    data_pool = poolplan.data_pool_of(name)
    # What Ceph can set at once it is given at once; compression only afterwards.
    later = poolplan.ceph_settings(
        Settings(
            compression_mode=wish.compression_mode,
            compression_algorithm=wish.compression_algorithm,
            compression_ratio=wish.compression_ratio,
        )
    )
    if wish.erasure:
        crush.create_profile(
            cluster,
            name,
            wish.erasure,
            root=topology.root,
            failure_domain=domain,
            device_class=wish.device_class,
        )
        pools.create_data_pool(cluster, data_pool, wish, profile=name)
        pools.tag(cluster, data_pool, as_part_of=name)
        pools.set_values(cluster, data_pool, later)
    pools.create(cluster, name, wish, rule=name if wish.has_rule else None)
    pools.set_values(cluster, name, later)
    if wish.erasure:
        # librbd keeps the setting in the pool itself, which must be RBD's for that.
        pools.tag(cluster, name)
        pools.initialise(cluster, name)
        pools.lead_data_to(cluster, name, data_pool)


def _unmake(cluster: Cluster, name: PoolName, wanted: Mapping[str, str]) -> None:
    """Take away all that `_make` has made, or begun to make."""
    pools.delete(cluster, name)
    data_pool = poolplan.data_pool_of(name)
    if "erasure" in wanted:
        pools.delete(cluster, data_pool)
        # Ceph keeps the rule that it made for an erasure-coded pool.
        crush.delete_rule(cluster, data_pool)
        crush.delete_profile(cluster, name)
    if {"device_class", "failure_domain"} & set(wanted):
        crush.delete_rule(cluster, name)


def _withdraw(fabric: Fabric, cluster: Cluster, name: PoolName, wish: Wish) -> None:
    """Take back what was recorded and made of a pool that Ceph does not want to make."""
    if name not in pools.names(cluster):
        _unmake(cluster, name, wish.noted())
        transaction = fabric.transaction()
        transaction.delete(catalog.pool(fabric, name))
        transaction.commit()


def _mark(fabric: Fabric, cluster: Cluster, name: PoolName) -> PoolReport:
    row = catalog.pool(fabric, name)
    transaction = fabric.transaction()
    transaction.guard(row, "state")
    transaction.update(row, {"state": State.READY})
    transaction.commit()
    return get(fabric, cluster, name)


def _refuse_taken(cluster: Cluster, name: PoolName, wish: Wish, *, adopt: bool) -> None:
    there = pools.names(cluster)
    if name in there and not adopt:
        raise AlreadyExists(
            f"pool {name} exists in Ceph, made by somebody else. Choose another name, or "
            f"take it over: svctl pool create {name} --adopt."
        )
    if adopt and name not in there:
        raise Refused(
            f"pool {name} does not exist in Ceph, so it can't be adopted. "
            "Leave out --adopt to create it."
        )
    data_pool = poolplan.data_pool_of(name)
    taken = []
    if wish.erasure and data_pool in there:
        taken.append(f"pool {data_pool}")
    names = {name} if wish.has_rule else set()
    names |= {data_pool} if wish.erasure else set()
    taken += [f"CRUSH rule {found}" for found in sorted(names & crush.rules(cluster))]
    if wish.erasure and name in crush.profiles(cluster):
        taken.append(f"erasure code profile {name}")
    if taken:
        raise AlreadyExists(
            f"pool {name}: {', '.join(taken)} exists in Ceph, made by somebody else. Choose "
            "another name, or remove what is left over."
        )


def _refuse_impossible(cluster: Cluster, name: PoolName, topology: Topology, wish: Wish) -> None:
    where = {"device_class": wish.device_class, "failure_domain": wish.failure_domain}
    if wish.erasure:
        pieces = wish.erasure.k + wish.erasure.m
        poolplan.refuse_impossible(name, topology, copies=pieces, what="pieces", **where)
    if wish.replicas is not None or wish.has_rule:
        copies = wish.replicas or pools.default_replicas(cluster)
        poolplan.refuse_impossible(name, topology, copies=copies, what="replicas", **where)


def _refuse_unfit(facts: PoolFacts) -> None:
    if not facts.replicated:
        raise Refused(
            f"pool {facts.name} is erasure-coded, and image headers need a replicated pool. "
            "Choose another."
        )
    if facts.tier_of:
        raise Refused(f"pool {facts.name} is the cache of {facts.tier_of}. Choose another.")
    if others := [name for name in facts.applications if name != caps.APPLICATION]:
        raise Refused(f"pool {facts.name} belongs to {', '.join(others)}. Choose another.")
