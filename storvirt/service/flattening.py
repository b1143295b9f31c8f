"""Clones' generations: how deep an image's chain of parents is, and cutting it by flattening."""

from collections.abc import Sequence
from uuid import UUID

from storvirt.backends import activity, images
from storvirt.backends.cluster import Cluster
from storvirt.model import Image, ImageName
from storvirt.service import catalog, parallel
from storvirt.service.catalog import ImageEntry, SnapshotEntry
from storvirt.service.parallel import Failure, Outcome, Progress, Step, no_progress
from tenancy.backends.fabric import Fabric
from tenancy.errors import InvalidRequest, Refused

# Each generation costs a read another request to an OSD, and opening the image 4 ms more.
DEPTH = 4
DEEPEST = 16
# Each flattening copies a whole image.
FLATTENERS = 4


def flatten(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    progress: Progress = no_progress,
) -> Image:
    """Give a clone its own copy of all its blocks, so that it needs its parent no longer.

    Works while a guest uses it. Killed, the same call goes on: blocks that are copied are
    passed over. Raises Refused if the image is no clone.
    """
    entry = catalog.ready_image(fabric, tenant, name)
    if entry.row["parent"] is None:
        raise Refused(f"image {name} is not a clone: it needs no parent.")
    _refuse_shared_in_use(cluster, entry)
    images.flatten(cluster, entry.record.path, progress)
    for failure in _part(fabric, [(entry, None)]):
        raise failure.error
    return catalog.image(fabric, tenant, name).record


def flatten_all(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    names: Sequence[ImageName],
    progress: Progress = no_progress,
) -> Outcome:
    """Flatten several clones; those that are no clones any more are passed over."""
    found = catalog.images_named(fabric, tenant, names)
    entries = [entry for entry in found if entry.row["parent"] is not None]

    def work(entry: ImageEntry) -> None:
        _refuse_shared_in_use(cluster, entry)
        # One image may take long, and is told of only at its end.
        images.flatten(cluster, entry.record.path, lambda _done, _total: activity.progressed())

    steps: list[Step[ImageEntry]] = [
        Step(work=work, record=lambda done: _part(fabric, done)),
    ]
    failures = parallel.run(entries, steps, threads=FLATTENERS, progress=progress)
    flat = [entry.record.name for entry in found if entry.row["parent"] is None]
    return parallel.outcome(entries, failures, catalog.name_of, flat)


def _refuse_shared_in_use(cluster: Cluster, entry: ImageEntry) -> None:
    # While a guest has the image, librbd lets it do the work. Its key may read another tenant's
    # image, and not write there that it has one clone fewer.
    parent = entry.record.parent
    if parent is None or "/" not in parent:
        return
    users = images.users(cluster, entry.record.path)
    if users:
        raise Refused(
            f"image {entry.record.name} is a clone of another tenant's {parent} and open on "
            f"{', '.join(users)}. Stop its guest first."
        )


def depth(fabric: Fabric, parent: SnapshotEntry) -> int:
    """How many parents a clone of this snapshot would have, one behind the other."""
    image_rows, snapshot_rows = fabric.select_many([("Image", {}), ("Snapshot", {})])
    parent_of: dict[UUID, UUID | None] = {row.id: row["parent"] for row in image_rows}
    image_of: dict[UUID, UUID] = {row.id: row["image"] for row in snapshot_rows}
    found, at = 1, parent_of.get(parent.image.row.id)
    while at is not None and at in image_of:
        found += 1
        at = parent_of.get(image_of[at])
    return found


def is_too_deep(fabric: Fabric, parent: SnapshotEntry, limit: int, *, may_flatten: bool) -> bool:
    """Whether clones of this snapshot must be flattened; raises Refused unless they may be."""
    if not 1 <= limit <= DEEPEST:
        raise InvalidRequest(f"depth {limit} is not between 1 and {DEEPEST}.")
    would = depth(fabric, parent)
    if would > limit and not may_flatten:
        ref = f"{parent.record.image}@{parent.record.name}"
        raise Refused(
            f"a clone of {ref} would be {would} generations deep, and {limit} are allowed. Clone "
            "from an image that is less deep, have the clones made independent at once "
            f"(--flatten-deep), or allow it: --max-depth {would}."
        )
    return would > limit


def _part(
    fabric: Fabric, flattened: Sequence[tuple[ImageEntry, None]]
) -> list[Failure[ImageEntry]]:
    transaction = fabric.transaction()
    for entry, _ in flattened:
        transaction.update(entry.row, {"parent": None})
    transaction.commit()
    return []
