"""A place in the machine's control groups for each host, so that a lab leaves none behind.

Container runtimes and libvirt make control groups below the root that they see. In a host that
root is a group of the lab's own, `/virtkit-lab/LAB/HOST` in every hierarchy (version 1, 2, or
both). Groups outlive their processes, unlike all else in a host, so they are removed by name.
"""

import contextlib
import errno
import os
from functools import partial
from pathlib import Path

from lab import waiting
from lab.linux import Mount, mount, unmount

_ROOT = Path("/sys/fs/cgroup")
_OURS = "virtkit-lab"
_REMOVE_TIMEOUT_S = 10.0
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def create(lab: str, host: str) -> None:
    """Make a host's group in every hierarchy that may be written."""
    hierarchies = _hierarchies()
    for hierarchy in hierarchies:
        group = hierarchy
        for name in (_OURS, lab, host):
            # Beside version 1, crun starts nothing where version 2 has a controller as well.
            if hierarchies == [_ROOT]:
                _delegate_controllers(group)
            group = group / name
            try:
                group.mkdir(exist_ok=True)
            except OSError as error:
                if error.errno in _READ_ONLY:
                    break
                raise
            _inherit_cpuset(group)


def enter(lab: str, host: str) -> None:
    """Make the host's groups the roots that are seen in the calling mount namespace.

    A root takes the place of the machine's: were it only put above, runc would find the one
    below first in /proc/self/mountinfo, and look for its groups there.
    """
    aside = Path("/run/.cgroup")
    aside.mkdir()
    for hierarchy in _hierarchies():
        group = hierarchy / _OURS / lab / host
        if group.is_dir():
            mount(str(group), str(aside), flags=Mount.BIND)
            unmount(str(hierarchy))
            mount(str(aside), str(hierarchy), flags=Mount.MOVE)
    aside.rmdir()


def remove(lab: str) -> None:
    """Remove the groups of all hosts of a lab. No process may be in them."""
    for hierarchy in _hierarchies():
        group = hierarchy / _OURS / lab
        for directory, _, _ in os.walk(group, topdown=False):
            waiting.until(
                partial(_is_removed, Path(directory)),
                what=f"lab {lab}: control group {directory} is busy",
                timeout_s=_REMOVE_TIMEOUT_S,
            )
        with contextlib.suppress(OSError):  # another lab is there
            group.parent.rmdir()


def _is_removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:  # a process in it is still on its way out
            raise
        return False
    return True


def _hierarchies() -> list[Path]:
    """Where control group file systems are mounted, see proc_pid_mountinfo(5)."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = Path(before.split()[4])
        if after.split()[0] in ("cgroup", "cgroup2") and place.is_relative_to(_ROOT):
            found.add(place)
    return sorted(found)


def _delegate_controllers(group: Path) -> None:
    """Version 2: let the groups below have the controllers that this one has."""
    with contextlib.suppress(OSError):  # version 1, or a controller that is bound elsewhere
        controllers = (group / "cgroup.controllers").read_text().split()
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def _inherit_cpuset(group: Path) -> None:
    """Version 1: a new group has no processors and no memory nodes until it is given some."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        with contextlib.suppress(FileNotFoundError):
            if not (group / name).read_text().strip():
                (group / name).write_text((group.parent / name).read_text())
