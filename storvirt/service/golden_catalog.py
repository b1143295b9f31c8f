"""Golden images in the fabric database, as rows to act upon and as records to show."""

from dataclasses import dataclass

from storvirt.model import ImageName, SnapshotName, SnapshotRef, State
from storvirt.service import catalog
from tenancy import service as tenants
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.errors import NotFound, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A snapshot that hosts keep in their caches. `imported`: its image was made for it.

    `snapshot` is None and `data_bytes` unknown until it has come so far.
    """

    tenant: str
    name: ImageName
    source: str
    snapshot: SnapshotRef | None
    imported: bool
    data_bytes: int | None
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenEntry:
    """A golden image's row, with what it means."""

    row: Row
    record: Golden


def entries(fabric: Fabric, tenant: str | None = None) -> list[GoldenEntry]:
    """All golden images, or one tenant's, by tenant and name. Raises NotFound for the tenant."""
    wanted = {} if tenant is None else {"tenant": tenants.find(fabric, tenant).id}
    rows, tenant_rows, snapshot_rows, image_rows = fabric.select_many(
        [("GoldenImage", wanted), ("Tenant", {}), ("Snapshot", {}), ("Image", {})]
    )
    tenant_name = {row.id: row["name"] for row in tenant_rows}
    image_name = {row.id: row["name"] for row in image_rows}
    snapshot_of = {
        row.id: SnapshotRef(
            image=ImageName(image_name[row["image"]]), snapshot=SnapshotName(row["name"])
        )
        for row in snapshot_rows
        if row["image"] in image_name
    }
    found = [
        GoldenEntry(
            row=row,
            record=Golden(
                tenant=tenant_name[row["tenant"]],
                name=ImageName(row["name"]),
                source=row["source"],
                snapshot=snapshot_of.get(row["snapshot"]),
                imported=row["imported"],
                data_bytes=row["data_bytes"],
                state=State(row["state"]),
            ),
        )
        for row in rows
        if row["tenant"] in tenant_name
    ]
    return sorted(found, key=lambda entry: (entry.record.tenant, entry.record.name))


def find(fabric: Fabric, tenant: str, name: ImageName) -> GoldenEntry | None:
    """A tenant's golden image, in whatever state, if there is one."""
    found = [entry for entry in entries(fabric, tenant) if entry.record.name == name]
    return found[0] if found else None


def get(fabric: Fabric, tenant: str, name: ImageName) -> GoldenEntry:
    """A tenant's golden image, in whatever state. Raises NotFound."""
    entry = find(fabric, tenant, name)
    if entry is None:
        raise NotFound(
            f"tenant {tenant} has no golden image {name}. "
            f"See `svctl golden list --tenant {tenant}`, or make it: svctl golden create {name}."
        )
    return entry


def snapshot_of(fabric: Fabric, tenant: str, name: ImageName) -> SnapshotRef:
    """What clones of a ready golden image are made of. Raises NotFound or Refused."""
    entry = get(fabric, tenant, name)
    if entry.record.state is not State.READY or entry.record.snapshot is None:
        raise Refused(
            f"golden image {name} is {entry.record.state}. "
            "Run the command that began it again to finish it."
        )
    return entry.record.snapshot


def is_golden_clone(fabric: Fabric, image: catalog.ImageEntry) -> bool:
    """Whether an image is a clone of a ready golden image."""
    parent = image.row["parent"]
    return (
        parent is not None
        and fabric.find("GoldenImage", snapshot=parent, state=State.READY) is not None
    )


def refuse_golden(fabric: Fabric, snapshot: Row, ref: str, tenant: str) -> None:
    """Raise Refused if hosts read this snapshot as a golden image."""
    row = fabric.find("GoldenImage", snapshot=snapshot.id)
    if row is not None:
        raise Refused(
            f"snapshot {ref} is the golden image {row['name']}. "
            f"First: svctl golden delete {row['name']} --tenant {tenant}."
        )
