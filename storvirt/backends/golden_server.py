"""The block server of one tenant's clones on this host: what it leaves, and how it is started.

Files below /run/virtkit/golden/TENANT, all of which may be left by a killed server:

    lock        flock(2) of the server that runs
    socket      where hypervisors connect
    addresses   how Ceph's OSDs know the server
    open/       a file for each image that it has open: POOL@NAME
    counters    see storvirt.golden.Counters
"""

import fcntl
import os
import pwd
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from storvirt.backends.cluster import Cluster
from storvirt.golden import Counters, counters
from tenancy.errors import BackendUnavailable, InvalidRequest, Refused

STATE = Path("/run/virtkit/golden")
PLUGIN_NAME = "virtkit-golden"
# A connection is a guest's disk. A guest's kernel keeps up to 128 requests on one, and each
# thread is one of them that waits for an OSD.
THREADS = 8
BACKLOG = 256
# Long enough for any request of the killed server to have failed or been forgotten.
FENCE_S = 3600

_PASSED_DESCRIPTOR = 3
_FIRST_FREE_DESCRIPTOR = 10


@dataclass(frozen=True, slots=True)
class State:
    """Where a tenant's server keeps what is known of it."""

    directory: Path

    @classmethod
    def of(cls, tenant: str) -> "State":
        return cls(STATE / tenant)

    @property
    def socket(self) -> Path:
        return self.directory / "socket"

    @property
    def addresses(self) -> Path:
        return self.directory / "addresses"

    def open_images(self) -> list[tuple[str, str]]:
        """Pool and name of each image that the server has, or had when it was killed."""
        try:
            names = sorted(one.name for one in (self.directory / "open").iterdir())
        except FileNotFoundError:
            return []
        return [(pool, image) for pool, _, image in (name.partition("@") for name in names)]

    def forget_open_images(self) -> None:
        for pool, image in self.open_images():
            (self.directory / "open" / f"{pool}@{image}").unlink(missing_ok=True)

    def client_addresses(self) -> list[str]:
        """The addresses that Ceph knows the server by; none if it never came so far."""
        try:
            text = self.addresses.read_text().strip()
        except FileNotFoundError:
            return []
        found = (one for one in text.strip("[]").split(",") if one)
        return [one.partition(":")[2] if one.startswith(("v1:", "v2:")) else one for one in found]

    def counters(self) -> Counters | None:
        try:
            return counters((self.directory / "counters").read_bytes())
        except FileNotFoundError:
            return None


def tenants() -> list[str]:
    """Whose servers have run on this host since it was started."""
    try:
        return sorted(entry.name for entry in STATE.iterdir() if (entry / "lock").exists())
    except FileNotFoundError:
        return []


def reserve(state: State, tenant: str) -> int:
    """The right to be the tenant's server here, as a descriptor that must stay open."""
    try:
        state.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        lock = os.open(state.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidRequest(
            f"directory {state.directory} cannot be made: {error.strerror}. Run this as root."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise Refused(
            f"the block server of tenant {tenant} runs on this host already. "
            "See `svctl golden status`."
        ) from None
    return lock


def runs(state: State) -> bool:
    """Whether a server is there, whatever it does."""
    try:
        lock = os.open(state.directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def cache_bytes(directory: Path) -> int:
    """Bytes of all chunks of this host, those in the making included."""
    try:
        return int.from_bytes((directory / "ledger").read_bytes()[:8], sys.byteorder)
    except FileNotFoundError:
        return 0


def fence(cluster: Cluster, state: State) -> None:
    """Let the OSDs refuse what the killed server may still have on its way to them.

    Otherwise a write that nobody was answered could arrive after a later one to the same place.
    """
    for address in state.client_addresses():
        cluster.raw_command("osd blocklist", blocklistop="add", addr=address, expire=float(FENCE_S))


def listen(state: State, owner: str | None) -> socket.socket:
    """The socket for hypervisors, which belongs to `owner` and nobody else can use.

    It replaces a killed server's at once: a hypervisor always finds one or the other.
    """
    draft = state.directory / "socket.draft"
    draft.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(draft))
    finally:
        os.umask(before)
    if owner is not None:
        try:
            os.chown(draft, pwd.getpwnam(owner).pw_uid, -1)
        except KeyError as error:
            raise InvalidRequest(
                f"user {owner} does not exist on this host. Name the user that QEMU runs as."
            ) from error
    listener.listen(BACKLOG)
    draft.rename(state.socket)
    return listener


def become_server(
    state: State,
    listener: socket.socket,
    conf: str,
    *,
    user: str,
    namespace: str,
    cache: Path,
    limit_bytes: int,
    plugin: str,
    trace: Path | None,
    lock: int,
) -> NoReturn:
    """Replace this process by nbdkit, which gets the socket as systemd would hand it over.

    `conf` is the text of a ceph.conf with the tenant's key; it is in no file and no argument.
    """
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    secret = os.memfd_create("ceph.conf", 0)
    os.write(secret, conf.encode())
    # Out of the way of the socket, and no longer closed by exec.
    key, _ = (fcntl.fcntl(one, fcntl.F_DUPFD, _FIRST_FREE_DESCRIPTOR) for one in (secret, lock))
    command = [
        *("nbdkit", "--foreground", f"--threads={THREADS}"),
        *(["--filter=log"] if trace else []),
        plugin,
        f"conf=/proc/self/fd/{key}",
        f"user={user}",
        f"namespace={namespace}",
        f"cache={cache}",
        f"limit={limit_bytes}",
        f"state={state.directory}",
        *([f"logfile={trace}"] if trace else []),
    ]
    # The protocol of sd_listen_fds(3): the socket is descriptor 3, and this process is meant.
    os.dup2(listener.fileno(), _PASSED_DESCRIPTOR)
    os.set_inheritable(_PASSED_DESCRIPTOR, True)
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin"),
        "LISTEN_FDS": "1",
        "LISTEN_PID": str(os.getpid()),
    }
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "nbdkit is not installed. Install it: apt-get install nbdkit."
        ) from error
