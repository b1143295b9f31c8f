"""Backups of images as a chain of files, and images made from them.

Between two backups the image keeps one snapshot, which the next one is compared with. It is a row
like any other, counted by the quota, and held: nobody deletes it by accident.

The manifest is replaced last, so a killed `create` or `prune` leaves files that it does not know,
and the next command removes them.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import msgspec

from storvirt import backups
from storvirt.backends import chain, images, pieces
from storvirt.backends.chain import Disk
from storvirt.backends.cluster import Cluster
from storvirt.backups import Manifest, Piece
from storvirt.model import (
    Image,
    ImageName,
    ImagePath,
    PoolName,
    SnapshotName,
    SnapshotRef,
    State,
)
from storvirt.service import admission, catalog, importing, snapshots
from storvirt.service.catalog import ImageEntry
from tenancy.backends.fabric import Fabric
from tenancy.errors import (
    InvalidRequest,
    NotFound,
    Refused,
    VerificationFailed,
    VirtkitError,
)

# What is restored between two notes of how far it got.
STEP_BYTES = 256 << 20

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


def create(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    directory: Path,
    *,
    progress: Progress = lambda _done, _total: None,
    say: Say = lambda _sentence: None,
) -> Piece:
    """One more backup in `directory`: the whole image first, then what changed since the last.

    The piece is read back and compared with the image before it counts. Interrupted, the same
    call takes the piece anew.
    """
    entry = catalog.ready_image(fabric, tenant, name)
    with chain.locked(directory):
        manifest = _of_image(entry, directory)
        chain.clean(directory, manifest)
        last = manifest.pieces[-1] if manifest.pieces else None
        _drop_snapshots(fabric, cluster, entry, manifest)
        if last is not None:
            _refuse_broken(fabric, cluster, entry, directory, last)
        until = manifest.snapshot(manifest.next)
        ref = SnapshotRef(image=name, snapshot=SnapshotName(until))
        with Disk() as disk:
            before: list[bytes] = []
            if last is not None:
                # What the increment is laid upon is verified first: it may be on a bad disk.
                say(f"verifying {len(manifest.pieces)} pieces of {directory}")
                before = _verified(directory, manifest.pieces, disk)
            snapshots.create(fabric, cluster, tenant, ref, holder=_holder(manifest, directory))
            try:
                piece = _write(cluster, entry, directory, manifest, until, disk, before, progress)
            except VirtkitError:
                _drop_snapshots(fabric, cluster, entry, manifest)
                raise
            except OSError as error:
                _drop_snapshots(fabric, cluster, entry, manifest)
                raise Refused(
                    f"backup piece of {name} could not be written to {directory} "
                    f"({error.strerror}). Make room or repair its disk, and run the same again."
                ) from error
        manifest = msgspec.structs.replace(
            manifest,
            image=name,
            encryption=entry.row["encryption"],
            next=manifest.next + 1,
            pieces=(*manifest.pieces, piece),
        )
        chain.store(directory, manifest)
        _drop_snapshots(fabric, cluster, entry, manifest)
        return piece


def list_all(directory: Path) -> tuple[Piece, ...]:
    """The backups of a chain, oldest first. Raises NotFound."""
    return chain.get(directory).pieces


def verify(directory: Path, *, progress: Progress = lambda _done, _total: None) -> Manifest:
    """Read the chain, and compare it with what the image held. Raises VerificationFailed."""
    manifest = chain.get(directory)
    chosen = backups.chosen(str(directory), manifest, None)
    chain.check_pieces(directory, chosen, progress)
    with Disk() as disk:
        chain.check_contents(directory, chosen, disk, progress)
    return manifest


def restore(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    directory: Path,
    *,
    number: int | None = None,
    pool: PoolName | None = None,
    progress: Progress = lambda _done, _total: None,
    say: Say = lambda _sentence: None,
) -> Image:
    """A new image as one of the backups has it; the whole chain up to it is verified first.

    Interrupted, the same call goes on where it stopped. What is in Ceph then is read again and
    compared, before the image gets its name.
    """
    manifest = chain.get(directory)
    chosen = backups.chosen(str(directory), manifest, number)
    wanted = chosen[-1]
    source = f"backup {wanted.number} of chain {manifest.chain}"
    if _is_restored(fabric, tenant, name, source):
        return catalog.image(fabric, tenant, name).record
    say(f"verifying {len(chosen)} pieces of {directory}")
    with Disk() as disk:
        digests = _verified(directory, chosen, disk)
        entry = admission.admit(
            fabric,
            tenant,
            name,
            wanted.size_bytes,
            pool=pool,
            source=source,
            encryption=manifest.encryption,
        )

        def make(target: ImagePath) -> None:
            what = "a restore of this backup"
            start = importing.begin(cluster, target, wanted.size_bytes, what, say)
            # Held open: another svctl sees by it that this one is alive.
            with cluster.image(target) as handle:
                for at in range(start, wanted.size_bytes, STEP_BYTES):
                    end = min(at + STEP_BYTES, wanted.size_bytes)
                    pieces.restore(disk, handle, at, end)
                    handle.metadata_set(importing.DONE, str(end))
                    progress(end, wanted.size_bytes)
                say(f"comparing {name} with the backup")
                if pieces.image_digests(cluster, target, None, lambda _d, _t: None) != digests:
                    raise VerificationFailed(
                        f"image {name} differs from the backup after it was written. "
                        f"Give it up: svctl image delete {name} --tenant {tenant}."
                    )
                handle.metadata_remove(importing.DONE)

        admission.complete(fabric, cluster, entry, make)
    return catalog.image(fabric, tenant, name).record


def prune(
    directory: Path, keep: int, *, progress: Progress = lambda _done, _total: None
) -> Manifest:
    """Keep the newest `keep` backups: what the oldest of them builds on is merged into it."""
    if keep < 1:
        raise InvalidRequest(
            "--keep must be at least 1: a chain without a backup restores nothing."
        )
    with chain.locked(directory):
        manifest = chain.get(directory)
        chain.clean(directory, manifest)
        old, kept = manifest.pieces[:-keep], manifest.pieces[-keep:]
        if not old:
            return manifest
        merged = (*old, kept[0])
        chain.check_pieces(directory, merged, progress)
        first = _merge(directory, merged)
        manifest = msgspec.structs.replace(manifest, pieces=(first, *kept[1:]))
        chain.store(directory, manifest)
        chain.clean(directory, manifest)
        return manifest


def release(fabric: Fabric, cluster: Cluster, tenant: str, ref: SnapshotRef) -> None:
    """Delete a snapshot that a chain or an export relies on; that one can't go on then."""
    entry = catalog.snapshot(fabric, tenant, ref)
    if entry.row["holder"] is None:
        raise Refused(
            f"snapshot {ref} is held by nothing. Delete it: "
            f"svctl snapshot delete {ref} --tenant {tenant}."
        )
    snapshots.delete(fabric, cluster, tenant, ref, holder=entry.row["holder"])


def _of_image(entry: ImageEntry, directory: Path) -> Manifest:
    manifest = chain.find(directory)
    if manifest is None:
        manifest = Manifest(
            chain=uuid4().hex[:8],
            tenant=entry.record.tenant,
            image=entry.record.name,
            image_id=str(entry.row.id),
            encryption=entry.row["encryption"],
        )
        # Before there is a snapshot, so that no snapshot is without its chain.
        chain.store(directory, manifest)
    elif manifest.image_id != str(entry.row.id):
        raise Refused(
            f"{directory} holds backups of another image ({manifest.tenant}'s {manifest.image}). "
            "Choose a directory of its own."
        )
    return manifest


def _holder(manifest: Manifest, directory: Path) -> str:
    return f"{manifest.holder} in {directory.resolve()}"


def _drop_snapshots(
    fabric: Fabric, cluster: Cluster, entry: ImageEntry, manifest: Manifest
) -> None:
    """Delete the chain's snapshots but the last piece's."""
    needed = manifest.pieces[-1].until if manifest.pieces else None
    for held in catalog.snapshots(fabric, entry):
        holder = held.row["holder"] or ""
        if holder.startswith(manifest.holder) and held.record.name != needed:
            ref = SnapshotRef(image=entry.record.name, snapshot=held.record.name)
            snapshots.delete(fabric, cluster, entry.record.tenant, ref, holder=holder)


def _refuse_broken(
    fabric: Fabric, cluster: Cluster, entry: ImageEntry, directory: Path, last: Piece
) -> None:
    rows = {held.record.name: held.record for held in catalog.snapshots(fabric, entry)}
    row = rows.get(SnapshotName(last.until))
    in_ceph = last.until in images.snapshots(cluster, entry.record.path)
    if row is None or row.state is not State.READY or not in_ceph:
        raise Refused(
            f"the chain in {directory} goes on from snapshot {entry.record.name}@{last.until}, "
            "which is gone. What is there can be restored; begin a new chain in another directory."
        )


def _verified(directory: Path, chosen: tuple[Piece, ...], disk: Disk) -> list[bytes]:
    """Lay pieces that are what was written; return the digests of the disk's blocks."""
    chain.check_pieces(directory, chosen, lambda _done, _total: None)
    return chain.check_contents(directory, chosen, disk, lambda _done, _total: None)


def _write(
    cluster: Cluster,
    entry: ImageEntry,
    directory: Path,
    manifest: Manifest,
    until: str,
    disk: Disk,
    before: list[bytes],
    progress: Progress,
) -> Piece:
    """The next piece, read back and compared with the image."""
    since = manifest.pieces[-1].until if manifest.pieces else None
    taken_at = datetime.now(UTC).isoformat(timespec="seconds")
    file = backups.file_name(manifest.next, full=since is None)
    old = (disk.size_bytes, before)
    path = entry.record.path
    with chain.begin_piece(directory, file) as opened:
        found = pieces.take(cluster, path, since, until, opened, old, progress)
        chain.sync(opened)
    disk.lay(directory / f"{file}.part")
    if disk.rehash(before, found.touched) != found.digests:
        raise VerificationFailed(
            f"backup piece {directory / file} does not give what the image holds. Look at the "
            "disk it is on, and run the same command again."
        )
    chain.finish_piece(directory, file)
    return Piece(
        number=manifest.next,
        file=file,
        since=since,
        until=until,
        size_bytes=found.size_bytes,
        file_bytes=found.file_bytes,
        sha256=found.sha256,
        content=backups.content(found.digests),
        taken=taken_at,
    )


def _merge(directory: Path, merged: tuple[Piece, ...]) -> Piece:
    newest = merged[-1]
    file = backups.file_name(newest.number, full=True)
    with Disk() as disk:
        chain.check_contents(directory, merged, disk, lambda _done, _total: None)
        with chain.begin_piece(directory, file) as opened:
            length, sha256 = pieces.merge(disk, newest.until, opened)
            chain.sync(opened)
    first = msgspec.structs.replace(newest, file=file, since=None, file_bytes=length, sha256=sha256)
    with Disk() as disk:
        chain.finish_piece(directory, file)
        chain.check_contents(directory, (first,), disk, lambda _done, _total: None)
    return first


def _is_restored(fabric: Fabric, tenant: str, name: ImageName, source: str) -> bool:
    try:
        entry = catalog.image(fabric, tenant, name)
    except NotFound:
        return False
    return entry.record.state is State.READY and entry.record.source == source
