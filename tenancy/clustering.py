"""The clustered fabric database as an operator works with it: each verb, its steps in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenancy import dbfile, members
from tenancy.backends import cluster, embedded, member, standing, tls
from tenancy.backends.rpc import ConnectionLost, Rpc
from tenancy.errors import BackendUnavailable, InvalidRequest, VirtkitError
from tenancy.members import Report
from tenancy.names import validate_name

# How long `status` waits for one member.
ANSWER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a member is on this machine, and what it is called and reached by."""

    database: Path
    run_dir: Path
    listen: Sequence[str]
    certificates: Path


def init(place: Place, *, name: str, address: str, source: Path | None, election_ms: int) -> str:
    """Make the database here the first member of a cluster, and serve it; its unix remote."""
    _check(place, name, address)
    if not 100 <= election_ms <= 600_000:
        raise InvalidRequest(
            f"an election timer of {election_ms} ms is out of range. Choose 100 to 600000."
        )
    standalone = embedded.file_model(place.database) == dbfile.STANDALONE
    if standalone and source is None:
        embedded.stop(place.run_dir)
    cluster.make_first(place.database, address, source=source, election_ms=election_ms)
    return _serve(place, name)


def join(place: Place, *, name: str, address: str, others: Sequence[str]) -> str:
    """Make this machine a member of the cluster that these are members of, and serve it."""
    _check(place, name, address)
    cluster.make_joining(place.database, address, members.check_addresses(address, others))
    return _serve(place, name)


def start(place: Place) -> tuple[str, bool]:
    """Serve the database here, of a cluster or not. Its unix remote, and whether it is in touch
    with a majority of its cluster."""
    remote = embedded.start(
        place.database,
        run_dir=place.run_dir,
        listen=place.listen,
        certificates=place.certificates,
    )
    if not embedded.is_clustered(place.database):
        return remote, True
    doors = embedded.doors_of(place.listen)
    settled = member.settle(place.run_dir, name=None, doors=doors, timeout_s=cluster.SETTLE_S)
    return remote, settled


def _serve(place: Place, name: str) -> str:
    remote = embedded.start(
        place.database,
        run_dir=place.run_dir,
        listen=place.listen,
        certificates=place.certificates,
    )
    doors = embedded.doors_of(place.listen)
    cluster.finish_joining(place.database, place.run_dir, name=name, doors=doors)
    return remote


def _check(place: Place, name: str, address: str) -> None:
    """Everything that can be wrong with what was asked, before anything is changed."""
    validate_name("member", name)
    members.check_address(address)
    embedded.check_passive(place.listen)
    if address.startswith("ssl:") or embedded.doors_of(place.listen):
        tls.check(place.certificates)


def status(remotes: str, database: Path, run_dir: Path) -> dict[str, Any]:
    """What is known of the database and its members from here. Raises only if nobody answers.

    Of each remote its own word is taken; if a member runs here, it tells of the others.
    """
    own = _own(run_dir)
    heard, silent = _hear(remotes.split(","))
    if not heard and own is None:
        raise BackendUnavailable(
            f"fabric database {remotes} does not answer ({'; '.join(silent)}). Start it with "
            "`nvctl db start`, or name the right one with --db or VIRTKIT_DB."
        )
    clustered = own is not None or any(s.model == "clustered" for s, _ in heard.values())
    quorum = any(found.serves for found, _ in heard.values())
    model = next((found.model for found, _ in heard.values()), "clustered")
    record: dict[str, Any] = {"model": "clustered" if clustered else model, "quorum": quorum}
    record["silent"] = silent
    if own is not None:
        record["here"] = {
            "role": own.role,
            "term": own.term,
            "log_index": own.log_end,
            "uncommitted": own.uncommitted,
            "disk_bytes": database.stat().st_size if database.exists() else None,
        }
    return {**record, "members": _members(own, heard)} if clustered else record


def name_members(record: Mapping[str, Any], settings: Mapping[str, str]) -> None:
    """Write into a status what members are called, by the fabric's own settings."""
    known = members.entries(settings)
    by_sid = {entry.sid: entry for entry in known.values()}
    for row in record.get("members", ()):
        entry = by_sid.get(row["id"])
        row["name"] = entry.name if entry else row["address"] or row["id"]
        row["address"] = row["address"] or (entry.address if entry else None)


def _own(run_dir: Path) -> Report | None:
    try:
        return member.report(run_dir)
    except VirtkitError:
        return None


_Heard = dict[str, tuple[standing.Standing, str]]


def _hear(remotes: Sequence[str]) -> tuple[_Heard, list[str]]:
    """Remote → its standing, and what those who don't answer did instead."""
    heard: _Heard = {}
    silent = []
    for one in remotes:
        try:
            rpc = Rpc.connect(one, ANSWER_S)
        except BackendUnavailable as error:
            silent.append(str(error))
            continue
        try:
            heard[one] = (standing.ask(rpc), one)
        except ConnectionLost as lost:
            silent.append(f"{one}: {lost.reason}")
        finally:
            rpc.close()
    return heard, silent


def _members(own: Report | None, heard: _Heard) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    # A member that follows hears nothing of others that follow, so they are called.
    called = member.reachable(own.peers) if own and own.leader != "self" else frozenset()
    for peer in own.peers if own else ():
        assert own is not None
        leads = peer.sid == own.sid if own.leader == "self" else peer.sid == own.leader
        match = own.log_end if peer.itself else peer.match
        leader_here = own.leader == "self"
        alive = own.alive(peer) if leader_here else peer.itself or peer.sid in called
        rows[peer.sid] = {
            "name": None,
            "id": peer.sid,
            "address": peer.address,
            "role": "leader" if leads else "follower",
            "connected": alive,
            "index": match,
            "behind": None if match is None else max(0, own.log_end - match),
            "silent_ms": peer.silent_ms,
        }
    for found, _ in heard.values():
        if found.sid is None:
            continue
        row = rows.setdefault(
            found.sid[:4],
            {
                "name": None,
                "id": found.sid[:4],
                "address": None,
                "role": "",
                "connected": None,
                "index": None,
                "behind": None,
                "silent_ms": None,
            },
        )
        row["role"] = "leader" if found.leader else "follower"
        row["connected"] = found.connected
        row["index"] = found.index if row["index"] is None else row["index"]
    newest = max((row["index"] for row in rows.values() if row["index"] is not None), default=None)
    for row in rows.values():
        if row["behind"] is None and row["index"] is not None and newest is not None:
            row["behind"] = newest - row["index"]
    return sorted(rows.values(), key=lambda row: str(row["address"]))
