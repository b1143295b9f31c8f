"""Pools that virtkit may give to tenants."""

from dataclasses import dataclass

from storvirt import caps
from storvirt.backends import pools
from storvirt.backends.cluster import Cluster, CommandFailed
from storvirt.backends.pools import PoolFacts
from storvirt.model import Pool, PoolName, State
from storvirt.service import catalog
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import ReferenceViolation, UniqueViolation
from tenancy.errors import AlreadyExists, InvalidRequest, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """A pool as promised and as Ceph has it; `facts` is None if it is missing there."""

    pool: Pool
    facts: PoolFacts | None


def create(
    fabric: Fabric,
    cluster: Cluster,
    name: PoolName,
    *,
    replicas: int | None = None,
    pg_num: int | None = None,
    adopt: bool = False,
) -> PoolReport:
    """A replicated pool, fit for tenants. `adopt` takes over one that exists in Ceph instead."""
    if replicas is not None and not 2 <= replicas <= 10:
        raise InvalidRequest(
            f"pool {name}: {replicas} replicas are not between 2 and 10. With one replica a "
            "single lost disk loses every tenant's data."
        )
    if pg_num is not None and not 1 <= pg_num <= 65536:
        raise InvalidRequest(f"pool {name}: {pg_num} placement groups are not between 1 and 65536.")
    row = fabric.find("StoragePool", name=name)
    if row is not None and row["state"] != State.CREATING:
        raise AlreadyExists(f"pool {name} is {row['state']} already. See `svctl pool get {name}`.")
    if row is None:
        there = name in pools.names(cluster)
        if there and not adopt:
            raise AlreadyExists(
                f"pool {name} exists in Ceph, made by somebody else. Choose another name, or "
                f"take it over: svctl pool create {name} --adopt."
            )
        if adopt and not there:
            raise Refused(
                f"pool {name} does not exist in Ceph, so it can't be adopted. "
                "Leave out --adopt to create it."
            )
        if adopt:
            _refuse_unfit(pools.describe(cluster, name))
        elif replicas is not None:
            _refuse_too_many(cluster, name, replicas)
        _record(fabric, name, adopted=adopt)
    if not adopt:
        try:
            pools.create(cluster, name, replicas, pg_num)
        except CommandFailed:
            _withdraw(fabric, cluster, name)
            raise
    pools.tag(cluster, name)
    return _mark(fabric, cluster, name)


def list_all(fabric: Fabric, cluster: Cluster) -> list[PoolReport]:
    """The pools of this fabric, by name."""
    facts = pools.describe_all(cluster)
    return [PoolReport(pool=pool, facts=facts.get(pool.name)) for pool in catalog.pools(fabric)]


def get(fabric: Fabric, cluster: Cluster, name: PoolName) -> PoolReport:
    """One pool. Raises NotFound, also if Ceph has lost it."""
    pool = catalog.pool_record(catalog.pool(fabric, name))
    return PoolReport(pool=pool, facts=pools.describe(cluster, name))


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
        residents = pools.residents(cluster, name)
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
        pools.delete(cluster, name)
    transaction = fabric.transaction()
    transaction.delete(row)
    try:
        transaction.commit()
    except ReferenceViolation as error:
        raise Refused(f"pool {name} has just been given to a tenant.") from error


def _record(fabric: Fabric, name: PoolName, *, adopted: bool) -> None:
    transaction = fabric.transaction()
    transaction.insert("StoragePool", {"name": name, "state": State.CREATING, "adopted": adopted})
    try:
        transaction.commit()
    except UniqueViolation as error:
        raise AlreadyExists(f"pool {name} has just been created by somebody else.") from error


def _withdraw(fabric: Fabric, cluster: Cluster, name: PoolName) -> None:
    """Take back what was recorded of a pool that Ceph does not want to make."""
    if name not in pools.names(cluster):
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


def _refuse_too_many(cluster: Cluster, name: PoolName, replicas: int) -> None:
    kind, number = pools.failure_domains(cluster)
    if replicas > number:
        raise Refused(
            f"pool {name}: {replicas} replicas need {replicas} of `{kind}` with OSDs, and Ceph has "
            f"{number}. Choose at most {number}."
        )


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
