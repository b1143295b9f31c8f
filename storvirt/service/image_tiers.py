"""Tiers that are not a pool: librbd's own caches, and those that other commands make.

What librbd can do is asked of librbd, on a scratch image; a tenant's image is touched only once
that has worked.
"""

from dataclasses import dataclass

from storvirt.backends import librbd_caches, pools
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, ImagePath, PoolName, State
from storvirt.service import catalog
from storvirt.tiers.choices import ALTERNATIVES, PLUGINS, TRAITS, Backend, image_configuration
from tenancy.backends.fabric import Fabric
from tenancy.errors import NotFound, Refused

_KEYS = {
    backend: frozenset(image_configuration(backend, path="", size_bytes=0)) for backend in PLUGINS
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Possibility:
    """Whether a back end works here; `obstacle` says why not."""

    backend: Backend
    obstacle: str | None


def possibilities(fabric: Fabric, cluster: Cluster) -> list[Possibility]:
    """All back ends, with what was found by trying them."""
    return [possibility(fabric, cluster, backend) for backend in Backend]


def possibility(fabric: Fabric, cluster: Cluster, backend: Backend) -> Possibility:
    """Whether this back end works here."""
    obstacle = None
    if backend in PLUGINS:
        pool = _pool_to_try_in(fabric, cluster)
        obstacle = (
            librbd_caches.probe(cluster, pool, backend)
            if pool
            else "there is no pool to try it in. First: svctl pool create POOL"
        )
    elif backend is Backend.FAST_POOL:
        classes = cluster.command("osd crush class ls")
        if len(classes) < 2:
            obstacle = f"all OSDs are of one device class ({', '.join(classes) or 'none'})"
    return Possibility(backend=backend, obstacle=obstacle)


def create(
    fabric: Fabric,
    cluster: Cluster,
    backend: Backend,
    tenant: str,
    name: ImageName,
    *,
    path: str,
    size_bytes: int,
) -> dict[str, str]:
    """Let whoever opens the image from now on cache it so. Refused where it does not work."""
    entry = catalog.ready_image(fabric, tenant, name)
    refuse_impossible(fabric, cluster, backend)
    wanted = image_configuration(backend, path=path, size_bytes=size_bytes)
    librbd_caches.configure(cluster, entry.record.path, wanted)
    return wanted


def refuse_impossible(fabric: Fabric, cluster: Cluster, backend: Backend) -> None:
    """Raise Refused, with what to do instead, unless the back end works here."""
    found = possibility(fabric, cluster, backend)
    if found.obstacle:
        raise Refused(
            f"a tier of back end {backend} is not possible here: {found.obstacle}. "
            f"Take {ALTERNATIVES.get(backend, TRAITS[Backend.POOL].begin)}."
        )


def remove(
    fabric: Fabric, cluster: Cluster, backend: Backend, tenant: str, name: ImageName
) -> None:
    """Take the cache off the image; who has it open keeps it until it is opened again."""
    entry = catalog.ready_image(fabric, tenant, name)
    if not librbd_caches.configured(cluster, entry.record.path, _KEYS[backend]):
        raise NotFound(f"image {name} of tenant {tenant} has no tier of back end {backend}.")
    librbd_caches.unconfigure(cluster, entry.record.path, _KEYS[backend])


def list_all(fabric: Fabric, cluster: Cluster) -> list[tuple[Backend, ImagePath]]:
    """The images that librbd caches. Asked of them only if librbd here can, for else none is."""
    possible = [b for b in PLUGINS if possibility(fabric, cluster, b).obstacle is None]
    if not possible:
        return []
    paths = [e.record.path for e in catalog.images(fabric) if e.record.state is State.READY]
    return [
        (backend, path)
        for path in paths
        for backend in possible
        if librbd_caches.configured(cluster, path, _KEYS[backend])
    ]


def _pool_to_try_in(fabric: Fabric, cluster: Cluster) -> PoolName | None:
    facts = pools.describe_all(cluster)
    for pool in catalog.pools(fabric):
        found = facts.get(pool.name)
        if (
            found
            and pool.state is State.READY
            and found.replicated
            and not (found.cache or found.tier_of or found.read_only)
        ):
            return pool.name
    return None
