"""Finding what the fabric database promises, as rows to act upon and as records to show."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from storvirt.model import (
    Image,
    ImageName,
    Namespace,
    Pool,
    PoolName,
    Snapshot,
    SnapshotName,
    SnapshotRef,
    State,
    TenantName,
)
from tenancy import service as tenants
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.errors import InvalidRequest, NotFound, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceEntry:
    """A namespace's row, with its tenant's."""

    row: Row
    tenant: Row
    record: Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    """An image's row, with its tenant's id."""

    row: Row
    tenant: UUID
    record: Image


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotEntry:
    """A snapshot's row, with the image it is of."""

    row: Row
    image: ImageEntry
    record: Snapshot


# Pools


def pool(fabric: Fabric, name: PoolName) -> Row:
    """The row of a pool. Raises NotFound."""
    row = fabric.find("StoragePool", name=name)
    if row is None:
        raise NotFound(
            f"pool {name} is not known here. See `svctl pool list`, "
            f"or create it: svctl pool create {name}."
        )
    return row


def data_pool(fabric: Fabric, name: PoolName) -> str | None:
    """Where images of this pool keep their data, if that is another pool."""
    found: str | None = pool(fabric, name).columns.get("data_pool")
    return found


def pools(fabric: Fabric) -> list[Pool]:
    """All pools, by name."""
    return sorted(map(pool_record, fabric.select("StoragePool")), key=lambda pool: pool.name)


def pool_record(row: Row) -> Pool:
    return Pool(
        name=PoolName(row["name"]),
        state=State(row["state"]),
        adopted=row["adopted"],
        data_pool=PoolName(row["data_pool"]) if row["data_pool"] else None,
    )


# Namespaces


def namespaces(fabric: Fabric, tenant: str | None = None) -> list[NamespaceEntry]:
    """All namespaces, or one tenant's, by tenant and pool. Raises NotFound for the tenant."""
    wanted = {} if tenant is None else {"tenant": tenants.find(fabric, tenant).id}
    rows, pool_rows, tenant_rows = fabric.select_many(
        [("StorageNamespace", wanted), ("StoragePool", {}), ("Tenant", {})]
    )
    pool_of = {row.id: row for row in pool_rows}
    tenant_of = {row.id: row for row in tenant_rows}
    entries = [namespace_entry(row, pool_of[row["pool"]], tenant_of[row["tenant"]]) for row in rows]
    return sorted(entries, key=lambda entry: (entry.record.tenant, entry.record.pool))


def namespace(fabric: Fabric, tenant: str, pool: PoolName | None) -> NamespaceEntry:
    """The namespace that a request means: in `pool`, or the tenant's only one. It is ready."""
    return choose(namespaces(fabric, tenant), tenant, pool)


def choose(found: Sequence[NamespaceEntry], tenant: str, pool: PoolName | None) -> NamespaceEntry:
    """Of a tenant's namespaces the one that a request means; see `namespace`."""
    if pool is not None:
        found = [entry for entry in found if entry.record.pool == pool]
    if not found:
        where = f"in pool {pool}" if pool else "in any pool"
        raise Refused(
            f"tenant {tenant} has no namespace {where}. "
            f"Create it: svctl namespace create {tenant} --pool {pool or 'POOL'}."
        )
    if len(found) > 1:
        names = ", ".join(entry.record.pool for entry in found)
        raise InvalidRequest(f"tenant {tenant} has namespaces in {names}. Choose one with --pool.")
    (entry,) = found
    if entry.record.state is not State.READY:
        raise Refused(
            f"the namespace of tenant {tenant} in pool {entry.record.pool} is "
            f"{entry.record.state}. Finish that first: run the command that began it again."
        )
    return entry


def namespace_entry(row: Row, pool: Row, tenant: Row) -> NamespaceEntry:
    return NamespaceEntry(
        row=row,
        tenant=tenant,
        record=Namespace(
            tenant=TenantName(tenant["name"]),
            pool=PoolName(pool["name"]),
            state=State(row["state"]),
        ),
    )


# Images


def images(
    fabric: Fabric, tenant: str | None = None, *, state: State | None = None
) -> list[ImageEntry]:
    """All images, or one tenant's, by tenant and name; not those in the trash, unless their
    `state` is asked for. Raises NotFound for the tenant."""
    wanted = {} if tenant is None else {"tenant": tenants.find(fabric, tenant).id}
    rows, all_rows, snapshot_rows, tenant_rows = fabric.select_many(
        [("Image", wanted), ("Image", {}), ("Snapshot", {}), ("Tenant", {})]
    )
    spaces = {entry.row.id: entry.record for entry in namespaces(fabric, tenant)}
    image_of = {row.id: row for row in all_rows}
    tenant_name = {row.id: row["name"] for row in tenant_rows}
    snapshot_of = {row.id: row for row in snapshot_rows}

    def parent(row: Row) -> str | None:
        if (snapshot := snapshot_of.get(row["parent"])) is None:
            return None
        origin = image_of[snapshot["image"]]
        foreign = None if origin["tenant"] == row["tenant"] else tenant_name[origin["tenant"]]
        return _parent(foreign, origin["name"], snapshot["name"])

    entries = [
        image_entry(row, spaces[row["namespace"]], parent(row))
        for row in rows
        # A namespace that was made between the two reads.
        if row["namespace"] in spaces
        and (row["state"] == state if state else row["state"] != State.TRASHED)
    ]
    return sorted(entries, key=lambda entry: (entry.record.tenant, entry.record.name))


def find_image(fabric: Fabric, tenant: str, name: ImageName) -> ImageEntry | None:
    """A tenant's image, if there is one. Raises NotFound for the tenant."""
    owner = tenants.find(fabric, tenant)
    row = fabric.find("Image", tenant=owner.id, name=name)
    if row is None:
        return None
    space, pools, snapshot = fabric.select_many(
        [
            ("StorageNamespace", {"id": row["namespace"]}),
            ("StoragePool", {}),
            _by_id("Snapshot", row["parent"]),
        ]
    )
    (pool,) = (one for one in pools if one.id == space[0]["pool"])
    parent = fabric.select("Image", id=snapshot[0]["image"]) if snapshot else []
    record = Namespace(
        tenant=TenantName(tenant),
        pool=PoolName(pool["name"]),
        state=State(space[0]["state"]),
    )
    text = None
    if parent:
        foreign = None
        if parent[0]["tenant"] != owner.id:
            (found,) = fabric.select("Tenant", id=parent[0]["tenant"])
            foreign = found["name"]
        text = _parent(foreign, parent[0]["name"], snapshot[0]["name"])
    return image_entry(row, record, text)


def image_rows(fabric: Fabric, tenant: UUID, names: Collection[str]) -> list[Row]:
    """The rows of those of a tenant's images that have one of these names, by name."""
    if len(names) == 1:
        (name,) = names
        return fabric.select("Image", tenant=tenant, name=name)
    wanted = set(names)
    rows = [row for row in fabric.select("Image", tenant=tenant) if row["name"] in wanted]
    return sorted(rows, key=lambda row: str(row["name"]))


def image(fabric: Fabric, tenant: str, name: ImageName) -> ImageEntry:
    """A tenant's image, in whatever state. Raises NotFound."""
    entry = find_image(fabric, tenant, name)
    if entry is None:
        raise NotFound(
            f"tenant {tenant} has no image {name}. See `svctl image list --tenant {tenant}`."
        )
    return entry


def images_named(fabric: Fabric, tenant: str, names: Collection[ImageName]) -> list[ImageEntry]:
    """Those of a tenant's images that have one of these names, by name."""
    if len(names) == 1:
        (name,) = names
        found = find_image(fabric, tenant, name)
        return [found] if found else []
    wanted = set(names)
    return [entry for entry in images(fabric, tenant) if entry.record.name in wanted]


def name_of(entry: ImageEntry) -> str:
    return entry.record.name


def ready_image(fabric: Fabric, tenant: str, name: ImageName) -> ImageEntry:
    """A tenant's image that can be used. Raises NotFound or Refused."""
    entry = image(fabric, tenant, name)
    refuse_unready(entry)
    return entry


def refuse_unready(entry: ImageEntry) -> None:
    """Raise Refused with what to do, unless the image can be used."""
    name, tenant = entry.record.name, entry.record.tenant
    if entry.record.state is State.CREATING:
        raise Refused(
            f"image {name} is not complete. Run the command that began it again to finish it, "
            f"or give it up: svctl image delete {name} --tenant {tenant}."
        )
    if entry.record.state is State.RENAMING:
        raise Refused(
            f"image {name} is being renamed. Finish that: svctl image rename "
            f"{entry.row['old_name']} {name} --tenant {tenant}."
        )
    if entry.row["moving"] is not None:
        raise Refused(
            f"image {name} is being moved to another pool ({entry.row['moving']}). Finish that "
            f"first: run the same `svctl migrate {name}` again, or undo it: svctl migrate {name} "
            f"--abort --tenant {tenant}."
        )
    if entry.row["rollback"] is not None:
        raise Refused(
            f"image {name} is being rolled back to {entry.row['rollback']}, and is neither as it "
            f"was nor as it will be. Finish that: run the same rollback again."
        )
    if entry.record.state is State.TRASHED:
        raise Refused(
            f"image {name} is being restored from the trash. Finish that: svctl trash restore "
            f"{entry.row['old_name']} --name {name} --tenant {tenant}."
        )
    if entry.record.state is State.DELETING:
        raise Refused(
            f"image {name} is being deleted. "
            f"Finish that: svctl image delete {name} --tenant {tenant}."
        )


# Snapshots


def snapshots(fabric: Fabric, image: ImageEntry) -> list[SnapshotEntry]:
    """The snapshots of an image, by name."""
    entries = [snapshot_entry(row, image) for row in fabric.select("Snapshot", image=image.row.id)]
    return sorted(entries, key=lambda entry: entry.record.name)


def snapshot(fabric: Fabric, tenant: str, ref: SnapshotRef) -> SnapshotEntry:
    """A snapshot, in whatever state. Raises NotFound."""
    of = image(fabric, tenant, ref.image)
    row = fabric.find("Snapshot", image=of.row.id, name=ref.snapshot)
    if row is None:
        raise NotFound(
            f"image {ref.image} has no snapshot {ref.snapshot}. "
            f"See `svctl snapshot list {ref.image} --tenant {tenant}`."
        )
    return snapshot_entry(row, of)


def parent_text(tenant: str, parent: SnapshotEntry | None) -> str | None:
    """How an image of `tenant` names the snapshot that it was cloned from."""
    if parent is None:
        return None
    owner = parent.image.record.tenant
    return _parent(None if owner == tenant else owner, parent.record.image, parent.record.name)


def _parent(foreign: str | None, image: str, snapshot: str) -> str:
    return f"{foreign}/{image}@{snapshot}" if foreign else f"{image}@{snapshot}"


def image_entry(row: Row, space: Namespace, parent: str | None) -> ImageEntry:
    return ImageEntry(
        row=row,
        tenant=row["tenant"],
        record=Image(
            tenant=space.tenant,
            pool=space.pool,
            name=ImageName(row["name"]),
            size_bytes=row["size_bytes"],
            state=State(row["state"]),
            parent=parent,
            source=row["source"],
            encryption=row["encryption"],
        ),
    )


def snapshot_entry(row: Row, image: ImageEntry) -> SnapshotEntry:
    return SnapshotEntry(
        row=row,
        image=image,
        record=Snapshot(
            image=image.record.name,
            name=SnapshotName(row["name"]),
            size_bytes=row["size_bytes"],
            state=State(row["state"]),
            protected=row["protected"],
            holder=row["holder"],
        ),
    )


def _by_id(table: str, key: UUID | None) -> tuple[str, dict[str, UUID]]:
    # No row has the nil UUID, so an absent reference selects nothing.
    return table, {"id": key or UUID(int=0)}
