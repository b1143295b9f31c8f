"""Reading disk image files with QEMU's own tools, and copying them into RBD.

`qemu-img` does the work: it knows every corner of qcow2, skips holes, and keeps many requests in
flight. It parses what a stranger made, so it gets no more than the *tenant's* key, handed over in
a file that exists only as a descriptor: nothing of it is on disk or in a process list. It is
told every format, never asked to guess, and it dies with its parent.
"""

import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from storvirt.backends import activity
from storvirt.formats.qcow2 import HEADER_BYTES
from storvirt.formats.sources import Source, SourceFormat, fingerprint, recognise
from storvirt.model import LUKS2, ImagePath, whole_sectors
from tenancy.errors import BackendUnavailable, InvalidRequest, NotFound, VerificationFailed

CHECK_TIMEOUT_S = 600
PARALLEL_REQUESTS = 16
_READ_BYTES = 4 << 20

_PERCENT = re.compile(rb"\(\s*([\d.]+)/100%\)")
# What qemu-img says when it is the file that cannot be read, and not the cluster written.
_READ_FAILURE = re.compile(r"error while reading|Could not open|Image is corrupt", re.IGNORECASE)


class SourceUnreadable(InvalidRequest):
    """The file cannot be imported: its owner must fetch or repair it."""


def inspect(path: Path, wanted: SourceFormat | None) -> Source:
    """What the file at `path` would become. Raises InvalidRequest; the file is only read."""
    try:
        # Not to wait for a writer, if it is a pipe.
        with open(path, "rb", opener=_without_waiting) as file:
            facts = os.fstat(file.fileno())
            _refuse_special(path, facts.st_mode)
            head = file.read(HEADER_BYTES)
            size = file.seek(0, os.SEEK_END)
            source = recognise(
                str(path.resolve()),
                head,
                size,
                fingerprint(size, facts.st_mtime_ns),
                wanted,
                lambda offset, length: _pread(file.fileno(), offset, length, size),
            )
    except FileNotFoundError as error:
        raise NotFound(
            f"file {path} does not exist on this machine. Check the path, or fetch it."
        ) from error
    except IsADirectoryError as error:
        raise InvalidRequest(f"{path} is a directory. Name the file in it.") from error
    except OSError as error:
        raise InvalidRequest(
            f"file {path} cannot be read: {error.strerror}. Check it and its permissions."
        ) from error
    if source.format is not SourceFormat.RAW:
        _check_container(source, size)
    return source


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
            activity.progressed()
    return digest.hexdigest()


def copy(
    source: Source,
    start: int,
    length: int,
    target: ImagePath,
    conf: str,
    user: str,
    passphrase_file: Path | None = None,
) -> Iterator[int]:
    """Copy `length` bytes at `start` of the source's disk to the same place in `target`.

    Iterate to let it happen; each item is how many bytes are done. The target must read as zeros
    where the source does: holes are skipped. `conf` is the text of a Ceph configuration with the
    key of `user` in it. An encrypted target is opened with what `passphrase_file` holds.

    Raises SourceUnreadable, or BackendUnavailable if the cluster is at fault.
    """
    with _as_file(conf) as conf_path:
        command = [
            *_bound_to_parent("qemu-img"),
            "convert",
            *("-p", "-n", "--target-is-zero", "-W", "-m", str(PARALLEL_REQUESTS)),
            # No cache: a write that QEMU calls done is on the OSDs, and its error is seen.
            *("-t", "none"),
            *_secret(passphrase_file),
            _slice(_open_source(source), start, length),
            _slice(_open_target(target, conf_path, user, passphrase_file), start, length),
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[int(Path(conf_path).name)],
        )
        with process:
            try:
                assert process.stdout is not None and process.stderr is not None
                for percent in percentages(process.stdout.fileno()):
                    yield int(length * percent / 100)
                complaint = process.stderr.read().decode(errors="replace").strip()
            except BaseException:
                process.kill()
                raise
    if process.returncode:
        _fail(source, target, complaint)


def compare(
    source: Source,
    target: ImagePath,
    conf: str,
    user: str,
    passphrase_file: Path | None = None,
) -> None:
    """Read both and raise VerificationFailed unless they hold the same bytes."""
    with _as_file(conf) as conf_path:
        command = [
            *_bound_to_parent("qemu-img"),
            "compare",
            *_secret(passphrase_file),
            _json(_open_source(source)),
            _json(_open_target(target, conf_path, user, passphrase_file)),
        ]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            pass_fds=[int(Path(conf_path).name)],
            check=False,
        )
    if done.returncode == 1:
        raise VerificationFailed(
            f"image {target} differs from {source.path}: {done.stdout.strip()} "
            "Delete it and import again."
        )
    if done.returncode:
        _fail(source, target, done.stderr.strip())


def _check_container(source: Source, file_bytes: int) -> None:
    """Refuse a file whose tables are damaged or point beyond its end, or that QEMU sees otherwise.

    Its own header has passed our parser. What QEMU makes of it must be the same disk.
    """
    what = f"{source.path} is a damaged"
    info = _run("info", "--output=json", _json(_open_source(source)))
    if info.returncode:
        raise SourceUnreadable(
            f"{what} {source.format} image ({_first_line(info.stderr)}). Fetch it again."
        )
    found = json.loads(info.stdout)["virtual-size"]
    if whole_sectors(found) != source.size_bytes:
        raise SourceUnreadable(
            f"{what} {source.format} image: its header says {source.size_bytes} bytes, and its "
            f"tables {found}. Fetch it again."
        )
    check = _run("check", "--output=json", _json(_open_source(source)))
    # 3 is leaked clusters: wasted space, nothing missing. 63: this format has no check.
    if check.returncode not in (0, 3, 63):
        reason = _first_line(check.stderr) or "its tables contradict each other"
        raise SourceUnreadable(
            f"{what} or truncated {source.format} image ({reason}). Fetch it again."
        )
    # `check` allows the last cluster to be incomplete; `map` says where data really ends.
    extents = _run("map", "--output=json", _json(_open_source(source)))
    if extents.returncode:
        raise SourceUnreadable(
            f"{what} {source.format} image ({_first_line(extents.stderr)}). Fetch it again."
        )
    end = max(
        (one["offset"] + one["length"] for one in json.loads(extents.stdout) if "offset" in one),
        default=0,
    )
    if end > file_bytes:
        raise SourceUnreadable(
            f"{source.path} is cut short: it has {file_bytes} bytes and its data reaches to "
            f"{end}. Fetch it again."
        )


def _pread(descriptor: int, offset: int, length: int, file_bytes: int) -> bytes:
    # An offset out of a stranger's header may be more than a file can have.
    return os.pread(descriptor, length, offset) if offset < file_bytes else b""


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _refuse_special(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InvalidRequest(
            f"{path} is not a regular file. Copy what it gives to one, and import that."
        )


def _open_source(source: Source) -> Mapping[str, object]:
    file = {"driver": "file", "filename": source.path, "read-only": True}
    node = {"driver": str(source.format), "file": file, "read-only": True}
    if source.format in (SourceFormat.QCOW2, SourceFormat.VMDK):
        # Never what a backing file's name in the header says.
        return node | {"backing": None}
    if source.format is SourceFormat.VPC:
        # The size that the footer states, not one guessed from a geometry of cylinders.
        return node | {"force_size_calc": "current_size"}
    return node


def _secret(passphrase_file: Path | None) -> list[str]:
    # QEMU reads the file; nothing of it is in the process list.
    if passphrase_file is None:
        return []
    secret = {"qom-type": "secret", "id": "luks", "format": "raw", "file": str(passphrase_file)}
    return ["--object", json.dumps(secret)]


def _open_target(
    target: ImagePath, conf_path: str, user: str, passphrase_file: Path | None
) -> Mapping[str, object]:
    encrypted = {"encrypt": {"format": LUKS2, "key-secret": "luks"}} if passphrase_file else {}
    return {
        **encrypted,
        "driver": "rbd",
        "pool": target.pool,
        "namespace": target.namespace,
        "image": target.name,
        "conf": conf_path,
        "user": user,
    }


def _slice(node: Mapping[str, object], start: int, length: int) -> str:
    return _json({"driver": "raw", "offset": start, "size": length, "file": node})


def _json(node: Mapping[str, object]) -> str:
    return "json:" + json.dumps(node)


def _bound_to_parent(program: str) -> list[str]:
    return ["setpriv", "--pdeathsig", "KILL", program]


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    """The path of a file with this text that no directory holds; for a child that inherits it."""
    descriptor = os.memfd_create("ceph.conf", 0)
    try:
        os.write(descriptor, text.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def percentages(descriptor: int) -> Iterator[float]:
    """How far a qemu-img with -p is, as it says so, until it closes its output."""
    # qemu-img writes its progress as `    (12.34/100%)\r`, without line ends.
    while chunk := os.read(descriptor, 4096):
        found = _PERCENT.findall(chunk)
        if found:
            yield float(found[-1])


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [*_bound_to_parent("qemu-img"), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "qemu-img is not installed. Install it: apt-get install qemu-utils qemu-block-extra."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SourceUnreadable(
            f"qemu-img {arguments[0]} took longer than {CHECK_TIMEOUT_S} s; "
            "the file is damaged, or its disk is very slow."
        ) from error


def _fail(source: Source, target: ImagePath, complaint: str) -> None:
    reason = _first_line(complaint)
    if _READ_FAILURE.search(reason) and "rbd" not in reason:
        raise SourceUnreadable(
            f"{source.path} cannot be read to its end ({reason}). Fetch or repair it."
        )
    raise BackendUnavailable(
        f"image {target} could not be written ({reason}). When Ceph is well again, run the same "
        "command: it goes on where it stopped."
    )


def _first_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    # The node is a long JSON text that starts the line; the reason is at its end.
    return lines[0].rpartition("}': ")[2].removeprefix("qemu-img: ").rstrip(".") if lines else ""
