"""Moving an image under a running guest: its QEMU copies it, and is led over in the end.

No acknowledged write is lost: once the copy is complete, QEMU acknowledges a write when both
sides have it, until the moment it uses the target alone. What has happened is read from QEMU's
job, which stays there until the row says that the image has moved.
"""

import time
from collections.abc import Callable
from pathlib import Path

from storvirt import hypervisor
from storvirt.backends import blocks, images, mirror, naming
from storvirt.backends.cluster import Cluster
from storvirt.backends.mirror import Job, JobState
from storvirt.backends.qmp import Qmp
from storvirt.model import ImagePath
from storvirt.moving import Phase
from storvirt.service import attaching, catalog, sharing
from storvirt.service.catalog import ImageEntry
from storvirt.service.relocating import peer, phase_of, settle, step
from tenancy.backends.fabric import Fabric
from tenancy.errors import BackendUnavailable, Refused

# QEMU answers at once; the switch drains what is in flight, which an OSD that died can hold up.
SWITCH_TIMEOUT_S = 60.0
POLL_S = 0.2

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


def refuse_impossible(fabric: Fabric, entry: ImageEntry, socket: Path) -> None:
    """Refuse what a copy under a guest would lose, and a QEMU that does not have the image."""
    name = entry.record.name
    held = catalog.snapshots(fabric, entry)
    if held:
        raise Refused(
            f"image {name} has snapshots ({held[0].record.name}), which do not come along under a "
            "guest. Stop the guest and move it without --qmp, or delete them."
        )
    if entry.row["encryption"]:
        raise Refused(
            f"image {name} is encrypted, and its guest's QEMU would write it in clear. Stop the "
            "guest and move it without --qmp."
        )
    with Qmp.connect(socket) as qmp:
        mirror.source_node(qmp, *_names(entry, entry.record.path))


def carry_on(
    fabric: Fabric,
    cluster: Cluster,
    entry: ImageEntry,
    socket: Path | None,
    progress: Progress,
    say: Say,
) -> None:
    """From whatever phase the move is in to its end."""
    if phase_of(entry) in (Phase.MIRROR, Phase.SWITCH):
        if socket is None:
            entry = _without_guest(fabric, cluster, entry)
        else:
            with Qmp.connect(socket) as qmp:
                entry = _under_guest(fabric, cluster, entry, qmp, progress, say)
    if phase_of(entry) is Phase.CLEAN:
        old = _old(fabric, entry)
        if socket is not None:
            with Qmp.connect(socket) as qmp:
                _let_go(qmp, entry, old)
        images.remove(cluster, old)
        sharing.renew(fabric, cluster, entry)
        settle(fabric, entry)


def abort(fabric: Fabric, cluster: Cluster, entry: ImageEntry, socket: Path | None) -> None:
    """The guest stays on the old image; the copy is removed."""
    target = _target(fabric, entry)
    if socket is not None:
        with Qmp.connect(socket) as qmp:
            job = mirror.look(qmp, _job(entry))
            if job.state is JobState.DONE and phase_of(entry) is Phase.SWITCH:
                raise Refused(
                    f"the guest of image {entry.record.name} uses the new pool already. Run the "
                    "same command without --abort; to go back, move it back."
                )
            # From here on, a job that has ended has not led the guest over.
            entry = step(fabric, entry, Phase.MIRROR)
            _stop(qmp, entry, target)
    elif phase_of(entry) is Phase.SWITCH and not _are_equal(cluster, entry, target):
        raise Refused(
            f"image {entry.record.name} may have been written in the new pool by its guest, which "
            "has gone, or does not answer. Give its QMP socket: --qmp."
        )
    images.remove(cluster, target)
    settle(fabric, entry)


def _under_guest(
    fabric: Fabric,
    cluster: Cluster,
    entry: ImageEntry,
    qmp: Qmp,
    progress: Progress,
    say: Say,
) -> ImageEntry:
    target, job = _target(fabric, entry), _job(entry)
    found = mirror.look(qmp, job)
    switching = phase_of(entry) is Phase.SWITCH
    if found.state in (JobState.NONE, JobState.FAILED) or (
        found.state is JobState.DONE and not switching
    ):
        # A switch is recorded before it is asked for, so none has happened; unless this is
        # another QEMU than the one that was asked.
        if switching and found.state is JobState.NONE and not _are_equal(cluster, entry, target):
            raise _undecided(entry, target)
        if switching:
            entry = step(fabric, entry, Phase.MIRROR)
        _begin(cluster, entry, qmp, target)
    elif found.state is not JobState.DONE:
        say("the guest's QEMU is copying already: going on with that")
    _wait(qmp, job, (JobState.READY, JobState.DONE), progress)
    if phase_of(entry) is Phase.MIRROR:
        entry = step(fabric, entry, Phase.SWITCH)
    if mirror.look(qmp, job).state is JobState.READY:
        mirror.complete(qmp, job)
        _wait(qmp, job, (JobState.DONE,), lambda _done, _total: None, SWITCH_TIMEOUT_S)
    say(f"the guest uses pool {target.pool}")
    return _arrive(fabric, cluster, entry, target)


def _begin(cluster: Cluster, entry: ImageEntry, qmp: Qmp, target: ImagePath) -> None:
    """A blank target, open in the guest's QEMU, and a job that fills it."""
    _stop(qmp, entry, target)
    source = mirror.source_node(qmp, *_names(entry, entry.record.path))
    images.remove(cluster, target)
    images.create_like(cluster, target, entry.record.path)
    node = mirror.other_name(source)
    connection = attaching.connection(cluster, entry, target)
    options = hypervisor.qemu_blockdev(connection)
    mirror.open_target(qmp, node, options, mirror.base_of(source))
    mirror.start(qmp, _job(entry), source, node)


def _stop(qmp: Qmp, entry: ImageEntry, target: ImagePath) -> None:
    """No job, and no target open."""
    job = _job(entry)
    found = mirror.look(qmp, job)
    if found.state in (JobState.RUNNING, JobState.READY):
        mirror.cancel(qmp, job)
        _wait(qmp, job, (JobState.DONE, JobState.FAILED, JobState.NONE), lambda _d, _t: None, 30)
        found = mirror.look(qmp, job)
    if found.state is not JobState.NONE:
        mirror.dismiss(qmp, job)
    node = mirror.node_of(qmp, target)
    if node is not None:
        mirror.close(qmp, node)


def _without_guest(fabric: Fabric, cluster: Cluster, entry: ImageEntry) -> ImageEntry:
    """The guest has gone: what is in the target counts only if it is what is in the source."""
    target = _target(fabric, entry)
    for path in (entry.record.path, target):
        if naming.image_id(cluster, path) and images.users(cluster, path):
            raise Refused(
                f"image {path} is open: the guest's QEMU knows how far the move is. Give its "
                "socket: --qmp. A client that died is forgotten after 30 s."
            )
    if phase_of(entry) is Phase.SWITCH:
        if not _are_equal(cluster, entry, target):
            raise _undecided(entry, target)
        return _arrive(fabric, cluster, entry, target)
    images.remove(cluster, target)
    settle(fabric, entry)
    raise Refused(
        f"the guest of image {entry.record.name} ended before all was copied; nothing is lost and "
        "the copy is removed. Move it without --qmp, now that it is closed."
    )


def _undecided(entry: ImageEntry, target: ImagePath) -> Refused:
    return Refused(
        f"the guest of image {entry.record.name} ended while it was led over, and the two copies "
        f"differ. {target} holds what it wrote last, unless its QEMU reported an error or it was "
        f"started on {entry.record.path} again. Compare them, let {entry.record.path} hold the "
        "right one (`rbd export`, `rbd import`), and use --abort once they are equal."
    )


def _arrive(fabric: Fabric, cluster: Cluster, entry: ImageEntry, target: ImagePath) -> ImageEntry:
    """The target gets the image's name, and the row says that it is there."""
    final = target.named(entry.record.name)
    id = naming.image_id(cluster, target) or naming.image_id(cluster, final)
    assert id is not None
    naming.give(cluster, target, id, entry.record.name)
    return step(
        fabric,
        entry,
        Phase.CLEAN,
        namespace=peer(fabric, entry),
        peer=entry.row["namespace"],
        ceph_id=id,
        whole=True,
    )


def _old(fabric: Fabric, entry: ImageEntry) -> ImagePath:
    """Where the image was."""
    space = peer(fabric, entry)
    return ImagePath(pool=space.record.pool, namespace=space.record.tenant, name=entry.record.name)


def _let_go(qmp: Qmp, entry: ImageEntry, old: ImagePath) -> None:
    """Let QEMU forget the job, and close the image that its guest does not use any more."""
    if mirror.look(qmp, _job(entry)).state is JobState.DONE:
        mirror.dismiss(qmp, _job(entry))
    node = mirror.node_of(qmp, *_names(entry, old))
    if node is not None:
        mirror.close(qmp, node)


def _wait(
    qmp: Qmp,
    job: str,
    wanted: tuple[JobState, ...],
    progress: Progress,
    timeout_s: float | None = None,
) -> Job:
    give_up = None if timeout_s is None else time.monotonic() + timeout_s
    while (found := mirror.look(qmp, job)).state not in wanted:
        if found.state in (JobState.FAILED, JobState.NONE):
            raise Refused(
                f"the guest's QEMU could not copy the image ({found.error or 'job is gone'}); the "
                "guest goes on where it was. Look at Ceph, and run the same command again."
            )
        if give_up is not None and time.monotonic() > give_up:
            raise BackendUnavailable(
                "the guest's QEMU does not finish its job. See `ceph -s`, and run the same again."
            )
        progress(found.done, max(found.total, 1))
        time.sleep(POLL_S)
    return found


def _are_equal(cluster: Cluster, entry: ImageEntry, target: ImagePath) -> bool:
    path = entry.record.path
    return blocks.content_digest(cluster, path, None) == blocks.content_digest(
        cluster, target, None
    )


def _target(fabric: Fabric, entry: ImageEntry) -> ImagePath:
    space = peer(fabric, entry)
    return ImagePath(
        pool=space.record.pool,
        namespace=space.record.tenant,
        name=f".virtkit-{entry.row.id}",
    )


def _names(entry: ImageEntry, path: ImagePath) -> tuple[ImagePath, ImagePath]:
    """What QEMU may know the image as: it keeps the name under which it opened it."""
    return path, path.named(f".virtkit-{entry.row.id}")


def _job(entry: ImageEntry) -> str:
    return f"virtkit-move-{entry.row.id.hex[:12]}"
