"""The guest that demo, tests and benchmarks boot: Debian's cloud kernel and a busybox disk.

`build()` returns the four files of a guest and makes them when they are missing: a kernel, an
initramfs that loads the virtio modules and goes to the disk, and the disk itself, raw and
qcow2. What runs inside is under `guest_files/`. Nothing is installed, mounted or run as the
guest; the kernel package is only downloaded and unpacked. How a guest is run is lab/vm.py.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tenancy.errors import BackendUnavailable

CACHE = Path(__file__).resolve().parents[1] / "build" / "guest"
FILES = Path(__file__).resolve().parent / "guest_files"
BUSYBOX = Path("/bin/busybox")
KERNEL_PACKAGE = "linux-image-cloud-amd64"
# Drivers the initramfs loads; ext4 is built into Debian's kernel. What they need is read from
# the modules themselves.
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console")
DISK_MIB = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """The files of a built guest. `raw` and `qcow2` hold the same disk: copy before writing."""

    version: str
    kernel: Path
    initramfs: Path
    raw: Path
    qcow2: Path


def build(cache: Path = CACHE) -> Guest:
    """A complete guest under `cache`, built only if this version of it is not there yet.

    Safe against being killed and against a second builder: everything is made in a temporary
    directory and renamed when it is complete. Raises BackendUnavailable when the kernel package
    cannot be had or a tool is missing.
    """
    cache.mkdir(parents=True, exist_ok=True)
    with _only_one(cache / ".lock"):
        kernel = _kernel(cache)
        version = _version(kernel)
        guest = cache / f"guest-{version}"
        if not guest.is_dir():
            with _made_whole(guest) as unfinished:
                _pack_initramfs(kernel, unfinished)
                _make_disk(unfinished)
    return Guest(
        version=version,
        kernel=kernel / "vmlinuz",
        initramfs=guest / "initramfs.cpio",
        raw=guest / "root.raw",
        qcow2=guest / "root.qcow2",
    )


def load_order(wanted: Sequence[str], needs: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """`wanted` and all they need, each after what it needs. `needs` has no cycles."""
    order: dict[str, None] = {}

    def visit(module: str) -> None:
        for needed in needs[module]:
            visit(needed)
        order.setdefault(module)

    for module in wanted:
        visit(module)
    return tuple(order)


def needs_of(module: bytes) -> tuple[str, ...]:
    """Modules that a .ko file says it needs. See MODULE_INFO(depends) in linux/module.h."""
    found = re.search(rb"(?:^|\0)depends=([^\0]*)\0", module)
    return tuple(name for name in found[1].decode().split(",") if name) if found else ()


def kernel_package(depends: str) -> str | None:
    """The package with the kernel itself, out of `apt-cache depends` of the meta package."""
    found = re.search(r"Depends: (linux-image-[0-9]\S*-cloud-amd64)$", depends, re.MULTILINE)
    return found[1] if found else None


def _kernel(cache: Path) -> Path:
    """A directory with `vmlinuz` and `modules/`. The kernel that is there stays in use."""
    selection = hashlib.sha256(" ".join(MODULES).encode()).hexdigest()[:6]
    there = sorted(cache.glob(f"kernel-*.{selection}"))
    if there:
        return there[-1]
    package = kernel_package(_run(["apt-cache", "depends", KERNEL_PACKAGE]))
    if package is None:
        _refresh_package_lists()
        package = kernel_package(_run(["apt-cache", "depends", KERNEL_PACKAGE]))
    if package is None:
        raise BackendUnavailable(
            f"guest kernel: apt does not know {KERNEL_PACKAGE}. Enable Debian's main archive in "
            "/etc/apt and run: apt-get update"
        )
    kernel = cache / f"{package.replace('linux-image', 'kernel')}.{selection}"
    with _made_whole(kernel) as unfinished:
        _unpack_kernel(_download(package, unfinished), unfinished)
    return kernel


def _download(package: str, into: Path) -> Path:
    # apt drops to a user of its own that cannot write here, and warns when it does not.
    command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package]
    try:
        _run(command, cwd=into)
    except BackendUnavailable:
        _refresh_package_lists()
        _run(command, cwd=into)
    return next(into.glob("*.deb"))


def _refresh_package_lists() -> None:
    """Lists that are missing or too old are the usual reason why a download fails."""
    if os.geteuid() == 0:
        _run(["apt-get", "update", "-qq"])


def _unpack_kernel(package: Path, into: Path) -> None:
    """Leave of `package` the kernel and the modules that the guest loads."""
    unpacked = into / "unpacked"
    _run(["dpkg", "-x", str(package), str(unpacked)])
    shutil.move(next(unpacked.glob("boot/vmlinuz-*")), into / "vmlinuz")
    found = {path.stem: path for path in unpacked.glob("lib/modules/*/kernel/**/*.ko")}
    needs = {name: needs_of(path.read_bytes()) for name, path in found.items()}
    modules = into / "modules"
    modules.mkdir()
    order = load_order(MODULES, needs)
    for name in order:
        shutil.move(found[name], modules)
    (modules / "order").write_text("".join(f"{name}\n" for name in order))
    shutil.rmtree(unpacked)
    package.unlink()


def _version(kernel: Path) -> str:
    """A short digest of all that goes into the guest: kernel, busybox, files, disk size."""
    digest = hashlib.sha256(f"{kernel.name} {DISK_MIB}".encode())
    for path in (BUSYBOX, *sorted(path for path in FILES.rglob("*") if path.is_file())):
        digest.update(f"{path.name} {path.stat().st_mode & 0o111:o}".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _pack_initramfs(kernel: Path, into: Path) -> None:
    tree = into / "initramfs"
    shutil.copytree(FILES / "initramfs", tree)
    _add_busybox(tree)
    shutil.copytree(kernel / "modules", tree / "modules")
    for name in ("dev", "proc", "root"):
        (tree / name).mkdir()
    names = "".join(f"./{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*")))
    archive = subprocess.run(
        [BUSYBOX, "cpio", "-o", "-H", "newc", "-R", "0:0"],
        input=names.encode(),
        capture_output=True,
        check=True,
        cwd=tree,
    )
    (into / "initramfs.cpio").write_bytes(archive.stdout)
    shutil.rmtree(tree)


def _make_disk(into: Path) -> None:
    tree = into / "root"
    shutil.copytree(FILES / "root", tree)
    _add_busybox(tree)
    for name in ("dev", "proc", "root", "run", "sys", "tmp"):
        (tree / name).mkdir()
    raw, qcow2 = str(into / "root.raw"), str(into / "root.qcow2")
    # Inode tables are written now, not later by the running guest: a fresh disk stays quiet.
    options = "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    make = ("mke2fs", "-q", "-F", "-t", "ext4", "-L", "virtkit", "-E", options)
    _run([*make, "-d", str(tree), raw, f"{DISK_MIB}M"])
    _run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2])
    shutil.rmtree(tree)


def _add_busybox(tree: Path) -> None:
    """/bin/busybox and a link to it for every program it has, /sbin/init among them."""
    programs = tree / "bin"
    programs.mkdir()
    (tree / "sbin").mkdir(exist_ok=True)
    shutil.copy(BUSYBOX, programs / "busybox")
    for name in _run([str(BUSYBOX), "--list"]).split():
        if name != "busybox":
            (programs / name).symlink_to("busybox")
    (tree / "sbin" / "init").symlink_to("/bin/busybox")


@contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """A directory beside `target` that takes its place when the body has ended well."""
    for left_by_a_killed_run in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left_by_a_killed_run)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        unfinished.chmod(0o755)
        yield unfinished
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(argv: Sequence[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise BackendUnavailable(f"guest: {argv[0]} is not installed. Run: make install") from error
    except subprocess.CalledProcessError as error:
        raise BackendUnavailable(
            f"guest: `{' '.join(argv)}` failed: {error.stderr.strip()[-500:]}"
        ) from error
    return done.stdout
