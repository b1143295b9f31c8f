"""Making an image from a file: checked first, copied in steps, continued when interrupted."""

import re
import time
from collections.abc import Callable
from pathlib import Path

from storvirt import hypervisor
from storvirt.backends import blocks, encryption, images, importer, notes
from storvirt.backends.cluster import Cluster
from storvirt.formats.sources import Source, SourceFormat
from storvirt.model import (
    LUKS2,
    Image,
    ImageName,
    ImagePath,
    PoolName,
    SnapshotName,
    SnapshotRef,
    State,
)
from storvirt.service import admission, attaching, catalog, snapshots
from tenancy.backends.fabric import Fabric
from tenancy.errors import InvalidRequest, NotFound, Refused
from tenancy.names import format_size, shortened

# What is copied between two notes of how far it got. A new copying process costs about 0.1 s.
STEP_BYTES = 1 << 30
# How long Ceph believes that a client which died still has an image open: 30 s, and some.
CLIENT_EXPIRY_S = 35

# Image metadata that says how many bytes are surely in an unfinished image.
DONE = "virtkit.imported"

Progress = Callable[[int, int], None]
Say = Callable[[str], None]


def import_file(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    path: Path,
    *,
    format: SourceFormat | None = None,
    pool: PoolName | None = None,
    snapshot: SnapshotName | None = None,
    verify: bool = False,
    sha256: str | None = None,
    passphrase_file: Path | None = None,
    progress: Progress = lambda _done, _total: None,
    say: Say = lambda _sentence: None,
) -> Image:
    """An image with the disk that the file holds. Holes stay holes.

    The file is checked before anything is recorded. Interrupted, the same call goes on where it
    stopped; if the file proves unreadable on the way, nothing is left. `verify` reads both sides
    once more and compares; `snapshot` is taken and protected then. Doing the same import again
    finds it done. `sha256` is what the file must have, in hexadecimal.

    With `passphrase_file` the image is encrypted (LUKS2), and always verified.
    """
    if passphrase_file is not None:
        passphrase_file = passphrase_file.absolute()
        encryption.passphrase(passphrase_file)
    if sha256 is not None:
        _refuse_other_digest(path, format, sha256, say)
    source = importer.inspect(path, format)
    if not _is_imported(fabric, tenant, name, source):
        _copy_in(
            fabric, cluster, tenant, name, source, pool, verify, passphrase_file, progress, say
        )
    if snapshot is not None:
        _take(fabric, cluster, tenant, SnapshotRef(image=name, snapshot=snapshot))
    return catalog.image(fabric, tenant, name).record


def content_digest(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> str:
    """SHA-256 of what a guest reads from the image; reads all that is allocated."""
    entry = catalog.ready_image(fabric, tenant, name)
    return blocks.content_digest(cluster, entry.record.path, None)


def _refuse_other_digest(path: Path, format: SourceFormat | None, sha256: str, say: Say) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InvalidRequest(
            f"--sha256 {shortened(sha256)} is no SHA-256. Write its 64 hexadecimal digits."
        )
    importer.inspect(path, format)
    say(f"reading {path} for its checksum")
    found = importer.file_digest(path)
    if found != sha256.lower():
        raise InvalidRequest(
            f"{path} has SHA-256 {found}, not the one asked for. Fetch it again, or correct "
            "--sha256."
        )


def _copy_in(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    source: Source,
    pool: PoolName | None,
    verify: bool,
    passphrase_file: Path | None,
    progress: Progress,
    say: Say,
) -> None:
    total = source.size_bytes + (encryption.HEADER_BYTES if passphrase_file else 0)
    entry = admission.admit(
        fabric,
        tenant,
        name,
        total,
        pool=pool,
        source=str(source),
        encryption=LUKS2 if passphrase_file else None,
    )

    def make(target: ImagePath) -> None:
        connection = attaching.connection(cluster, entry, target)
        conf = hypervisor.client_conf(connection, cluster.timeout_s, cluster.osd_timeout_s)
        start = begin(cluster, target, total, "an import of this file", say)
        if passphrase_file is not None:
            _encrypt(cluster, target, source.size_bytes, passphrase_file, start)
        # Held open: another svctl sees by it that this one is alive.
        with cluster.image(target) as handle:
            for at in range(start, source.size_bytes, STEP_BYTES):
                length = min(STEP_BYTES, source.size_bytes - at)
                for done in importer.copy(
                    source, at, length, target, conf, connection.user, passphrase_file
                ):
                    progress(at + done, source.size_bytes)
                handle.metadata_set(DONE, str(at + length))
            if verify or passphrase_file is not None:
                say(f"comparing {name} with {source.path}")
                importer.compare(source, target, conf, connection.user, passphrase_file)
            handle.metadata_remove(DONE)

    try:
        admission.complete(fabric, cluster, entry, make)
    except importer.SourceUnreadable:
        admission.withdraw(fabric, cluster, entry)
        raise


def _is_imported(fabric: Fabric, tenant: str, name: ImageName, source: Source) -> bool:
    entry = catalog.find_image(fabric, tenant, name)
    return (
        entry is not None
        and entry.record.state is State.READY
        and entry.record.source == str(source)
    )


def _take(fabric: Fabric, cluster: Cluster, tenant: str, ref: SnapshotRef) -> None:
    taken = {
        entry.record.name: entry.record
        for entry in catalog.snapshots(fabric, catalog.image(fabric, tenant, ref.image))
    }
    if ref.snapshot in taken and taken[ref.snapshot].state is State.READY:
        snapshots.protect(fabric, cluster, tenant, ref)
    else:
        snapshots.create(fabric, cluster, tenant, ref, protect=True)


def _encrypt(
    cluster: Cluster, target: ImagePath, usable_bytes: int, passphrase_file: Path, start: int
) -> None:
    """The header, made anew unless some of the disk is there already."""
    secret = encryption.passphrase(passphrase_file)
    if start:
        encryption.unlock(cluster, target, secret)
        return
    total = usable_bytes + encryption.HEADER_BYTES
    images.remove(cluster, target)
    images.create(cluster, target, total)
    encryption.format_luks2(cluster, target, usable_bytes, secret)


def begin(cluster: Cluster, target: ImagePath, size_bytes: int, what: str, say: Say) -> int:
    """Make the target ready to be written and return where to start.

    `what` says in words what was interrupted, if something was.
    """
    try:
        _wait_until_closed(cluster, target, say)
    except NotFound:
        # Nothing is there, or what a process left that died while it created the image.
        images.remove(cluster, target)
        images.create(cluster, target, size_bytes)
        return 0
    images.break_lock(cluster, target)
    done = int(notes.get(cluster, target, DONE) or 0)
    say(
        f"{what} was interrupted: going on at {format_size(done)}"
        if done
        else f"{what} was interrupted: starting it again"
    )
    return done


def _wait_until_closed(cluster: Cluster, target: ImagePath, say: Say) -> None:
    give_up = time.monotonic() + CLIENT_EXPIRY_S
    told = False
    while users := images.users(cluster, target):
        if time.monotonic() > give_up:
            raise Refused(
                f"the import is running already, on {', '.join(users)}. "
                "Wait for it, or stop it and run this again."
            )
        if not told:
            say("waiting for Ceph to forget the interrupted one, up to 30 s")
            told = True
        time.sleep(0.5)
