"""Images' way into the fabric database and out of it, with the quota they take.

An image under construction is called `.virtkit-<row id>` in Ceph and gets its own name last. So a
name never shows a half-made image, a leftover is known by whose it is, and an image that a tenant
made under the same name with stock tools is never taken for ours: before an image is named, its
id is recorded, and the name is ours if it stands for that id.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from storvirt.backends import images, naming
from storvirt.backends.cluster import Cluster, CommandFailed
from storvirt.model import ImageName, ImagePath, PoolName, State
from storvirt.service import catalog, standing
from storvirt.service.catalog import ImageEntry, SnapshotEntry
from storvirt.service.parallel import Failure
from tenancy import ledger
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import GuardFailed, Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, BackendUnavailable, Conflict, NotFound, Refused
from tenancy.model import Resource

# How long Ceph believes that a client which died still has an image open: 30 s, and some.
CLIENT_EXPIRY_S = 35.0
POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a request for images came to: those to make, and those that are there as asked.

    Of those to make, `fresh` are new; the others were begun by a command that was interrupted.
    All are in `pool`.
    """

    pool: PoolName
    entries: tuple[ImageEntry, ...]
    fresh: frozenset[UUID]
    present: tuple[ImageEntry, ...]


def admit_all(
    fabric: Fabric,
    tenant: str,
    names: Collection[ImageName],
    size_bytes: int,
    *,
    pool: PoolName | None,
    beside: PoolName | None = None,
    parent: SnapshotEntry | None = None,
    source: str | None = None,
    encryption: str | None = None,
) -> Admission:
    """Record the intent to make these images, all or none of them; also what was begun before.
    Which pool is meant says `standing.read`.

    Raises QuotaExceeded, AlreadyExists, or Refused if another intent holds a name.
    """
    fresh: dict[UUID, ImageName] = {}
    if parent is not None:
        # A clone is read with its parent's passphrase.
        encryption = parent.image.row["encryption"]

    def build(transaction: Transaction) -> catalog.NamespaceEntry:
        fresh.clear()
        found = standing.read(fabric, tenant, names, pool=pool, beside=beside)
        space = found.space
        there = {row["name"] for row in found.images}
        fresh.update({uuid4(): name for name in names if name not in there})
        if not fresh:
            return space
        amounts = _amounts(len(fresh), size_bytes * len(fresh))
        _refuse_read_only(transaction, found.pool)
        ledger.refuse_beyond(found.quota, tenant, amounts)
        transaction.guard(space.row, "state")
        if parent is not None:
            transaction.guard(parent.row, "state", "protected")
            transaction.guard(parent.image.row, "name", "shared_with")
        for row_id, name in fresh.items():
            row = {
                "tenant": space.tenant.id,
                "namespace": space.row.id,
                "name": name,
                "size_bytes": size_bytes,
                "state": State.CREATING,
                "parent": parent.row.id if parent else None,
                "source": source,
                "encryption": encryption,
            }
            transaction.insert_as(row_id, "Image", row)
            # The name that a rename has not left yet.
            transaction.require_none(
                "Image", tenant=space.tenant.id, old_name=name, state=State.RENAMING
            )
        ledger.charge(transaction, space.tenant.id, tenant, amounts)
        return space

    try:
        space = fabric.change(build)
    except UniqueViolation as error:
        raise AlreadyExists(
            f"{_nouns(names)} has just been created by somebody else. Look at it and try again."
        ) from error
    rows = catalog.image_rows(fabric, space.tenant.id, names)
    begun = [row for row in rows if row["state"] == State.CREATING]
    asked = (space.row.id, size_bytes, parent.row.id if parent else None, source, encryption)
    for row in rows:
        _refuse_another(tenant, row, asked)
    text = catalog.parent_text(tenant, parent)
    return Admission(
        pool=space.record.pool,
        entries=tuple(catalog.image_entry(row, space.record, text) for row in begun),
        fresh=frozenset(fresh),
        present=tuple(
            catalog.image_entry(row, space.record, text)
            for row in rows
            if row["state"] == State.READY
        ),
    )


def admit(
    fabric: Fabric,
    tenant: str,
    name: ImageName,
    size_bytes: int,
    *,
    pool: PoolName | None,
    parent: SnapshotEntry | None = None,
    source: str | None = None,
    encryption: str | None = None,
) -> ImageEntry:
    """Record the intent to make one image, or find the same intent that was interrupted."""
    admitted = admit_all(
        fabric,
        tenant,
        [name],
        size_bytes,
        pool=pool,
        parent=parent,
        source=source,
        encryption=encryption,
    )
    insist_on_one(tenant, admitted)
    return admitted.entries[0]


def insist_on_one(tenant: str, admitted: Admission) -> None:
    """Raise AlreadyExists if the one image that was asked for is there."""
    for entry in admitted.present:
        raise _taken(tenant, entry.record.name, State.READY)


def _refuse_read_only(transaction: Transaction, row: Row) -> None:
    pool = row["name"]
    if row["access"] is not None:
        raise Refused(
            f"pool {pool} is behind a read-only cache, and takes no new images. "
            f"Choose another, or first: svctl tier remove {pool}."
        )
    transaction.guard(row, "access")


def _refuse_another(tenant: str, row: Row, asked: tuple[Any, ...]) -> None:
    found = tuple(
        row[column] for column in ("namespace", "size_bytes", "parent", "source", "encryption")
    )
    if row["state"] == State.CREATING and found != asked:
        raise Refused(
            f"image {row['name']} was begun otherwise and not finished. Run the same command as "
            f"then, or give it up: svctl image delete {row['name']} --tenant {tenant}."
        )
    # An empty image of the same size may be anything by now; a clone of the snapshot is one.
    if row["state"] not in (State.CREATING, State.READY) or found != asked:
        raise _taken(tenant, row["name"], row["state"])


def _taken(tenant: str, name: str, state: str) -> AlreadyExists:
    return AlreadyExists(
        f"tenant {tenant} has an image {name} already ({state}). Choose another name."
    )


# Making


def unfinished(entry: ImageEntry) -> ImagePath:
    """What the image is called in Ceph until it is complete."""
    return entry.record.path.named(f".virtkit-{entry.row.id}")


def build(
    cluster: Cluster, entry: ImageEntry, make: Callable[[ImagePath], None], *, fresh: bool
) -> str:
    """Let `make` build the image under its unfinished name, unless it is built; return its id."""
    if entry.row["ceph_id"] is not None:
        return str(entry.row["ceph_id"])
    path = unfinished(entry)
    if not fresh:
        _remove_leftover(cluster, path)
    make(path)
    return _built(cluster, entry)


def _remove_leftover(cluster: Cluster, path: ImagePath) -> None:
    """Remove what a command left that was killed; Ceph may hold it to be open for a while."""
    give_up = time.monotonic() + CLIENT_EXPIRY_S
    while True:
        try:
            images.remove(cluster, path)
            return
        except (CommandFailed, BackendUnavailable):
            raise
        except (Refused, Conflict):
            if time.monotonic() > give_up:
                raise
        time.sleep(POLL_S)


def note_ids(fabric: Fabric, built: Sequence[tuple[ImageEntry, str]]) -> list[Failure[ImageEntry]]:
    """Record what ids the images have, which tells them from anybody else's from here on."""
    return _update(fabric, [(entry, {"ceph_id": id}) for entry, id in built])


def publish(cluster: Cluster, entry: ImageEntry, id: str) -> None:
    """Give the image its name. Raises Refused if somebody else's has it, with ours removed."""
    try:
        naming.give(cluster, unfinished(entry), id, entry.record.name)
    except AlreadyExists as error:
        images.remove(cluster, unfinished(entry))
        raise NameTaken(
            f"image {entry.record.path} exists in Ceph, made by somebody else. "
            "Choose another name, or remove it with `rbd rm`."
        ) from error


class NameTaken(Refused):
    """The name belongs to an image that is not ours."""


def mark_all_ready(fabric: Fabric, entries: Iterable[ImageEntry]) -> list[Failure[ImageEntry]]:
    return _update(fabric, [(entry, {"state": State.READY}) for entry in entries])


def complete(
    fabric: Fabric, cluster: Cluster, entry: ImageEntry, make: Callable[[ImagePath], None]
) -> None:
    """Let `make` build the image under its unfinished name, name it, and mark it ready.

    `make` is called again after an interruption, with what it had begun still there.
    """
    try:
        id = entry.row["ceph_id"]
        if id is None:
            make(unfinished(entry))
            id = _built(cluster, entry)
            _insist(note_ids(fabric, [(entry, id)]))
        publish(cluster, entry, id)
    except NotFound as error:
        raise Conflict(
            f"image {entry.record.name} is being created or deleted by another svctl. "
            "Look at it and try again."
        ) from error
    except NameTaken:
        forget(fabric, entry)
        raise
    _insist(mark_all_ready(fabric, [entry]))


def is_complete(cluster: Cluster, entry: ImageEntry) -> bool:
    """Whether the image has its own name in Ceph already; finishes giving it, if that was begun."""
    id = entry.row["ceph_id"]
    if id is None or naming.image_id(cluster, entry.record.path) != id:
        return False
    try:
        naming.give(cluster, unfinished(entry), id, entry.record.name)
    except NotFound:
        return False
    return True


# Giving up and forgetting


def withdraw(fabric: Fabric, cluster: Cluster, entry: ImageEntry) -> None:
    """Undo an intent that can't be carried out: nothing of it is left."""
    images.remove(cluster, unfinished(entry))
    forget(fabric, entry)


def forget(fabric: Fabric, entry: ImageEntry) -> None:
    """Take the image out of the database and give its quota back; quiet if it is gone."""
    forget_all(fabric, [entry])


def forget_all(fabric: Fabric, entries: Sequence[ImageEntry]) -> None:
    """Take these images of one tenant out of the database; those that are gone are passed over."""

    def build(transaction: Transaction) -> None:
        wanted = {entry.row.id for entry in entries}
        rows = [
            row
            for row in catalog.image_rows(
                fabric, entries[0].tenant, [entry.row["name"] for entry in entries]
            )
            if row.id in wanted
        ]
        for row in rows:
            transaction.guard(row, "size_bytes")
            transaction.delete(row)
        size_bytes = sum(row["size_bytes"] for row in rows)
        ledger.refund(transaction, entries[0].tenant, _amounts(len(rows), size_bytes))

    if entries:
        fabric.change(build)


def _built(cluster: Cluster, entry: ImageEntry) -> str:
    id = naming.image_id(cluster, unfinished(entry))
    if id is None:
        raise Conflict(
            f"image {entry.record.name} is being deleted by another svctl. "
            "Look at it and try again."
        )
    return id


def _update(
    fabric: Fabric, changes: Sequence[tuple[ImageEntry, dict[str, object]]]
) -> list[Failure[ImageEntry]]:
    """Change rows whose state is still the one that was read: together, or else one by one."""
    transaction = fabric.transaction()
    for entry, columns in changes:
        transaction.guard(entry.row, "state")
        transaction.update(entry.row, columns)
    try:
        transaction.commit()
    except GuardFailed as error:
        if len(changes) == 1:
            entry = changes[0][0]
            conflict = Conflict(
                f"image {entry.record.name} was finished or deleted by another svctl meanwhile."
            )
            conflict.__cause__ = error
            return [Failure(item=entry, error=conflict)]
        return [failure for change in changes for failure in _update(fabric, [change])]
    return []


def _insist(failures: Sequence[Failure[ImageEntry]]) -> None:
    for failure in failures:
        raise failure.error


def _amounts(count: int, size_bytes: int) -> dict[Resource, int]:
    return {Resource.IMAGES: count, Resource.BYTES: size_bytes}


def _nouns(names: Collection[ImageName]) -> str:
    shown = ", ".join(sorted(names)[:3])
    return f"image {shown}" if len(names) == 1 else f"one of the images {shown} ..."
