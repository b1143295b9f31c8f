"""The row of an image that is being moved: begun, led from phase to phase, settled."""

from uuid import UUID

from storvirt.moving import Phase
from storvirt.service import catalog
from storvirt.service.catalog import ImageEntry, NamespaceEntry
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import GuardFailed
from tenancy.errors import Conflict, VerificationFailed


def phase_of(entry: ImageEntry) -> Phase | None:
    """How far the image's move is; None if it is not being moved."""
    found = entry.row["moving"]
    return None if found is None else Phase(found)


def peer(fabric: Fabric, entry: ImageEntry) -> NamespaceEntry:
    """The namespace at the other end of the move."""
    for space in catalog.namespaces(fabric, entry.record.tenant):
        if space.row.id == entry.row["moving_peer"]:
            return space
    raise VerificationFailed(
        f"image {entry.record.name} is being moved, and the row does not say where to."
    )


def begin(fabric: Fabric, entry: ImageEntry, target: NamespaceEntry, phase: Phase) -> ImageEntry:
    """Record the intent."""
    return _change(fabric, entry, {"moving": phase, "moving_peer": target.row.id})


def step(
    fabric: Fabric,
    entry: ImageEntry,
    phase: Phase,
    *,
    namespace: NamespaceEntry | None = None,
    peer: UUID | None = None,
    ceph_id: str | None = None,
    whole: bool = False,
) -> ImageEntry:
    """Record the next phase, and where the image is from now on; `whole`: it has no parent now."""
    columns: dict[str, object] = {"moving": phase}
    if namespace is not None:
        columns |= {"namespace": namespace.row.id, "moving_peer": peer, "ceph_id": ceph_id}
    if whole:
        columns["parent"] = None
    return _change(fabric, entry, columns)


def settle(
    fabric: Fabric,
    entry: ImageEntry,
    *,
    namespace: NamespaceEntry | None = None,
    ceph_id: str | None = None,
) -> ImageEntry:
    """The move is over: the image is where the row says, or in `namespace`."""
    columns: dict[str, object] = {"moving": None, "moving_peer": None}
    if namespace is not None:
        columns |= {"namespace": namespace.row.id, "ceph_id": ceph_id}
    return _change(fabric, entry, columns)


def _change(fabric: Fabric, entry: ImageEntry, columns: dict[str, object]) -> ImageEntry:
    transaction = fabric.transaction()
    transaction.guard(entry.row, "state", "moving", "namespace")
    transaction.update(entry.row, columns)
    try:
        transaction.commit()
    except GuardFailed as error:
        raise Conflict(
            f"image {entry.record.name} was changed by another svctl meanwhile. Run it again."
        ) from error
    return catalog.image(fabric, entry.record.tenant, entry.record.name)
