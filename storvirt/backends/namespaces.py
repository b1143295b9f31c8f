"""RBD namespaces: the part of a pool that one tenant's key reaches."""

from collections.abc import Sequence

import rbd

from storvirt.backends.cluster import Cluster, translated
from storvirt.model import PoolName, TenantName


def exists(cluster: Cluster, pool: PoolName, name: TenantName) -> bool:
    with translated(f"namespace {pool}/{name}"), cluster.pool(pool) as context:
        return bool(rbd.RBD().namespace_exists(context, name))


def create(cluster: Cluster, pool: PoolName, name: TenantName) -> None:
    """Make the namespace, unless it is there."""
    with translated(f"namespace {pool}/{name}"), cluster.pool(pool) as context:
        if not rbd.RBD().namespace_exists(context, name):
            rbd.RBD().namespace_create(context, name)


def images(cluster: Cluster, pool: PoolName, name: TenantName) -> Sequence[str]:
    """Every image that Ceph has there, whoever made it; none if the namespace is missing."""
    with translated(f"namespace {pool}/{name}"), cluster.pool(pool) as context:
        if not rbd.RBD().namespace_exists(context, name):
            return []
        context.set_namespace(name)
        return sorted(rbd.RBD().list(context))


def delete(cluster: Cluster, pool: PoolName, name: TenantName) -> None:
    """Remove the namespace, if it is there. Ceph refuses while images or trash are in it."""
    with translated(f"namespace {pool}/{name}"), cluster.pool(pool) as context:
        if rbd.RBD().namespace_exists(context, name):
            rbd.RBD().namespace_remove(context, name)
