"""Images as block devices of this machine: by qemu-storage-daemon and a loop device, by the
kernel's client, or by rbd-nbd.

What is mapped has a directory in /run/virtkit/mapped, made before anything else and removed after
it, so that a killed command is finished or undone by the next one. Only the first way has been
run by virtkit's tests: the other two need kernel modules.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

from storvirt import mapping
from storvirt.backends import activity
from storvirt.backends.qmp import Qmp, QmpError
from storvirt.hypervisor import Connection, client_conf
from storvirt.mapping import Mapping, Method
from tenancy.errors import BackendUnavailable, Refused

DIRECTORY = Path("/run/virtkit/mapped")
DAEMON = "qemu-storage-daemon"
_RECORD = "mapping.json"
START_S = 30.0
# How long a daemon may write back what its image has not yet.
END_S = 60.0
# How long whoever looks at a new device, udev for one, is waited for.
CLOSE_S = 5.0
_POLL_S = 0.05


def lacking() -> dict[Method, str]:
    """What keeps each method from being used here; methods that are not named are possible."""
    found: dict[Method, str] = {}
    if not Path("/sys/bus/rbd").exists():
        found[Method.KERNEL] = "the kernel has no module rbd loaded"
    elif shutil.which("rbd") is None:
        found[Method.KERNEL] = "the program rbd is not installed (ceph-common)"
    if not Path("/sys/module/nbd").exists():
        found[Method.NBD] = "the kernel has no module nbd loaded"
    elif shutil.which("rbd-nbd") is None:
        found[Method.NBD] = "the program rbd-nbd is not installed"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        found[Method.FUSE] = "there is no /dev/fuse"
    elif not Path("/dev/loop-control").exists():
        found[Method.FUSE] = "the kernel has no loop devices"
    elif shutil.which(DAEMON) is None:
        found[Method.FUSE] = f"{DAEMON} is not installed (qemu-system-common)"
    return found


@contextmanager
def locked() -> Iterator[None]:
    """One mapping or unmapping at a time."""
    try:
        DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(DIRECTORY / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BackendUnavailable(
            f"{DIRECTORY} can't be written ({error.strerror}). Run as root."
        ) from error
    try:
        with activity.waiting_for("another svctl that maps an image"):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def mapped() -> dict[UUID, Mapping]:
    """What is a device here, by the image's id; what died without being unmapped is left out."""
    found = {}
    for path in sorted(DIRECTORY.glob(f"*/{_RECORD}")):
        record = _read(path)
        if record is not None and _is_alive(path.parent, record):
            found[UUID(path.parent.name)] = record
    return found


def map_image(connection: Connection, tenant: str, method: Method, *, read_only: bool) -> Mapping:
    """Make the image a device. Hold the lock, with nothing of the image mapped here."""
    place = _place(connection.image_id)
    clean(connection.image_id)
    place.mkdir(mode=0o700)
    _write(place / mapping.KEY, connection.secret)
    if method is Method.FUSE:
        device = _map_by_file(connection, place, read_only=read_only)
    else:
        device = _map_by_rbd(connection, place, method, read_only=read_only)
    record = Mapping(
        tenant=tenant,
        name=connection.path.name,
        method=method,
        device=device,
        read_only=read_only,
    )
    draft = place / f".{_RECORD}"
    draft.write_text(json.dumps(asdict(record)))
    draft.rename(place / _RECORD)
    return record


def unmap(image_id: UUID, record: Mapping) -> None:
    """Take the device away once everything written to it is in the cluster.

    Raises Refused while it is mounted or open.
    """
    _refuse_used(record)
    clean(image_id, record)


def clean(image_id: UUID, record: Mapping | None = None) -> None:
    """Take away all that there is of a mapping, complete or not; quiet if there is nothing."""
    place = _place(image_id)
    if not place.exists():
        return
    record = record or _read(place / _RECORD)
    if record is not None and record.method is not Method.FUSE:
        kind = "krbd" if record.method is Method.KERNEL else "nbd"
        _run("rbd", "device", "unmap", "--device-type", kind, record.device, check=False)
    for device in _loops(place / mapping.DISK):
        _run("losetup", "--detach", device)
    _until_gone(place / mapping.DISK)
    _end_daemon(place)
    # A daemon that was killed leaves a mount behind that nobody answers.
    _run("umount", "--lazy", str(place / mapping.DISK), check=False)
    shutil.rmtree(place)


def _map_by_file(connection: Connection, place: Path, *, read_only: bool) -> str:
    disk = place / mapping.DISK
    disk.touch(mode=0o600)
    arguments = mapping.daemon_arguments(connection, str(place), read_only=read_only)
    try:
        _run(DAEMON, *arguments)
        options = ["--find", "--show", "--direct-io=on", *(["--read-only"] if read_only else [])]
        return _run("losetup", *options, str(disk)).strip()
    except BackendUnavailable:
        clean(connection.image_id)
        raise


def _map_by_rbd(connection: Connection, place: Path, method: Method, *, read_only: bool) -> str:
    conf = place / mapping.CONF
    _write(conf, client_conf(connection, 30, 0))
    path = connection.path
    try:
        return _run(
            *("rbd", "--conf", str(conf), "--id", connection.user, "device", "map"),
            *("--device-type", "krbd" if method is Method.KERNEL else "nbd"),
            *(["--read-only"] if read_only else []),
            f"{path.pool}/{path.namespace}/{path.name}",
        ).strip()
    except BackendUnavailable:
        clean(connection.image_id)
        raise


def _refuse_used(record: Mapping) -> None:
    """The kernel lets nobody have a device to itself that is mounted or held by another."""
    try:
        descriptor = os.open(record.device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Refused(
                f"image {record.name} is in use as {record.device}. Unmount it first; see "
                f"`lsblk {record.device}`."
            ) from error
        return
    try:
        # What another loop device stands on is nobody's own in the kernel's eyes.
        if above := _loops(Path(record.device)):
            raise Refused(
                f"image {record.name} is in use: {', '.join(above)} stands on {record.device}. "
                f"Take that away first: losetup --detach {above[0]}."
            )
        os.fsync(descriptor)
    except OSError as error:
        raise BackendUnavailable(
            f"what was written to {record.device} can't be brought to image {record.name} "
            f"({error.strerror}). See whether Ceph answers: `ceph -s`."
        ) from error
    finally:
        os.close(descriptor)


def _is_alive(place: Path, record: Mapping) -> bool:
    if record.method is not Method.FUSE:
        return Path(record.device).exists()
    return _daemon_pid(place) is not None and record.device in _loops(place / mapping.DISK)


def _daemon_pid(place: Path) -> int | None:
    """The daemon of a mapping, if it runs."""
    try:
        pid = int((place / mapping.PID).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if str(place / mapping.CONTROL).encode() in command else None


def _end_daemon(place: Path) -> None:
    """Let the daemon write back what it has and end; one that does not answer is killed."""
    pid = _daemon_pid(place)
    if pid is None:
        return
    with (
        contextlib.suppress(BackendUnavailable, QmpError),
        Qmp.connect(place / mapping.CONTROL) as daemon,
    ):
        daemon("block-export-del", id=mapping.EXPORT, mode="hard")
        daemon("quit")
    deadline = time.monotonic() + END_S
    while _daemon_pid(place) is not None:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise BackendUnavailable(
                f"{DAEMON} ({pid}) did not end within {END_S:g} s and was killed; Ceph frees its "
                "image's lock after 30 s. Run the same command again."
            )
        time.sleep(_POLL_S)


def _loops(disk: Path) -> list[str]:
    """The loop devices that take the file for a disk."""
    listing = json.loads(_run("losetup", "--list", "--json") or '{"loopdevices": []}')
    return [
        str(one["name"])
        for one in listing["loopdevices"]
        if str(one["back-file"]).removesuffix(" (deleted)") == str(disk)
    ]


def _until_gone(disk: Path) -> None:
    """A loop device that is open somewhere goes when it is closed, and not before."""
    deadline = time.monotonic() + CLOSE_S
    while left := _loops(disk):
        if time.monotonic() > deadline:
            raise Refused(
                f"{', '.join(left)} is still open somewhere, and goes when it is closed. See "
                f"`lsof {left[0]}`, and run the same command again."
            )
        time.sleep(_POLL_S)


def _run(*argv: str, check: bool = True) -> str:
    try:
        with activity.waiting_for(argv[0]):
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=START_S, check=False
            )
    except FileNotFoundError as error:
        raise BackendUnavailable(f"the program {argv[0]} is not installed.") from error
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailable(
            f"{argv[0]} did not end within {START_S:g} s. See whether Ceph answers: `ceph -s`."
        ) from error
    if check and done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise BackendUnavailable(f"{argv[0]} failed: {lines[-1]}.")
    return done.stdout


def _place(image_id: UUID) -> Path:
    return DIRECTORY / str(image_id)


def _read(path: Path) -> Mapping | None:
    try:
        found = json.loads(path.read_text())
        return Mapping(**{**found, "method": Method(found["method"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
