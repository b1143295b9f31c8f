"""What a request for images is decided on: where the tenant may have them, what is there under
their names, and what its quota has left.

All of one state of the database, in two round trips however large it is: whose row the tenant is
must be known before what refers to it can be asked for. A quota that does not suffice is refused
with this, without a transaction; one that does is charged by the transaction, which alone decides.
"""

from collections.abc import Collection
from dataclasses import dataclass

from storvirt.model import ImageName, PoolName
from storvirt.service import catalog
from storvirt.service.catalog import NamespaceEntry
from tenancy import service as tenants
from tenancy.backends.codec import Row, Value
from tenancy.backends.fabric import Fabric


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Rows as they were at one moment. `pool` is the namespace's."""

    space: NamespaceEntry
    pool: Row
    images: tuple[Row, ...]
    quota: tuple[Row, ...]


def read(
    fabric: Fabric,
    tenant: str,
    names: Collection[ImageName],
    *,
    pool: PoolName | None,
    beside: PoolName | None = None,
) -> Standing:
    """How it stands with a request for images of these names.

    They go to `pool`; if none is said to the pool `beside`, if the tenant has a place there, or to
    its only one. Raises what `catalog.choose` raises, and NotFound.
    """
    owner = tenants.find(fabric, tenant)
    one: dict[str, Value] = {"name": next(iter(names))} if len(names) == 1 else {}
    spaces, pools, images, quota = fabric.select_many(
        [
            ("StorageNamespace", {"tenant": owner.id}),
            ("StoragePool", {}),
            ("Image", {"tenant": owner.id, **one}),
            ("Quota", {"tenant": owner.id}),
        ]
    )
    pool_of = {row.id: row for row in pools}
    found = [catalog.namespace_entry(row, pool_of[row["pool"]], owner) for row in spaces]
    if pool is None and beside in {entry.record.pool for entry in found}:
        pool = beside
    space = catalog.choose(found, tenant, pool)
    wanted = set(names)
    return Standing(
        space=space,
        pool=pool_of[space.row["pool"]],
        images=tuple(row for row in images if row["name"] in wanted),
        quota=tuple(quota),
    )
