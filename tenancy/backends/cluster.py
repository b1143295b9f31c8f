"""Becoming a member of the fabric database's Raft cluster on this machine, and ceasing to be one.

The files are made by ovsdb-tool beside their place and renamed to it when they are whole; what the
cluster decides, it decides by its own log. So each of these may be killed anywhere and run again.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tenancy import dbfile, members
from tenancy.backends import embedded, member
from tenancy.backends.codec import DATABASE
from tenancy.backends.fabric import Fabric
from tenancy.errors import (
    BackendUnavailable,
    InvalidRequest,
    NotFound,
    Refused,
    VerificationFailed,
)
from tenancy.members import PREFIX

DEFAULT_ELECTION_MS = 1000
# How long a member takes at most to be taken in, or to be let go.
JOIN_S = 60.0
# How long a start waits for a majority before it leaves the rest to those who come.
SETTLE_S = 20.0


def make_first(database: Path, address: str, *, source: Path | None, election_ms: int) -> None:
    """Have `database` be the file of a cluster's first member, with all rows of what it was, or of
    `source`; or empty. Nothing if it is the file of a member at this address.

    A standalone file stays beside it as `NAME.standalone`.
    """
    found = embedded.file_model(database)
    if found == dbfile.CLUSTER:
        _check_same(database, address)
        if source is not None:
            raise Refused(
                f"fabric database {database} is a cluster's already, so it does not begin from "
                f"{source}. Move it away, or restore a backup: nvctl db restore {source}."
            )
        if _cluster_id(database) is None:
            raise Refused(
                f"fabric database {database} is about to join a cluster. Finish it: run "
                "`nvctl db join` again; or remove the file."
            )
        return
    if found is None and database.exists():
        raise InvalidRequest(f"{database} is no database. Name another with --database.")
    if found is not None and source is not None:
        raise Refused(
            f"fabric database {database} exists, so it is what a cluster begins from. Leave out "
            "--from, or move it away."
        )
    if source is not None and embedded.file_model(source) is None:
        raise InvalidRequest(f"{source} is no database's file. Name a backup, or a database's.")
    _make_directory(database)
    with _exclusively(database):
        _build_first(database, address, source or database, election_ms)


def make_joining(database: Path, address: str, others: Sequence[str]) -> None:
    """Have `database` be the file of a member that joins these. Nothing if it has joined."""
    found = embedded.file_model(database)
    if found == dbfile.CLUSTER:
        _check_same(database, address)
        if _cluster_id(database) is not None:
            return
    elif database.exists():
        raise Refused(
            f"{database} is there already and has a fabric of its own, which would be lost. Move "
            "it away to join another; or have the others join this one, after `nvctl db init` "
            "here."
        )
    _make_directory(database)
    fresh = _fresh(database)
    embedded.tool("join-cluster", fresh, DATABASE, address, *others)
    _put(fresh, database)


def finish_joining(database: Path, run_dir: Path, *, name: str, doors: Sequence[str]) -> None:
    """Wait until the member that was started is taken in, and enter its name and doors.

    Raises BackendUnavailable if it is not, in time.
    """
    if not member.settle(run_dir, name=name, doors=doors, timeout_s=JOIN_S):
        raise BackendUnavailable(
            f"fabric database {database}: the cluster has not taken this member in within "
            f"{JOIN_S:g} s. See whether a majority of it answers, at the addresses that were "
            f"given, and {database.with_suffix('.log')}; then run the same command again."
        )
    embedded.left_file(database).unlink(missing_ok=True)


def leave(database: Path, run_dir: Path) -> str:
    """Have the member here leave its cluster in good order, and return what it was called."""
    if embedded.file_model(database) is None and embedded.left_file(database).exists():
        # The run that was killed may have left the server of it running.
        if _serves_nothing(run_dir):
            _stop(database, run_dir)
        return "this machine"
    if not embedded.is_clustered(database):
        raise Refused(
            f"fabric database {database} is no member of a cluster, so there is nothing to leave. "
            "To stop serving it: nvctl db stop."
        )
    name = "this machine"
    try:
        own = member.report(run_dir)
        if own.status.startswith("joining"):
            raise Refused(
                f"fabric database {database} is about to join a cluster, and can't leave it "
                "before. Finish it: run `nvctl db join` again."
            )
        if not own.status.startswith(("leaving", "left")):
            name = _ask_to_leave(run_dir, own)
        if not member.wait_until(lambda: not member.report(run_dir).sid, JOIN_S):
            raise BackendUnavailable(
                f"{name} has asked to leave, and the cluster has not let it go within {JOIN_S:g} "
                "s. See `nvctl db status`, and run the same command again."
            )
    except member.NoCluster:
        # It is out: the server has dropped the database.
        pass
    # The file first: whether the member is out, only the server knows, and it is stopped next.
    _fresh(database)
    os.replace(database, embedded.left_file(database))  # noqa: PTH105
    _stop(database, run_dir)
    return name


def _serves_nothing(run_dir: Path) -> bool:
    """Whether a server runs here whose member has left; not one that serves another fabric."""
    try:
        return not member.report(run_dir).sid
    except member.NoCluster:
        return DATABASE not in member.control(run_dir, "ovsdb-server/list-dbs").split()
    except BackendUnavailable:
        return False


def _stop(database: Path, run_dir: Path) -> None:
    embedded.stop(run_dir)
    embedded.lock_of(database).unlink(missing_ok=True)


def _ask_to_leave(run_dir: Path, own: members.Report) -> str:
    itself = next(peer for peer in own.peers if peer.itself)
    alive = member.reachable(own.peers)
    with Fabric.connect(f"unix:{embedded.socket_of(run_dir)}") as fabric:
        name = members.name_of(member.entries(fabric), own.address)
        members.check_removal(name, [p.sid for p in own.peers], alive, itself.sid)
        member.forget(fabric, own.sid)
    member.control(run_dir, "cluster/leave", DATABASE)
    return name


def kick(run_dir: Path, name: str) -> str:
    """Have the others go on without a member that is dead for good; what it was called."""
    own = member.report(run_dir)
    with Fabric.connect(f"unix:{embedded.socket_of(run_dir)}") as fabric:
        known = member.entries(fabric)
        entry = known.get(name)
        try:
            peer = members.find(own, known, name)
        except NotFound:
            if entry is None:
                raise
            # It is out, and its name was still there.
            member.forget(fabric, entry.sid)
            return name
        called = members.name_of(known, peer.address)
        if peer.itself:
            raise Refused(f"{called} is this machine. To leave the cluster: nvctl db leave.")
        alive = member.reachable(own.peers)
        if peer.sid in alive:
            raise Refused(
                f"member {called} is alive at {peer.address}. Let it go in good order: run "
                "`nvctl db leave` there; or stop it first: `nvctl db stop`."
            )
        members.check_removal(f"member {called}", [p.sid for p in own.peers], alive, peer.sid)
        member.control(run_dir, "cluster/kick", DATABASE, peer.sid)
        if not member.wait_until(lambda: not _has(run_dir, peer.sid), JOIN_S):
            raise BackendUnavailable(
                f"member {called}: the cluster has not removed it within {JOIN_S:g} s. See "
                "`nvctl db status`, and run the same command again."
            )
        member.forget(fabric, peer.sid)
    return called


def compact(database: Path, run_dir: Path) -> tuple[int, int]:
    """Have the server rewrite its file without history; its bytes before and after."""
    before = _size(database)
    member.control(run_dir, "ovsdb-server/compact", DATABASE)
    return before, _size(database)


def _has(run_dir: Path, sid: str) -> bool:
    return any(peer.sid == sid for peer in member.report(run_dir).peers)


def _size(database: Path) -> int:
    try:
        return database.stat().st_size
    except OSError as error:
        raise NotFound(
            f"fabric database {database}: {error.strerror}. Run it on a machine that has it, or "
            "name its file with --database."
        ) from error


def _build_first(database: Path, address: str, source: Path, election_ms: int) -> None:
    base = database.with_name(f".{database.name}.base")
    _remove(base)
    if embedded.file_model(source) == dbfile.CLUSTER:
        embedded.tool("cluster-to-standalone", base, source)
    elif source.exists():
        shutil.copyfile(source, base)
    # From the latest schema, without what belongs to the members of a cluster before this one.
    embedded.prepare(base)
    embedded.tool("compact", base)
    top = next(iter(dbfile.parse(str(base), base.read_bytes()).rows["Fabric"].values()))
    earlier = [key for key, _ in top.get("settings", ["map", []])[1] if key.startswith(PREFIX)]
    if earlier:
        forget = ["settings", "delete", ["set", earlier]]
        operation = {"op": "mutate", "table": "Fabric", "where": [], "mutations": [forget]}
        embedded.tool("transact", base, json.dumps([DATABASE, operation]))
        embedded.tool("compact", base)
    fresh = _fresh(database)
    embedded.tool(f"--election-timer={election_ms}", "create-cluster", fresh, base, address)
    _verify(base, fresh)
    if embedded.file_model(database) == dbfile.STANDALONE:
        kept = database.with_name(f"{database.name}.standalone")
        kept.unlink(missing_ok=True)
        kept.hardlink_to(database)
    _put(fresh, database)
    _remove(base)
    embedded.left_file(database).unlink(missing_ok=True)


def _verify(base: Path, clustered: Path) -> None:
    """Compare, row by row, what the cluster's file has with what it was made from."""
    again = base.with_name(f"{base.name}.again")
    try:
        _remove(again)
        embedded.tool("cluster-to-standalone", again, clustered)
        before = dbfile.parse(str(base), base.read_bytes())
        after = dbfile.parse(str(again), again.read_bytes())
    finally:
        _remove(again)
    if before.rows != after.rows:
        raise VerificationFailed(
            f"the cluster's file has {after.counts()}, and what it was made from "
            f"{before.counts()}. Nothing was changed; report it."
        )


def _check_same(database: Path, address: str) -> None:
    present = embedded.local_address(database)
    if present != address:
        raise Refused(
            f"fabric database {database} is a member's already, at {present}, not {address}. "
            "Give that address; or leave first: nvctl db leave."
        )


def _cluster_id(database: Path) -> str | None:
    """The cluster that a member's file belongs to; None while it has not been taken in."""
    try:
        return embedded.tool("db-cid", database).strip() or None
    except BackendUnavailable:
        return None


def _make_directory(database: Path) -> None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendUnavailable(
            f"{database.parent} can't be written ({error.strerror}). Run as root, or name another "
            "place with --database."
        ) from error


def _fresh(database: Path) -> Path:
    """A name for a file to be made, in place of what a killed run has left."""
    fresh = database.with_name(f".{database.name}.new")
    _remove(fresh)
    return fresh


def _remove(scratch: Path) -> None:
    """Remove a scratch file with the locks that ovsdb-tool leaves beside it."""
    for path in (scratch, scratch.with_name(f"{scratch.name}.tmp")):
        path.unlink(missing_ok=True)
        embedded.lock_of(path).unlink(missing_ok=True)


def _put(fresh: Path, database: Path) -> None:
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.rename(database)
    embedded.lock_of(fresh).unlink(missing_ok=True)
    directory = os.open(database.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _exclusively(database: Path) -> Iterator[None]:
    """Hold OVS's own lock on a standalone file, so that no server writes to it meanwhile."""
    if not database.exists():
        yield
        return
    with embedded.lock_of(database).open("a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(
                f"fabric database {database} is being served. Stop that first: nvctl db stop, or "
                "whoever supervises `nvctl db run`."
            ) from error
        with contextlib.closing(lock):
            yield
