"""Files that images are exported to: written beside their name, noted, and named when complete.

For `disk.raw` these are `.disk.raw.virtkit-part`, and `.disk.raw.virtkit-note`, which says how
much of the part is surely on the disk. Nothing is ever seen under the final name but the whole.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from storvirt import exports
from storvirt.backends import activity, blocks
from storvirt.backends.blocks import Extent
from storvirt.backends.importer import percentages
from storvirt.exports import ExportFormat, Note
from tenancy.errors import BackendUnavailable, InvalidRequest, Refused, VerificationFailed
from tenancy.names import rough_size

# What may have to be written again after a crash.
NOTE_EVERY_BYTES = 256 << 20
# Room that an export leaves on the disk.
SPARE_BYTES = 16 << 20

Progress = Callable[[int, int], None]


def resolved(target: Path) -> Path:
    """The file's own place. Raises InvalidRequest if nothing can be written there."""
    if target.is_dir():
        raise InvalidRequest(f"{target} is a directory. Name a file in it.")
    directory = target.absolute().parent
    if not directory.is_dir():
        raise InvalidRequest(f"directory {directory} does not exist. Create it, or choose another.")
    if not os.access(directory, os.W_OK):
        raise InvalidRequest(f"directory {directory} cannot be written. Choose another.")
    return directory.resolve() / target.name


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.virtkit-part")


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keep other exports to the same file away. Raises Refused."""
    path = target.with_name(f".{target.name}.virtkit-lock")
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that ended just now has taken the file away, and a third may hold a new one.
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise BlockingIOError
        except OSError as error:
            raise Refused(
                f"another export to {target} is running. Wait for it, or choose another file."
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("wb")
    except OSError as error:
        raise InvalidRequest(
            f"directory {path.parent} cannot be written ({error.strerror}). Choose another."
        ) from error


def read_note(target: Path) -> Note | None:
    """The note of an interrupted export, if there is one that can be read."""
    try:
        return exports.decode(_note_path(target).read_bytes())
    except OSError:
        return None


def write_note(target: Path, note: Note) -> None:
    """Replace the note; it is on the disk when this returns."""
    path = _note_path(target)
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(exports.encode(note))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(path)


def forget(target: Path) -> None:
    """Remove what an export left beside its file."""
    for path in (part_of(target), _second_part(target), _note_path(target)):
        path.unlink(missing_ok=True)


def refuse_full(target: Path, needed_bytes: int) -> None:
    """Refuse before writing what the disk has no room for."""
    part = part_of(target)
    have = part.stat().st_blocks * 512 if part.exists() else 0
    free = shutil.disk_usage(target.parent).free
    if needed_bytes - have + SPARE_BYTES > free:
        raise Refused(
            f"{target.parent} has {rough_size(free)} free, and the export takes up to "
            f"{rough_size(max(0, needed_bytes - have))} more. Make room, or choose another place."
        )


def write_raw(
    target: Path,
    note: Note,
    parts: Callable[[int], Iterable[tuple[Extent, bytes | None]]],
    progress: Progress,
) -> str:
    """Write the part from where `note` says, and return the SHA-256 of the whole content.

    `parts(start)` gives the image's content from `start` on without gaps. What is there already
    is read again for the digest, so that it counts as it is on the disk.
    """
    descriptor = os.open(part_of(target), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        # What lies beyond the note may be half written.
        os.ftruncate(descriptor, note.done)
        os.ftruncate(descriptor, note.size_bytes)
        digest = hashlib.sha256()
        for at in range(0, note.done, blocks.BLOCK_BYTES):
            digest.update(os.pread(descriptor, min(blocks.BLOCK_BYTES, note.done - at), at))
            activity.progressed()
        noted = note.done
        with _explained(target):
            for part, data in parts(note.done):
                if data is None:
                    digest.update(blocks.zeros(part.length))
                else:
                    digest.update(data)
                    for first, last in exports.data_runs(data):
                        _write_all(descriptor, data[first:last], part.offset + first)
                progress(part.end, note.size_bytes)
                if part.end - noted >= NOTE_EVERY_BYTES:
                    os.fsync(descriptor)
                    noted = part.end
                    write_note(target, msgspec.structs.replace(note, done=noted))
            os.fsync(descriptor)
        file.flush()
    return digest.hexdigest()


def to_qcow2(target: Path, *, compress: bool) -> None:
    """Make the qcow2 part from the raw one, and compare the two."""
    raw, made = part_of(target), _second_part(target)
    made.unlink(missing_ok=True)
    options = ["-c"] if compress else []
    done = _qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, str(raw), str(made))
    if done.returncode:
        made.unlink(missing_ok=True)
        raise BackendUnavailable(
            f"{target} could not be written as qcow2 ({_last_line(done.stderr)}). "
            "Look at its disk, and run the same command again."
        )
    if _qemu_img("compare", "-f", "raw", "-F", "qcow2", str(raw), str(made)).returncode:
        made.unlink(missing_ok=True)
        raise VerificationFailed(
            f"{target} would not hold what the image does. Look at its disk, and run the same "
            "command again."
        )
    made.chmod(0o600)
    with made.open("rb") as file:
        os.fsync(file.fileno())


def publish(target: Path, format: ExportFormat, *, force: bool) -> None:
    """Give the finished part its name. Raises Refused if somebody took it meanwhile."""
    part = _finished(target, format)
    if force:
        part.rename(target)
    else:
        try:
            # Both names stay until the note says so: that is how a second run knows.
            os.link(part, target)
        except FileExistsError as error:
            raise taken(target) from error
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def is_published(target: Path, format: ExportFormat) -> bool:
    """Whether `publish` came to its end and nobody could note it."""
    part = _finished(target, format)
    return part.exists() and target.exists() and part.samefile(target)


def taken(target: Path) -> Refused:
    return Refused(f"{target} exists. Choose another file, or overwrite it: --force.")


def _finished(target: Path, format: ExportFormat) -> Path:
    return _second_part(target) if format is ExportFormat.QCOW2 else part_of(target)


def _note_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.virtkit-note")


def _second_part(target: Path) -> Path:
    return target.with_name(f".{target.name}.virtkit-qcow2")


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(
            f"{target} could not be written ({error.strerror}). Make room or repair its disk, and "
            "run the same command: it goes on where it stopped."
        ) from error


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _qemu_img(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run qemu-img to its end; that it gets on begins the deadline anew."""
    try:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "qemu-img", verb, "-p", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "qemu-img is not installed. Install it: apt-get install qemu-utils."
        ) from error
    with process:
        assert process.stdout is not None and process.stderr is not None
        most = 0.0
        for percent in percentages(process.stdout.fileno()):
            if percent > most:
                most = percent
                activity.progressed()
        complaint = process.stderr.read().decode(errors="replace")
    return subprocess.CompletedProcess([], process.returncode, "", complaint)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].removeprefix("qemu-img: ").rstrip(".") if lines else "no reason given"
