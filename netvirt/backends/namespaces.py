"""Network namespaces of other processes: finding them, and acting inside one."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import netns

from tenancy.errors import NotFound

_NAMED = Path("/run/netns")


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
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(
            f"network namespace {namespace}: {path} can't be opened ({error.strerror}). "
            "Name one that `ip netns list` shows, a path, or the id of a running process."
        ) from error
    try:
        # The name's file is there before `ip netns add` has mounted the namespace on it, and
        # stays when that failed.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _is_namespace(descriptor):
            raise NotFound(
                f"network namespace {namespace}: {path} is no namespace. "
                f"Make one: `ip netns add {path.name}`."
            )
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
    own = Path("/proc/thread-self/ns/net").stat()
    return os.fstat(descriptor).st_dev == own.st_dev
