"""Groups of images whose snapshots are taken at one moment: all disks of a VM.

The database knows which images belong together and which moments are kept; Ceph does the rest.
Each image of a group snapshot counts against the tenant's snapshots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from storvirt.backends import groups, images
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, ImagePath, PoolName, State
from storvirt.service import catalog, deleting
from storvirt.service.catalog import ImageEntry
from storvirt.service.images import promise_size
from tenancy import ledger
from tenancy import service as tenants
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, NotFound, Refused
from tenancy.model import Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group as the database knows it."""

    tenant: str
    name: str
    pool: str
    state: State
    images: tuple[str, ...]
    snapshots: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    row: Row
    path: ImagePath
    record: Group
    members: tuple[ImageEntry, ...]


def create(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, pool: PoolName | None
) -> Group:
    """An empty group."""

    def build(transaction: Transaction) -> None:
        space = catalog.namespace(fabric, tenant, pool)
        row = fabric.find("ImageGroup", tenant=space.tenant.id, name=name)
        if row is not None:
            if row["state"] != State.CREATING:
                raise AlreadyExists(f"tenant {tenant} has a group {name} already.")
            return
        transaction.guard(space.row, "state")
        transaction.insert(
            "ImageGroup",
            {
                "tenant": space.tenant.id,
                "namespace": space.row.id,
                "name": name,
                "state": State.CREATING,
            },
        )

    try:
        fabric.change(build)
    except UniqueViolation as error:
        raise AlreadyExists(f"group {name} has just been created by somebody else.") from error
    entry = _entry(fabric, tenant, name)
    groups.create(cluster, entry.path)
    _mark(fabric, entry.row, State.READY)
    return _entry(fabric, tenant, name).record


def list_all(fabric: Fabric, tenant: str | None) -> list[Group]:
    """All groups, or one tenant's, by tenant and name."""
    return [entry.record for entry in _entries(fabric, tenant)]


def get(fabric: Fabric, tenant: str, name: ImageName) -> Group:
    """One group. Raises NotFound."""
    return _entry(fabric, tenant, name).record


def add(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, names: Sequence[ImageName]
) -> Group:
    """Put images of the group's pool into it. An image is in one group at most."""
    entry = _ready(fabric, tenant, name)
    added = [catalog.ready_image(fabric, tenant, one) for one in names]
    for image in added:
        _refuse_elsewhere(entry, image)

    def build(transaction: Transaction) -> None:
        transaction.guard(entry.row, "state")
        for image in added:
            transaction.guard(image.row, "state", "group")
            transaction.update(image.row, {"group": entry.row.id})

    fabric.change(build)
    for image in added:
        groups.add(cluster, entry.path, image.record.name)
    return _entry(fabric, tenant, name).record


def remove(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, names: Sequence[ImageName]
) -> Group:
    """Take images out of the group; refused while one of its snapshots has them."""
    entry = _ready(fabric, tenant, name)
    leaving = [catalog.image(fabric, tenant, one) for one in names]
    kept = {
        image: row["name"]
        for row in fabric.select("GroupSnapshot", group=entry.row.id)
        for image in row["images"]
    }
    for image in leaving:
        if image.row["group"] not in (None, entry.row.id):
            raise Refused(f"image {image.record.name} is in another group.")
        if image.row.id in kept:
            raise Refused(
                f"image {image.record.name} is in snapshot {kept[image.row.id]} of group {name}. "
                f"First: svctl group delete-snapshot {name}@{kept[image.row.id]} "
                f"--tenant {tenant}."
            )
    for image in leaving:
        groups.drop(cluster, entry.path, image.record.name)
    _part(fabric, leaving)
    return _entry(fabric, tenant, name).record


def delete(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> None:
    """Remove a group without snapshots; its images stay."""
    entry = _entry(fabric, tenant, name)

    def build(transaction: Transaction) -> None:
        rows = fabric.select("GroupSnapshot", group=entry.row.id)
        if rows:
            raise Refused(
                f"group {name} has snapshots: {', '.join(sorted(row['name'] for row in rows))}. "
                f"First: svctl group delete-snapshot {name}@{rows[0]['name']} --tenant {tenant}."
            )
        transaction.require_none("GroupSnapshot", group=entry.row.id)
        transaction.update(entry.row, {"state": State.DELETING})

    fabric.change(build)
    groups.remove(cluster, entry.path)
    _part(fabric, entry.members)
    transaction = fabric.transaction()
    transaction.delete(entry.row)
    transaction.commit()


def snapshot(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, snapshot_name: str
) -> Group:
    """Keep all images of the group as they are at one moment, also while guests write."""
    entry = _ready(fabric, tenant, name)
    if not entry.members:
        raise Refused(
            f"group {name} has no images. Add them: svctl group add {name} IMAGE ... "
            f"--tenant {tenant}."
        )
    for member in entry.members:
        catalog.refuse_unready(member)

    def build(transaction: Transaction) -> None:
        row = fabric.find("GroupSnapshot", group=entry.row.id, name=snapshot_name)
        if row is not None:
            if row["state"] != State.CREATING:
                raise AlreadyExists(
                    f"group {name} has a snapshot {snapshot_name} already ({row['state']})."
                )
            return
        members = [member.row.id for member in entry.members]
        transaction.guard(entry.row, "state")
        for member in entry.members:
            transaction.guard(member.row, "group", "state")
        transaction.insert(
            "GroupSnapshot",
            {
                "group": entry.row.id,
                "name": snapshot_name,
                "images": members,
                "state": State.CREATING,
            },
        )
        ledger.charge(transaction, entry.row["tenant"], tenant, {Resource.SNAPSHOTS: len(members)})

    try:
        fabric.change(build)
    except UniqueViolation as error:
        raise AlreadyExists(f"snapshot {snapshot_name} has just been taken.") from error
    groups.take_snapshot(cluster, entry.path, snapshot_name)
    _mark(fabric, _snapshot(fabric, tenant, entry, snapshot_name), State.READY)
    return _entry(fabric, tenant, name).record


def delete_snapshot(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, snapshot_name: str
) -> None:
    """Remove the snapshots of one moment, or what an interrupted command left of them."""
    entry = _entry(fabric, tenant, name)
    row = _snapshot(fabric, tenant, entry, snapshot_name)
    _mark(fabric, row, State.DELETING)
    groups.remove_snapshot(cluster, entry.path, snapshot_name)

    def forget(transaction: Transaction) -> None:
        if fabric.find("GroupSnapshot", id=row.id) is not None:
            transaction.guard(row)
            transaction.delete(row)
            ledger.refund(
                transaction, entry.row["tenant"], {Resource.SNAPSHOTS: len(row["images"])}
            )

    fabric.change(forget)


def roll_back(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, snapshot_name: str
) -> Group:
    """Make all images of the group what they were at that moment. Refused while one is open."""
    entry = _ready(fabric, tenant, name)
    row = _snapshot(fabric, tenant, entry, snapshot_name)
    if row["state"] != State.READY:
        raise Refused(f"snapshot {name}@{snapshot_name} is {row['state']}.")
    if {member.row.id for member in entry.members} != set(row["images"]):
        raise Refused(
            f"group {name} has other images now than when {snapshot_name} was taken. "
            "Add those that are missing, or remove those that came later."
        )
    mark = f"{name}@{snapshot_name} of the group"
    for member in entry.members:
        if member.row["rollback"] not in (None, mark):
            catalog.refuse_unready(member)
        deleting.refuse_used(cluster, member)
    _note_rollback(fabric, entry.members, mark)
    groups.roll_back(cluster, entry.path, snapshot_name)
    for member in entry.members:
        # Images grew since, if anything: those that a group's snapshot has can't be cut.
        size_bytes = images.describe(cluster, member.record.path).size_bytes
        if size_bytes != member.record.size_bytes:
            promise_size(fabric, tenant, member, size_bytes)
    _note_rollback(fabric, entry.members, None)
    return _entry(fabric, tenant, name).record


def _note_rollback(fabric: Fabric, members: Sequence[ImageEntry], to: str | None) -> None:
    transaction = fabric.transaction()
    for member in members:
        transaction.guard(member.row, "state")
        transaction.update(member.row, {"rollback": to})
    transaction.commit()


def _part(fabric: Fabric, members: Sequence[ImageEntry]) -> None:
    transaction = fabric.transaction()
    for member in members:
        transaction.update(member.row, {"group": None})
    transaction.commit()


def _mark(fabric: Fabric, row: Row, state: State) -> None:
    transaction = fabric.transaction()
    transaction.guard(row)
    transaction.update(row, {"state": state})
    transaction.commit()


def _snapshot(fabric: Fabric, tenant: str, entry: _Entry, name: str) -> Row:
    row = fabric.find("GroupSnapshot", group=entry.row.id, name=name)
    if row is None:
        raise NotFound(
            f"group {entry.record.name} has no snapshot {name}. "
            f"See `svctl group get {entry.record.name} --tenant {tenant}`."
        )
    return row


def _ready(fabric: Fabric, tenant: str, name: ImageName) -> _Entry:
    entry = _entry(fabric, tenant, name)
    if entry.record.state is not State.READY:
        raise Refused(f"group {name} is {entry.record.state}. Run the command that began it again.")
    return entry


def _entry(fabric: Fabric, tenant: str, name: ImageName) -> _Entry:
    for entry in _entries(fabric, tenant):
        if entry.record.name == name:
            return entry
    raise NotFound(
        f"tenant {tenant} has no group {name}. See `svctl group list --tenant {tenant}`."
    )


def _entries(fabric: Fabric, tenant: str | None) -> list[_Entry]:
    wanted = {} if tenant is None else {"tenant": tenants.find(fabric, tenant).id}
    rows, snapshot_rows = fabric.select_many([("ImageGroup", wanted), ("GroupSnapshot", {})])
    spaces = {one.row.id: one.record for one in catalog.namespaces(fabric, tenant)}
    members: dict[UUID, list[ImageEntry]] = {}
    for image in catalog.images(fabric, tenant) if rows else ():
        if image.row["group"] is not None:
            members.setdefault(image.row["group"], []).append(image)
    entries = []
    for row in rows:
        if row["namespace"] not in spaces:
            continue
        space = spaces[row["namespace"]]
        inside = tuple(members.get(row.id, ()))
        entries.append(
            _Entry(
                row=row,
                path=ImagePath(pool=space.pool, namespace=space.tenant, name=row["name"]),
                members=inside,
                record=Group(
                    tenant=space.tenant,
                    name=row["name"],
                    pool=space.pool,
                    state=State(row["state"]),
                    images=tuple(image.record.name for image in inside),
                    snapshots=tuple(
                        sorted(one["name"] for one in snapshot_rows if one["group"] == row.id)
                    ),
                ),
            )
        )
    return sorted(entries, key=lambda entry: (entry.record.tenant, entry.record.name))


def _refuse_elsewhere(entry: _Entry, image: ImageEntry) -> None:
    name = image.record.name
    if image.row["group"] not in (None, entry.row.id):
        raise Refused(f"image {name} is in another group. Take it out of that first.")
    if image.row["namespace"] != entry.row["namespace"]:
        raise Refused(
            f"image {name} is in pool {image.record.pool} and group {entry.record.name} in "
            f"{entry.record.pool}. A group's images are in one pool."
        )
