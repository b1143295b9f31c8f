"""What a server says of itself as a member of a cluster, and the choice among several of them.

Every ovsdb-server has a second database, `_Server` (ovsdb-server(5)), that says whether the first
is a cluster's, whether this member is in touch with a majority of it, and whether it leads. One
that has lost the majority still answers reads, with what it knew then, and leaves writes without
an answer; so nothing is asked of it.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenancy.backends.codec import DATABASE
from tenancy.backends.rpc import ConnectionLost, Rpc
from tenancy.errors import BackendUnavailable

SERVER_DATABASE = "_Server"
STANDING_COLUMNS = ("model", "connected", "leader", "index", "cid", "sid")
# How long a cluster is waited for that is just electing another leader: several times what an
# election takes. Also how long a command goes on looking for members.
ELECTION_S = 15.0
# How long one member among several is waited for at first; doubled from round to round.
FIRST_WAIT_S = 1.0
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A server's place. A standalone server, and a relay in touch with its source, serve too."""

    model: str
    connected: bool
    leader: bool
    index: int | None = None
    cid: str | None = None
    sid: str | None = None

    @property
    def serves(self) -> bool:
        return self.model == "standalone" or self.connected

    @property
    def first_choice(self) -> bool:
        """Whether what is read here is the newest that there is."""
        return self.serves and (self.leader or self.model != "clustered")

    @property
    def why_not(self) -> str:
        """Why it does not serve."""
        if self.model == "relay":
            return "this relay has lost the database"
        return "this member is not in touch with a majority of the cluster"


STANDALONE = Standing(model="standalone", connected=True, leader=True)


def query() -> list[Any]:
    """The parameters of a `transact` whose answer `parse` understands."""
    select = {
        "op": "select",
        "table": "Database",
        "where": [["name", "==", DATABASE]],
        "columns": list(STANDING_COLUMNS),
    }
    return [SERVER_DATABASE, select]


def parse(rows: Sequence[Mapping[str, Any]]) -> Standing:
    """A row of _Server's table Database. A server that does not have the database is let pass: the
    next question is answered by an error that says so."""
    if not rows:
        return STANDALONE
    row = rows[0]
    return Standing(
        model=row["model"],
        connected=row["connected"],
        leader=row["leader"],
        index=_optional(row["index"]),
        cid=_uuid(row["cid"]),
        sid=_uuid(row["sid"]),
    )


def ask(rpc: Rpc) -> Standing:
    """The standing of the server at the other end."""
    (answer,) = rpc.call("transact", query())
    return parse(answer.get("rows", ()))


def spread(remotes: str) -> str:
    """The same remotes in an order of chance, those of this machine first: of many hosts that are
    told of the same members, each member then serves a part."""
    every = remotes.split(",")
    near = [one for one in every if one.startswith("unix:")]
    far = [one for one in every if not one.startswith("unix:")]
    return ",".join([*near, *random.sample(far, len(far))])


def connect(remotes: str, timeout_s: float) -> Rpc:
    """A connection to the leader, or else to a member that is in touch with it.

    A cluster in which nobody leads is waited for, `ELECTION_S` at most; so are members that don't
    answer, if there are several. Raises BackendUnavailable with what each has said.
    """
    every = remotes.split(",")
    deadline = time.monotonic() + ELECTION_S
    wait_s = timeout_s if len(every) == 1 else min(FIRST_WAIT_S, timeout_s)
    while True:
        reasons = []
        leaderless = False
        second: Rpc | None = None
        for one in every:
            try:
                rpc = Rpc.connect(one, wait_s)
            except BackendUnavailable as error:
                reasons.append(str(error))
                continue
            try:
                standing = ask(rpc)
            except ConnectionLost as lost:
                rpc.close()
                reasons.append(f"{one}: {lost.reason}")
                continue
            except BackendUnavailable:
                rpc.close()
                raise
            rpc.wait_at_most(timeout_s)
            if standing.first_choice:
                if second is not None:
                    second.close()
                return rpc
            if standing.serves and second is None:
                second = rpc
                continue
            rpc.close()
            if not standing.serves:
                leaderless = True
                reasons.append(f"{one}: {standing.why_not}")
        if second is not None:
            return second
        if time.monotonic() > deadline or (len(every) == 1 and not leaderless):
            raise _nobody(remotes, reasons, leaderless)
        time.sleep(_PAUSE_S)
        wait_s = min(2 * wait_s, timeout_s)


def _nobody(remotes: str, reasons: Sequence[str], leaderless: bool) -> BackendUnavailable:
    said = "; ".join(reasons)
    if leaderless:
        return BackendUnavailable(
            f"fabric database {remotes} has no quorum within reach ({said}), so nothing was read "
            "or changed. Bring back the missing members or the way to them: see `nvctl db status`."
        )
    return BackendUnavailable(
        f"fabric database {remotes} does not answer ({said}). Start it with "
        "`nvctl db start`, or name the right one with --db or VIRTKIT_DB."
    )


def _optional(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _uuid(value: Any) -> str | None:
    """A UUID as OVSDB writes it, or None for an empty set."""
    return str(value[1]) if value and value[0] == "uuid" else None
