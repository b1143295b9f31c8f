"""Booting an image once to see what it reads: a guest without network, screen or a trace.

QEMU reads the image's snapshot with the tenant's key and can't write to it: what the guest writes
goes to a file that no directory holds, so it is gone when QEMU ends, however it ends. Each read
that reaches the image is told by QEMU's own trace events, in order, before librbd merges or
caches anything. Reads of what the guest itself has written don't reach it.
"""

import json
import os
import re
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from storvirt.backends import activity
from storvirt.model import ImagePath
from storvirt.placement.heat import Read
from tenancy.errors import BackendUnavailable, InvalidRequest

PROGRAM = "qemu-system-x86_64"
TOOL_TIMEOUT_S = 60
# The guest's writes are kept in pieces this small, so that a write seldom reads the rest of its
# piece from the image: a clone in Ceph would not show that as a read of the guest.
_CLUSTER_BYTES = 4096
_BASE = "image"
# An emulated guest that waits takes less than this share of a processor.
_IDLE = 0.1
_LOOK_AGAIN_S = 0.5
_REPORT_S = 5.0

_OPENED = re.compile(rb"bdrv_open_common bs (0x[0-9a-f]+) .*format_name \"?rbd\"?")
_READ = re.compile(
    rb"bdrv_co_preadv_part bs (0x[0-9a-f]+) offset (?:0x)?([0-9a-f]+) bytes (?:0x)?([0-9a-f]+) "
)


class Ended(StrEnum):
    """Why a recording came to its end."""

    QUIET = "the guest read nothing more"
    POWERED_OFF = "the guest ended"
    TIMEOUT = "the time was over"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootRequest:
    """How to boot. Without a kernel, the firmware boots what is on the disk.

    Recording ends when nothing was read for `quiet_s`, or after `timeout_s`.
    """

    kernel: Path | None
    initrd: Path | None
    append: str
    memory_mib: int
    timeout_s: float
    quiet_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a boot read, in order, in bytes of the image."""

    reads: tuple[Read, ...]
    ended: Ended


def boot(
    path: ImagePath,
    snapshot: str | None,
    size_bytes: int,
    conf: str,
    user: str,
    request: BootRequest,
    progress: Callable[[int], None],
) -> Recording:
    """Boot from the image and return its reads; tells `progress` how many there are so far.

    `conf` is the text of a Ceph configuration with the key of `user` in it. Raises
    BackendUnavailable if QEMU can't run or the image can't be opened.
    """
    with ExitStack() as stack:
        conf_file = stack.enter_context(_in_memory(conf))
        overlay = stack.enter_context(tempfile.TemporaryFile(prefix="virtkit-heat-"))
        _make_overlay(overlay, size_bytes)
        command = _command(path, snapshot, conf_file, overlay.fileno(), user, request)
        process = stack.enter_context(_running(command, [conf_file, overlay.fileno()]))
        return _follow(process, path, request, progress)


def _command(
    path: ImagePath,
    snapshot: str | None,
    conf_file: int,
    overlay: int,
    user: str,
    request: BootRequest,
) -> list[str]:
    base: dict[str, object] = {
        "driver": "rbd",
        "node-name": _BASE,
        "read-only": True,
        "pool": path.pool,
        "namespace": path.namespace,
        "image": path.name,
        "conf": f"/proc/self/fd/{conf_file}",
        "user": user,
    }
    if snapshot is not None:
        base["snapshot"] = snapshot
    root = {
        "driver": "qcow2",
        "node-name": "root",
        "backing": _BASE,
        "file": {"driver": "file", "filename": f"/proc/self/fd/{overlay}", "locking": "off"},
    }
    command = [
        *("setpriv", "--pdeathsig", "KILL", PROGRAM),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"),
        *("-machine", "q35,usb=off,smm=off", "-accel", "tcg,tb-size=64", "-cpu", "qemu64"),
        *("-smp", "1", "-m", str(request.memory_mib)),
        *("-trace", "bdrv_open_common", "-trace", "bdrv_co_preadv_part"),
        *("-blockdev", json.dumps(base), "-blockdev", json.dumps(root)),
        *("-device", "virtio-blk-pci,drive=root"),
    ]
    if request.kernel is not None:
        command += ["-kernel", str(request.kernel)]
        command += ["-initrd", str(request.initrd)] if request.initrd else []
        command += ["-append", request.append] if request.append else []
    return command


def _follow(
    process: "subprocess.Popen[bytes]",
    path: ImagePath,
    request: BootRequest,
    progress: Callable[[int], None],
) -> Recording:
    assert process.stderr is not None
    reads: list[Read] = []
    nodes: set[bytes] = set()
    complaint = b""
    patience = _Patience(process, request)
    ended = Ended.POWERED_OFF
    for line in _lines(process.stderr, patience):
        if line is None:
            ended = Ended.TIMEOUT if patience.is_over else Ended.QUIET
            break
        if found := _READ.search(line):
            if found[1] in nodes:
                reads.append(Read(_number(found[2], line), _number(found[3], line)))
                patience.renew()
                progress(len(reads))
        elif found := _OPENED.search(line):
            nodes.add(found[1])
        elif not line.startswith(b"bdrv_"):
            complaint = line
    if not reads:
        if ended is Ended.POWERED_OFF:
            reason = complaint.decode(errors="replace").strip() or "no reason given"
            raise BackendUnavailable(
                f"image {path}: QEMU could not boot it: {reason.rpartition(': ')[2].rstrip('.')}."
            )
        raise InvalidRequest(
            f"image {path}: a guest that boots from it reads nothing within "
            f"{request.timeout_s:g} s. Give it time (--timeout), or a kernel (--kernel)."
        )
    return Recording(reads=tuple(reads), ended=ended)


class _Patience:
    """Until when the next read is waited for: to the end of all, or of the quiet after one.

    Quiet is a guest that idles for that long, or computes for that long: its own time counts, not
    that of a machine too busy to run it.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", request: BootRequest) -> None:
        self._process = process
        self._quiet_s = request.quiet_s
        self._give_up = time.monotonic() + request.timeout_s
        self._last_read: float | None = None
        self._computed_s = 0.0

    def renew(self) -> None:
        self._last_read = time.monotonic()
        self._computed_s = self._processor_s()

    @property
    def left_s(self) -> float:
        """How long to wait before looking again; 0 when patience has ended."""
        now = time.monotonic()
        if now >= self._give_up:
            return 0.0
        if self._last_read is None:
            return self._give_up - now
        quiet_s = now - self._last_read
        if quiet_s < self._quiet_s:
            return min(self._give_up - now, self._quiet_s - quiet_s)
        computed_s = self._processor_s() - self._computed_s
        if computed_s < _IDLE * quiet_s or computed_s >= self._quiet_s:
            return 0.0
        return min(self._give_up - now, _LOOK_AGAIN_S)

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._give_up

    def _processor_s(self) -> float:
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except FileNotFoundError:
            return self._computed_s
        # The fields after the command's name, which may hold anything; see proc(5).
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _number(text: bytes, line: bytes) -> int:
    return int(text, 16 if b" offset 0x" in line else 10)


def _lines(stream: IO[bytes], patience: _Patience) -> Iterator[bytes | None]:
    """Lines as they come; None once, at the end, if patience ends first."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            # The wait has a bound of its own, which may be longer than the command's deadline.
            activity.progressed()
            left_s = patience.left_s
            if left_s <= 0 or not selector.select(min(left_s, _REPORT_S)):
                if patience.left_s > 0:
                    continue
                yield None
                return
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines


@contextmanager
def _running(
    command: Sequence[str], inherited: Sequence[int]
) -> Iterator["subprocess.Popen[bytes]"]:
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
        )
    except FileNotFoundError as error:
        raise BackendUnavailable(
            f"{error.filename} is not installed. Install it: apt-get install util-linux."
        ) from error
    with process:
        try:
            yield process
        finally:
            process.kill()


def _make_overlay(overlay: IO[bytes], size_bytes: int) -> None:
    file = f"/proc/self/fd/{overlay.fileno()}"
    options = f"cluster_size={_CLUSTER_BYTES}"
    try:
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, file, str(size_bytes)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            pass_fds=[overlay.fileno()],
            timeout=TOOL_TIMEOUT_S,
            check=True,
        )
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "qemu-img is not installed. Install it: apt-get install qemu-utils."
        ) from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailable(
            f"qemu-img could not make a file for the guest's writes ({error}). Check the space in "
            f"{tempfile.gettempdir()}."
        ) from error


@contextmanager
def _in_memory(text: str) -> Iterator[int]:
    descriptor = os.memfd_create("ceph.conf", 0)
    try:
        os.write(descriptor, text.encode())
        yield descriptor
    finally:
        os.close(descriptor)
