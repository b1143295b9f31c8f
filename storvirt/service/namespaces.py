"""A tenant's place in Ceph: an RBD namespace in a pool, and the key that reaches it alone."""

from collections.abc import Mapping
from dataclasses import replace

from storvirt import caps
from storvirt.backends import images, keys, namespaces, pools
from storvirt.backends.cluster import Cluster
from storvirt.caps import SharedImage
from storvirt.model import ImagePath, Namespace, PoolName, State, TenantName
from storvirt.service import catalog
from storvirt.service.catalog import ImageEntry, NamespaceEntry
from tenancy import service as tenants
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, NotFound, Refused
from tenancy.model import Resource


def create(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    pool: PoolName,
    *,
    quota: Mapping[Resource, int] | None = None,
) -> Namespace:
    """The tenant's namespace in `pool`, with its key's caps extended to it, and its quota set."""
    entry = _find(fabric, tenant, pool)
    if quota and (entry is None or entry.record.state is State.CREATING):
        # First, so that there is no moment in which more is admitted.
        tenants.set_quota(fabric, tenant, quota)
    if entry is None:
        _refuse_foreign(cluster, tenant, pool)
        _record(fabric, tenant, pool)
        entry = _get(fabric, tenant, pool)
    elif entry.record.state is not State.CREATING:
        raise AlreadyExists(
            f"the namespace of tenant {tenant} in pool {pool} is {entry.record.state} already."
        )
    pools.initialise(cluster, pool)
    namespaces.create(cluster, pool, entry.record.tenant)
    set_caps(fabric, cluster, entry.record.tenant, and_in=pool)
    transaction = fabric.transaction()
    transaction.guard(entry.row, "state")
    transaction.update(entry.row, {"state": State.READY})
    transaction.commit()
    return _get(fabric, tenant, pool).record


def repair(fabric: Fabric, cluster: Cluster, tenant: str, pool: PoolName) -> Namespace:
    """Bring back what Ceph has lost of a ready namespace: itself, the tenant's key, its caps."""
    entry = catalog.namespace(fabric, tenant, pool)
    if not pools.describe(cluster, pool).read_only:
        pools.tag(cluster, pool)
        pools.initialise(cluster, pool)
        namespaces.create(cluster, pool, entry.record.tenant)
    set_caps(fabric, cluster, entry.record.tenant)
    return entry.record


def refresh_caps(fabric: Fabric, cluster: Cluster, pool: PoolName) -> None:
    """Give the keys of all tenants in `pool` the caps that this version of virtkit gives."""
    for entry in catalog.namespaces(fabric):
        if entry.record.pool == pool and entry.record.state is State.READY:
            set_caps(fabric, cluster, entry.record.tenant)


def list_all(fabric: Fabric, tenant: str | None = None) -> list[Namespace]:
    """All namespaces, or one tenant's."""
    return [entry.record for entry in catalog.namespaces(fabric, tenant)]


def delete(fabric: Fabric, cluster: Cluster, tenant: str, pool: PoolName) -> None:
    """Take the tenant's empty namespace away: first what its key may do, then the namespace."""
    entry = _get(fabric, tenant, pool)
    foreign = namespaces.images(cluster, pool, entry.record.tenant)

    def build(transaction: Transaction) -> None:
        held = fabric.select("Image", namespace=entry.row.id)
        found = sorted(_shown(row) for row in held) or foreign
        if found:
            raise Refused(
                f"the namespace of tenant {tenant} in pool {pool} still holds images: "
                f"{', '.join(found[:5])}{' and more' if len(found) > 5 else ''}. "
                f"Delete them first{'' if held else ' with `rbd rm`: they are not virtkit’s'}."
            )
        groups = fabric.select("ImageGroup", namespace=entry.row.id)
        if groups:
            raise Refused(
                f"the namespace of tenant {tenant} in pool {pool} still holds group "
                f"{groups[0]['name']}. First: svctl group delete {groups[0]['name']} "
                f"--tenant {tenant}."
            )
        transaction.require_none("Image", namespace=entry.row.id)
        transaction.require_none("ImageGroup", namespace=entry.row.id)
        transaction.update(entry.row, {"state": State.DELETING})

    fabric.change(build)
    set_caps(fabric, cluster, entry.record.tenant)
    namespaces.delete(cluster, pool, entry.record.tenant)
    transaction = fabric.transaction()
    transaction.delete(entry.row)
    transaction.commit()


def _shown(row: Row) -> str:
    trashed = row["state"] == State.TRASHED
    return f"{row['old_name']} (in the trash)" if trashed else str(row["name"])


def _record(fabric: Fabric, tenant: str, pool: PoolName) -> None:
    def build(transaction: Transaction) -> None:
        owner, row = tenants.find(fabric, tenant), catalog.pool(fabric, pool)
        if row["state"] != State.READY:
            raise Refused(f"pool {pool} is {row['state']}. See `svctl pool list`.")
        transaction.guard(row, "state")
        transaction.insert(
            "StorageNamespace", {"tenant": owner.id, "pool": row.id, "state": State.CREATING}
        )

    try:
        fabric.change(build)
    except UniqueViolation as error:
        raise AlreadyExists(
            f"the namespace of tenant {tenant} in pool {pool} is being created by somebody else."
        ) from error


def set_caps(
    fabric: Fabric, cluster: Cluster, tenant: TenantName, *, and_in: PoolName | None = None
) -> None:
    """Give the tenant's key what its ready namespaces, the one in `and_in`, and the images that
    are shared with it ask for."""
    wanted = wanted_caps(fabric, cluster, tenant, and_in=and_in)
    if wanted is None:
        keys.delete(cluster, caps.entity(tenant))
    else:
        keys.ensure(cluster, caps.entity(tenant), wanted)


def wanted_caps(
    fabric: Fabric, cluster: Cluster, tenant: TenantName, *, and_in: PoolName | None = None
) -> dict[str, str] | None:
    """What the tenant's key should be allowed; None if there should be none. See `set_caps`."""
    held = {
        entry.record.pool
        for entry in catalog.namespaces(fabric, tenant)
        if entry.record.state is State.READY or entry.record.pool == and_in
    }
    if not held:
        return None
    return caps.for_tenant(tenant, held, shared_images(fabric, cluster, tenant))


def shared_images(fabric: Fabric, cluster: Cluster, tenant: TenantName) -> list[SharedImage]:
    """Other tenants' images that this one may read; what Ceph has lost is left out.

    An image that is being moved may be in either pool, or in both.
    """
    reader = tenants.find(fabric, tenant).id
    found = []
    for entry in catalog.images(fabric):
        if reader not in entry.row["shared_with"]:
            continue
        for path in _paths(fabric, entry):
            try:
                facts = images.describe(cluster, path)
            except NotFound:
                continue
            found.append(
                SharedImage(
                    namespace=entry.record.tenant, id=facts.id, data_prefix=facts.data_prefix
                )
            )
    return found


def _paths(fabric: Fabric, entry: ImageEntry) -> list[ImagePath]:
    path, other = entry.record.path, entry.row["moving_peer"]
    held = catalog.namespaces(fabric, entry.record.tenant) if other else ()
    return [
        path,
        *(replace(path, pool=space.record.pool) for space in held if space.row.id == other),
    ]


def _refuse_foreign(cluster: Cluster, tenant: str, pool: PoolName) -> None:
    facts = pools.describe(cluster, pool)
    if facts.tier_of:
        raise Refused(
            f"pool {pool} is the cache of {facts.tier_of}, and holds nothing for long. "
            f"Create the namespace there: svctl namespace create {tenant} --pool {facts.tier_of}."
        )
    if facts.read_only:
        raise Refused(
            f"pool {pool} is behind a read-only cache. Create the namespace in another pool, or "
            f"first: svctl tier remove {pool}."
        )
    found = namespaces.images(cluster, pool, TenantName(tenant))
    if found:
        raise Refused(
            f"pool {pool} has a namespace {tenant} with images that are not virtkit's "
            f"({', '.join(found[:3])}). Move them away, or choose another tenant name."
        )


def _find(fabric: Fabric, tenant: str, pool: PoolName) -> NamespaceEntry | None:
    catalog.pool(fabric, pool)
    for entry in catalog.namespaces(fabric, tenant):
        if entry.record.pool == pool:
            return entry
    return None


def _get(fabric: Fabric, tenant: str, pool: PoolName) -> NamespaceEntry:
    entry = _find(fabric, tenant, pool)
    if entry is None:
        raise NotFound(f"tenant {tenant} has no namespace in pool {pool}.")
    return entry
