"""Writing an image to a file: always a snapshot of it, so that a guest can go on meanwhile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import msgspec

from storvirt import exports
from storvirt.backends import blocks, exporter
from storvirt.backends.blocks import Extent
from storvirt.backends.cluster import Cluster
from storvirt.exports import ExportFormat, Note
from storvirt.model import ImageName, SnapshotName, SnapshotRef, State
from storvirt.service import catalog, snapshots
from storvirt.service.catalog import ImageEntry
from tenancy.backends.fabric import Fabric
from tenancy.errors import NotFound, Refused
from tenancy.names import format_size

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A file that was written. `sha256` is of the disk's content, whatever the format."""

    image: ImageName
    file: Path
    format: ExportFormat
    size_bytes: int
    sha256: str


def export(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    target: Path,
    *,
    snapshot: SnapshotName | None = None,
    format: ExportFormat = ExportFormat.RAW,
    compress: bool = False,
    force: bool = False,
    progress: Progress = lambda _done, _total: None,
    say: Say = lambda _sentence: None,
) -> Export:
    """Write the image, or one of its snapshots, to `target`, which is never seen half.

    Without a snapshot one is taken, counted by the quota, and deleted again. Interrupted, the
    same call goes on where it stopped; a qcow2 file is then made from the raw content anew.
    """
    target = exporter.resolved(target)
    entry = catalog.ready_image(fabric, tenant, name)
    with exporter.locked(target):
        wanted = _wanted(entry, target, snapshot, format)
        note = _begin(fabric, cluster, entry, target, wanted, force, say)
        if note.sha256 is None:
            note = _copy(cluster, entry, target, note, progress)
            exporter.write_note(target, note)
        if not note.published:
            if format is ExportFormat.QCOW2:
                say(f"converting to qcow2{' and compressing' if compress else ''}")
                exporter.to_qcow2(target, compress=compress)
            exporter.publish(target, format, force=force)
            note = msgspec.structs.replace(note, published=True)
            exporter.write_note(target, note)
        _release(fabric, cluster, note, target)
        exporter.forget(target)
    assert note.sha256 is not None
    return Export(
        image=name,
        file=target,
        format=format,
        size_bytes=note.size_bytes,
        sha256=note.sha256,
    )


def _wanted(
    entry: ImageEntry, target: Path, snapshot: SnapshotName | None, format: ExportFormat
) -> Note:
    return Note(
        tenant=entry.record.tenant,
        image=str(entry.row.id),
        name=entry.record.name,
        snapshot=snapshot or exports.snapshot_for(target),
        owned=snapshot is None,
        format=format,
        size_bytes=0,
    )


def _begin(
    fabric: Fabric,
    cluster: Cluster,
    entry: ImageEntry,
    target: Path,
    wanted: Note,
    force: bool,
    say: Say,
) -> Note:
    """The note to go on from; its snapshot is there unless the file is complete."""
    found = exporter.read_note(target)
    if found is not None and found.same_work(wanted):
        if found.published or (found.sha256 and exporter.is_published(target, found.format)):
            return msgspec.structs.replace(found, published=True)
    elif found is not None:
        say("what another export to this file left is removed")
        _release(fabric, cluster, found, target)
        found = None
    if target.exists() and not force:
        raise exporter.taken(target)
    if found is not None and exporter.part_of(target).exists():
        if found.done:
            say(f"an export to this file was interrupted: going on at {format_size(found.done)}")
        return found
    exporter.forget(target)
    path = entry.record.path
    ref = SnapshotRef(image=entry.record.name, snapshot=SnapshotName(wanted.snapshot))
    if wanted.owned:
        _release(fabric, cluster, wanted, target)
        snapshots.create(fabric, cluster, wanted.tenant, ref, holder=_holder(target))
    held = catalog.snapshot(fabric, wanted.tenant, ref)
    if held.record.state is not State.READY:
        raise Refused(
            f"snapshot {ref} is {held.record.state}. Run the command that began it again."
        )
    size_bytes = blocks.size(cluster, path, wanted.snapshot)
    note = msgspec.structs.replace(wanted, size_bytes=size_bytes)
    exporter.write_note(target, note)
    return note


def _copy(
    cluster: Cluster,
    entry: ImageEntry,
    target: Path,
    note: Note,
    progress: Progress,
) -> Note:
    path = entry.record.path
    extents = blocks.allocated(cluster, path, note.snapshot)
    held = sum(extent.length for extent in extents if extent.data)
    # A qcow2 file is made from the raw one, so both are there for a while.
    exporter.refuse_full(target, held * (2 if note.format is ExportFormat.QCOW2 else 1))

    def parts(start: int) -> Iterator[tuple[Extent, bytes | None]]:
        wanted = blocks.filled(extents, start, note.size_bytes)
        return blocks.read(cluster, path, note.snapshot, wanted)

    digest = exporter.write_raw(target, note, parts, progress)
    return msgspec.structs.replace(note, done=note.size_bytes, sha256=digest)


def _release(fabric: Fabric, cluster: Cluster, note: Note, target: Path) -> None:
    """Delete the snapshot that an export took, if it is there; also if its image has moved on."""
    if not note.owned:
        return
    row = fabric.find("Image", id=UUID(note.image))
    if row is None:
        return
    ref = SnapshotRef(image=ImageName(row["name"]), snapshot=SnapshotName(note.snapshot))
    try:
        snapshots.delete(fabric, cluster, note.tenant, ref, holder=_holder(target))
    except NotFound:
        return


def _holder(target: Path) -> str:
    return f"the export to {target}"
