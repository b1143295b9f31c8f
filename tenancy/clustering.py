"""The clustered fabric database as an operator works with it: each verb, its steps in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenancy import dbfile, members
from tenancy.backends import cluster, embedded, member, standing, tls
from tenancy.backends.codec import DATABASE
from tenancy.backends.rpc import ConnectionLost, Rpc
from tenancy.backends.standing import Standing
from tenancy.errors import BackendUnavailable, InvalidRequest, VirtkitError
from tenancy.members import Entry, Peer, Report
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
    heard, settings, silent = _hear(remotes.split(","))
    if not heard and own is None:
        raise BackendUnavailable(
            f"fabric database {remotes} does not answer ({'; '.join(silent)}). Start it with "
            "`nvctl db start`, or name the right one with --db or VIRTKIT_DB."
        )
    clustered = own is not None or any(found.model == "clustered" for found in heard)
    record: dict[str, Any] = {
        "model": "clustered" if clustered else heard[0].model,
        "quorum": any(found.serves for found in heard),
        "silent": silent,
    }
    if own is not None:
        record["here"] = {
            "role": own.role,
            "term": own.term,
            "log_index": own.log_end,
            "uncommitted": own.uncommitted,
            "disk_bytes": _size(database),
        }
    if clustered:
        record["members"] = _members(own, heard, members.entries(settings))
    return record


def _size(database: Path) -> int | None:
    """Bytes of the file; None if there is none, or who asks may not know."""
    try:
        return database.stat().st_size
    except OSError:
        return None


def _own(run_dir: Path) -> Report | None:
    try:
        return member.report(run_dir)
    except VirtkitError:
        return None


def _hear(remotes: Sequence[str]) -> tuple[list[Standing], dict[str, str], list[str]]:
    """How those who answer stand, Fabric.settings, and what those who don't answer did instead."""
    heard = []
    settings: dict[str, str] = {}
    silent = []
    select = {"op": "select", "table": "Fabric", "where": [], "columns": ["settings"]}
    for one in remotes:
        try:
            rpc = Rpc.connect(one, ANSWER_S)
        except BackendUnavailable as error:
            silent.append(str(error))
            continue
        try:
            found = standing.ask(rpc)
            heard.append(found)
            # Also one without a majority knows who the members were.
            (answer,) = rpc.call("transact", [DATABASE, select])
            for row in answer.get("rows", ()):
                settings = dict(row["settings"][1]) if found.serves or not settings else settings
        except ConnectionLost as lost:
            silent.append(f"{one}: {lost.reason}")
        finally:
            rpc.close()
    return heard, settings, silent


def _members(
    own: Report | None, heard: Sequence[Standing], known: Mapping[str, Entry]
) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    if own is not None:
        # A member that follows hears nothing of others that follow, so they are called.
        called = None if own.leader == "self" else member.reachable(own.peers)
        for peer in own.peers:
            alive = own.alive(peer) if called is None else peer.itself or peer.sid in called
            match = own.log_end if peer.itself else peer.match
            rows[peer.sid] = _row(known, peer.sid, peer.address) | {
                "role": own.role if peer.itself else _role(own, peer),
                "connected": alive,
                "index": match,
                "silent_ms": peer.silent_ms,
            }
    for found in heard:
        if found.sid is None:
            continue
        sid = found.sid[:4]
        row = rows.setdefault(sid, _row(known, sid, None))
        row["role"] = "leader" if found.leader else row["role"] or "follower"
        row["connected"] = found.connected
        row["index"] = row["index"] if row["index"] is not None else found.index
    newest = max((row["index"] for row in rows.values() if row["index"] is not None), default=0)
    for row in rows.values():
        row["behind"] = None if row["index"] is None else newest - row["index"]
    # Whom the fabric knows, and nobody has heard of.
    for entry in known.values():
        rows.setdefault(entry.sid, _row(known, entry.sid, entry.address))
    return sorted(rows.values(), key=lambda row: str(row["name"]))


def _role(own: Report, peer: Peer) -> str:
    return "leader" if peer.sid == own.leader else "follower"


def _row(known: Mapping[str, Entry], sid: str, address: str | None) -> dict[str, Any]:
    entry = next((entry for entry in known.values() if entry.sid == sid), None)
    where = address or (entry.address if entry else None)
    return {
        "name": entry.name if entry else where or sid,
        "id": sid,
        "address": where,
        "role": "",
        "connected": None,
        "index": None,
        "behind": None,
        "silent_ms": None,
    }
