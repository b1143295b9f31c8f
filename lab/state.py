"""What is on record about a lab: its plan, its processes 1, and who may change it now.

A lab's record is a directory. It is made, with the plan in it, before anything else of the lab
is, and removed after everything else is gone; so whatever a crash leaves can be found from it.
The directory itself is the lock (flock(2)). The lab's first process inherits the lock and keeps
it until its own number is on record: whoever holds the lock sees either no process or a
recorded one, also when `up` was killed in between.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from lab.linux import Process
from tenancy.errors import InvalidRequest, NotFound, Refused

DEFAULT_NAME = "lab"
MAX_HOSTS = 64
MAX_LATENCY_US = 1_000_000

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
_PLAN = "plan.json"
_LOCK_WAIT_S = 5.0


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a lab consists of; `phase` is `up` once all of it has been made."""

    name: str
    hosts: int
    ceph: bool
    agents: bool
    underlay_mtu: int
    latency_us: int = 0
    tls: bool = False
    db_members: int = 1
    phase: Literal["starting", "up"] = "starting"

    def __post_init__(self) -> None:
        """Refuse a plan that can't be carried out."""
        check_name(self.name)
        if not 1 <= self.hosts <= MAX_HOSTS:
            raise InvalidRequest(
                f"lab {self.name}: {self.hosts} hosts asked for. Choose 1 to {MAX_HOSTS}."
            )
        if not 1280 <= self.underlay_mtu <= 65000:
            raise InvalidRequest(
                f"lab {self.name}: underlay MTU {self.underlay_mtu} is out of range. "
                "Choose 1280 to 65000."
            )
        if not 0 <= self.latency_us <= MAX_LATENCY_US:
            raise InvalidRequest(
                f"lab {self.name}: a latency of {self.latency_us} us is out of range. "
                f"Choose 0 to {MAX_LATENCY_US}."
            )

        if not 1 <= self.db_members <= self.hosts:
            raise InvalidRequest(
                f"lab {self.name}: {self.db_members} members of the fabric database asked for. "
                f"Choose 1, or up to as many as hosts ({self.hosts})."
            )
        if self.tls and self.db_members > 1:
            raise InvalidRequest(
                f"lab {self.name}: a clustered fabric database has no TLS in a lab. Choose one "
                "of the two."
            )

    @property
    def member_names(self) -> tuple[str, ...]:
        """The hosts that have a member of the fabric database; none if `ctl` has all of it."""
        return self.host_names[: self.db_members] if self.db_members > 1 else ()

    @property
    def host_names(self) -> tuple[str, ...]:
        """The hosts, without `ctl`."""
        return tuple(f"h{number}" for number in range(1, self.hosts + 1))


class Record:
    """The record of one lab. Nothing is read or written until a method is called."""

    def __init__(self, name: str) -> None:
        """The record of the lab of this name, whether or not there is such a lab."""
        check_name(name)
        self.name = name
        self.directory = _base() / name
        self.disk = _disk_base() / name

    def exists(self) -> bool:
        """Whether there is anything of this lab, complete or not."""
        return self.directory.exists() or self.disk.exists()

    def plan(self) -> Plan | None:
        """The plan, or None if no lab got as far as having one."""
        try:
            return msgspec.json.decode((self.directory / _PLAN).read_bytes(), type=Plan)
        except FileNotFoundError:
            return None

    def write_plan(self, plan: Plan) -> None:
        """Replace the plan, at once or not at all."""
        draft = self.directory / f"{_PLAN}.draft"
        draft.write_bytes(msgspec.json.encode(plan))
        draft.rename(self.directory / _PLAN)

    def process_file(self, host: str) -> Path:
        """Where the process 1 of a host records itself."""
        return self.directory / f"{host}.pid"

    def process(self, host: str) -> Process | None:
        """The process 1 of a host, or None if it never was. It may have ended since."""
        try:
            pid, started = self.process_file(host).read_text().split()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Process(int(pid), int(started))

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """The right to change this lab, as the lock's descriptor; makes the directory.

        Refused if another process has it and keeps it.
        """
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
            try:
                descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:  # another process removed it just now
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_directory(descriptor):
                    yield descriptor
                    return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused(
                        f"lab {self.name} is being changed by another process. "
                        "Wait for it, or end it and take the lab down."
                    ) from None
                time.sleep(0.05)
            finally:
                os.close(descriptor)

    def remove(self) -> None:
        """Remove the lab's files: the record last. The lock must be held."""
        for directory in (self.disk, self.directory):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(directory)
            with contextlib.suppress(OSError):  # another lab is there
                directory.parent.rmdir()

    def _is_directory(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.directory.stat())
        except FileNotFoundError:
            return False


def names() -> tuple[str, ...]:
    """The labs on record, complete or not, sorted."""
    found: set[str] = set()
    for base in (_base(), _disk_base()):
        with contextlib.suppress(FileNotFoundError):
            found.update(entry.name for entry in base.iterdir() if _NAME.fullmatch(entry.name))
    return tuple(sorted(found))


def check_name(name: str) -> None:
    """InvalidRequest unless this can be the name of a lab."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"lab name {name!r} is not valid. Use up to 32 of a-z, 0-9 and -, no - at either end."
        )


def not_up(name: str) -> NotFound:
    """The error for a command that needs a lab which is not there."""
    return NotFound(f"lab {name} is not up. Start it: virtlab up --name {name}.")


def _base() -> Path:
    return Path(os.environ.get("VIRTKIT_LAB_DIR", "/run/virtkit-lab"))


def _disk_base() -> Path:
    # /run is often a small tmpfs; the disks of OSDs need a real one.
    return Path(os.environ.get("VIRTKIT_LAB_DISK_DIR", "/var/lib/virtkit-lab"))
