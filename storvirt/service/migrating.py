"""Moving an image to another pool of its tenant; killed anywhere, the same call goes on."""

from collections.abc import Callable
from pathlib import Path

from storvirt import moving
from storvirt.backends import images, migration, naming
from storvirt.backends.cluster import Cluster
from storvirt.backends.migration import Stage
from storvirt.model import Image, ImageName, ImagePath, PoolName
from storvirt.moving import Phase
from storvirt.service import catalog, mirroring, sharing
from storvirt.service.catalog import ImageEntry, NamespaceEntry
from storvirt.service.relocating import begin, peer, phase_of, settle, step
from tenancy.backends.fabric import Fabric
from tenancy.errors import AlreadyExists, InvalidRequest, Refused

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


def migrate(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    pool: PoolName,
    *,
    qmp: Path | None = None,
    progress: Progress = lambda _done, _total: None,
    say: Say = lambda _sentence: None,
) -> Image:
    """The image in `pool`, where its tenant must have a namespace. Snapshots and clones stay its.

    With `qmp`, the socket of the QEMU that has it open, the guest goes on all the time; its
    snapshots can't come along then. The quota counts the image once, wherever it is.
    """
    entry = catalog.image(fabric, tenant, name)
    phase = phase_of(entry)
    if phase is None:
        catalog.refuse_unready(entry)
        target = _target(fabric, entry, pool)
        if qmp is not None:
            mirroring.refuse_impossible(fabric, entry, qmp)
        else:
            _refuse_open(cluster, entry)
            sharing.refuse_read(fabric, cluster, entry)
        first = Phase.PREPARE if qmp is None else Phase.MIRROR
        entry = begin(fabric, entry, target, first)
    elif phase is Phase.ABORT or pool != _destination(fabric, entry, phase):
        raise moving.in_the_way(
            entry.record.tenant, name, phase, _destination(fabric, entry, phase)
        )
    if phase_of(entry) in (*moving.UNDER_GUEST, Phase.CLEAN):
        mirroring.carry_on(fabric, cluster, entry, qmp, progress, say)
    else:
        _carry_on(fabric, cluster, entry, progress, say)
    return catalog.image(fabric, tenant, name).record


def abort(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    *,
    qmp: Path | None = None,
) -> Image:
    """Undo a move that is not complete: the image is in its old pool, with all that was written."""
    entry = catalog.image(fabric, tenant, name)
    phase = phase_of(entry)
    if phase is None:
        raise Refused(f"image {name} is not being moved, so there is nothing to undo.")
    if phase is Phase.CLEAN:
        raise moving.cannot_abort(name, entry.record.pool)
    if phase in moving.UNDER_GUEST:
        mirroring.abort(fabric, cluster, entry, qmp)
        return catalog.image(fabric, tenant, name).record
    other = _path(entry, peer(fabric, entry))
    here = entry.record.path
    if phase is Phase.PREPARE:
        if migration.find(cluster, here, other).stage is not Stage.NONE:
            migration.abort(cluster, other if naming.image_id(cluster, other) else here)
        sharing.renew(fabric, cluster, entry)
        settle(fabric, entry)
        return catalog.image(fabric, tenant, name).record
    if phase is Phase.EXECUTE:
        if migration.find(cluster, here).stage is Stage.NONE:
            raise moving.cannot_abort(name, entry.record.pool)
        entry = step(fabric, entry, Phase.ABORT)
    if migration.find(cluster, here, other).stage is not Stage.NONE:
        migration.abort(cluster, here)
    id = naming.image_id(cluster, other)
    sharing.renew(fabric, cluster, entry)
    settle(fabric, entry, namespace=peer(fabric, entry), ceph_id=id)
    return catalog.image(fabric, tenant, name).record


def _carry_on(
    fabric: Fabric, cluster: Cluster, entry: ImageEntry, progress: Progress, say: Say
) -> None:
    if phase_of(entry) is Phase.PREPARE:
        entry = _prepare(fabric, cluster, entry)
        say(f"image {entry.record.name} opens in pool {entry.record.pool} from now on")
    path = entry.record.path
    stage = migration.find(cluster, path).stage
    if stage is Stage.PREPARED:
        migration.execute(cluster, path, progress)
        stage = Stage.EXECUTED
    if stage is Stage.EXECUTED:
        migration.commit(cluster, path)
    sharing.renew(fabric, cluster, entry)
    settle(fabric, entry)


def _prepare(fabric: Fabric, cluster: Cluster, entry: ImageEntry) -> ImageEntry:
    """Prepare in Ceph, and let the row say so."""
    source, space = entry.record.path, peer(fabric, entry)
    target = _path(entry, space)
    found = migration.find(cluster, source, target)
    if found.stage in (Stage.BROKEN, Stage.ABORTING):
        migration.abort(cluster, target if naming.image_id(cluster, target) else source)
        found = migration.find(cluster, source, target)
    if found.stage is Stage.NONE:
        try:
            _refuse_open(cluster, entry)
            sharing.refuse_read(fabric, cluster, entry)
            migration.prepare(cluster, source, target)
        except AlreadyExists as error:
            settle(fabric, entry)
            raise Refused(
                f"image {target} exists in Ceph, made by somebody else. Rename it, or adopt it."
            ) from error
        except Refused:
            settle(fabric, entry)
            raise
        found = migration.find(cluster, target)
    return step(
        fabric,
        entry,
        Phase.EXECUTE,
        namespace=space,
        peer=entry.row["namespace"],
        ceph_id=found.target_id,
    )


def _target(fabric: Fabric, entry: ImageEntry, pool: PoolName) -> NamespaceEntry:
    name, tenant = entry.record.name, entry.record.tenant
    if pool == entry.record.pool:
        raise InvalidRequest(f"image {name} is in pool {pool} already. Choose another.")
    if entry.row["group"] is not None:
        raise Refused(
            f"image {name} is in a group, whose images share a pool. Take it out of it first."
        )
    for held in catalog.snapshots(fabric, entry):
        if held.record.holder and held.record.holder.startswith("the export"):
            raise Refused(f"image {name} is needed by {held.record.holder}. Finish that first.")
    return catalog.namespace(fabric, tenant, pool)


def _refuse_open(cluster: Cluster, entry: ImageEntry) -> None:
    users = images.users(cluster, entry.record.path)
    if users:
        raise Refused(
            f"image {entry.record.name} is open on {', '.join(users)}. Stop its guest for a "
            "moment (it can start again as soon as the move has begun), or give the guest's QMP "
            "socket, so that it goes on: --qmp. A client that died is forgotten after 30 s."
        )


def _destination(fabric: Fabric, entry: ImageEntry, phase: Phase) -> PoolName:
    return peer(fabric, entry).record.pool if phase in moving.AT_SOURCE else entry.record.pool


def _path(entry: ImageEntry, space: NamespaceEntry) -> ImagePath:
    return ImagePath(pool=space.record.pool, namespace=space.record.tenant, name=entry.record.name)
