"""What of the file system a host has for itself, and what it shares with the machine.

Programs come from the machine. Everything that a daemon keeps at a default path is the host's
own: `/run` is empty at first, `/etc`, `/opt` and `/var` start as the machine's and change
privately (overlays), and the directories in `ON_DISK` are bound from the lab's disk directory,
because they grow large or because overlay snapshots can't be stacked on an overlay. `/tmp` and
the rest are the machine's, which is how files get in and out.
"""

import errno
import os
from pathlib import Path

from lab.linux import Mount, Namespace, enter, mount

ON_DISK = ("ceph", "containerd", "containers", "libvirt")
"""Directories of /var/lib that live in the lab's disk directory."""

EMPTY = (
    "/etc/ceph",
    "/etc/cni",
    "/etc/openvswitch",
    "/etc/virtkit",
    "/opt/cni",
    "/var/lib/cni",
    "/var/lib/openvswitch",
    "/var/lib/virtkit",
    "/var/log/ceph",
    "/var/log/libvirt",
    "/var/log/openvswitch",
    "/var/log/virtkit",
)
"""Directories that start empty, whatever the machine itself keeps there."""

_RUN_DIRECTORIES = ("ceph", "libvirt", "lock", "netns", "openvswitch", "virtkit", "virtlab")


def build(hostname: str, disk: Path) -> None:
    """Mount the file system of a host in the calling process's new mount namespace."""
    _refuse_chroot()
    mount("none", "/", flags=Mount.RECURSIVE | Mount.PRIVATE)
    on_disk = _open_disk(disk)
    try:
        # The upper layers lie in a tmpfs which the overlays keep alive after it is covered.
        mount("virtlab", "/run", "tmpfs", options="mode=755")
        for name in ("etc", "opt", "var"):
            _overlay(f"/{name}", Path("/run/.layers") / name)
        for name, descriptor in on_disk.items():
            own = Path("/var/lib") / name
            own.mkdir(parents=True, exist_ok=True)
            mount(f"/proc/self/fd/{descriptor}", str(own), flags=Mount.BIND)
    finally:
        for descriptor in on_disk.values():
            os.close(descriptor)
    for directory in EMPTY:
        Path(directory).mkdir(parents=True, exist_ok=True)
        mount("virtlab", directory, "tmpfs", options="mode=755")
    for name in _RUN_DIRECTORIES:
        (Path("/run") / name).mkdir()
    _write("/etc/hostname", f"{hostname}\n")
    # No name server: none is reachable, and each lookup would take its time to find out.
    _write("/etc/resolv.conf", "")
    _mount_kernel_views()


def _refuse_chroot() -> None:
    # Who enters a mount namespace arrives at its root, which in a chroot is another directory.
    here = os.stat("/")  # noqa: PTH116
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(own, Namespace.MOUNT)
    finally:
        os.close(own)
    if not os.path.samestat(here, os.stat("/")):  # noqa: PTH116
        raise OSError(errno.EINVAL, "this is a chroot; use pivot_root(8) instead")


def _write(file: str, text: str) -> None:
    # It may be a symbolic link to somewhere else.
    Path(file).unlink(missing_ok=True)
    Path(file).write_text(text)


def _open_disk(disk: Path) -> dict[str, int]:
    # Opened before /var is covered, which may hide the disk directory.
    opened = {}
    for name in ON_DISK:
        (disk / name).mkdir(parents=True, exist_ok=True)
        opened[name] = os.open(disk / name, os.O_PATH | os.O_CLOEXEC)
    return opened


def _overlay(directory: str, layers: Path) -> None:
    upper, work = layers / "upper", layers / "work"
    for layer in (upper, work):
        layer.mkdir(parents=True)
    options = f"lowerdir={directory},upperdir={upper},workdir={work}"
    mount("virtlab", directory, "overlay", options=options)


def _mount_kernel_views() -> None:
    mount("proc", "/proc", "proc")
    # A sysfs shows the links of the network namespace it was mounted in. The new one would
    # cover the control groups, without which no container runtime starts.
    aside = Path("/run/.cgroup")
    aside.mkdir()
    has_groups = os.path.ismount("/sys/fs/cgroup")
    if has_groups:
        mount("/sys/fs/cgroup", str(aside), flags=Mount.MOVE)
    mount("sysfs", "/sys", "sysfs")
    if has_groups:
        mount(str(aside), "/sys/fs/cgroup", flags=Mount.MOVE)
    aside.rmdir()
