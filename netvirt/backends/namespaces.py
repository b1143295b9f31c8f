"""Network namespaces of other processes: finding them, and acting inside one."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import netns

from tenancy.errors import NotFound

_NAMED = Path("/run/netns")
# Of linux/nsfs.h and linux/sched.h, see ioctl_ns(2).
_NS_GET_NSTYPE, _CLONE_NEWNET = 0xB703, 0x4000_0000


def namespace_path(namespace: str) -> Path:
    """Where a namespace is found: by a name that `ip netns` knows, a path or a process id."""
    if "/" in namespace:
        return Path(namespace)
    if namespace.isdigit() and not (_NAMED / namespace).exists():
        return Path(f"/proc/{namespace}/ns/net")
    return _NAMED / namespace


@contextmanager
def opened(namespace: str) -> Iterator[int]:
    """A file descriptor that holds the namespace; raises `NotFound`."""
    path = namespace_path(namespace)
    no_namespace = NotFound(
        f"network namespace {namespace}: {path} is no namespace. "
        f"Make one: `ip netns add {path.name}`."
    )
    try:
        # Nothing else is opened: a pipe would wait for its other end, and a device may act.
        if not stat.S_ISREG(path.stat().st_mode):
            raise no_namespace
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise NotFound(
            f"network namespace {namespace}: {path} can't be opened ({error.strerror}). "
            "Name one that `ip netns list` shows, a path, or the id of a running process."
        ) from error
    try:
        # The name's file is there before `ip netns add` has mounted the namespace on it, and
        # stays when that failed.
        if not _is_namespace(descriptor):
            raise no_namespace
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def entered(descriptor: int) -> Iterator[None]:
    """The calling thread is in the namespace, and afterwards back in its own."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        netns.setns(descriptor)
        try:
            yield
        finally:
            netns.setns(home)
    finally:
        os.close(home)


def _is_namespace(descriptor: int) -> bool:
    """Whether it is one of the network, and not of mounts or processes."""
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False
