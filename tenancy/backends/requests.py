"""Transactions and reads of the fabric database for a loop that must not block.

What is asked is sent at once, behind whatever is under way; what came of it is there some turns
of the loop later. A connection that is lost fails everything that was under way: whether such a
change was made is then unknown, and so it must be one that can be repeated or taken back.

A member of a cluster is asked first whether it is in touch with the others, and is left for another
when it says that it no longer is.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import ovs.jsonrpc
import ovs.poller

from tenancy.backends import codec, standing
from tenancy.backends import tls as _tls  # noqa: F401  (makes remotes over TLS possible)
from tenancy.backends.codec import DATABASE, Row, Value
from tenancy.backends.transaction import Changes, where
from tenancy.errors import BackendUnavailable, VirtkitError

# The name of the monitor that tells of the member's standing.
_STANDING = "virtkit-standing"
# How long a silent server may stay silent before the connection is given up.
PROBE_INTERVAL_MS = 5000
# The pause between attempts to connect, doubled each time.
FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS = 1000, 4000

_NO_STANDING = {
    "model": "standalone",
    "connected": False,
    "leader": False,
    "index": ["set", []],
    "cid": ["set", []],
    "sid": ["set", []],
}


class Pending:
    """Something asked of the database. `done` once the answer, or its absence, is certain."""

    def __init__(self) -> None:
        self.done = False
        self._results: Sequence[Any] = ()
        self._error: VirtkitError | None = None

    def settle(self, results: Sequence[Any] = (), error: VirtkitError | None = None) -> None:
        self.done, self._results, self._error = True, results, error

    def results(self) -> Sequence[Any]:
        """What the server answered, operation by operation; raises `BackendUnavailable`."""
        if self._error is not None:
            raise self._error
        return self._results


class Requests:
    """One connection to the fabric database, connected again whenever it was lost."""

    def __init__(self, remote: str) -> None:
        self.remote = remote
        self._session = ovs.jsonrpc.Session.open_multiple(
            standing.spread(remote).split(","), probe_interval=PROBE_INTERVAL_MS
        )
        self._session.reconnect.set_backoff(FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS)
        self._seqno = 0
        self._standing_asked: Any = None
        self._standing: dict[str, Any] | None = None
        self._under_way: dict[Any, Pending] = {}

    @property
    def connected(self) -> bool:
        """Whether there is a server, and one that serves."""
        return bool(self._session.is_connected()) and self._serves

    @property
    def _serves(self) -> bool:
        return self._standing is not None and standing.parse([self._standing]).serves

    def changes(self) -> Changes:
        """An empty set of changes, to be filled and handed to `commit`."""
        return Changes(self.remote)

    def commit(self, changes: Changes) -> Pending:
        """Send changes. The caller hands `results` to `changes.conclude` when it is `done`."""
        return self._transact(changes.operations)

    def select(self, queries: Sequence[tuple[str, Mapping[str, Value]]]) -> Pending:
        """Ask for rows whose columns equal these values; see `rows` for the answer."""
        return self._transact(
            [{"op": "select", "table": table, "where": where(equals)} for table, equals in queries]
        )

    def run(self) -> None:
        """Send and take in what there is. Never blocks."""
        self._session.run()
        if self._session.get_seqno() != self._seqno:
            self._seqno = self._session.get_seqno()
            self._lose()
            self._standing, self._standing_asked = None, None
        if self._standing is None and self._standing_asked is None:
            self._ask_standing()
        while (message := self._session.recv()) is not None:
            if self._learns_standing(message):
                continue
            pending = self._under_way.pop(message.id, None)
            if pending is None:
                continue
            if message.type == ovs.jsonrpc.Message.T_REPLY:
                pending.settle(message.result)
            else:
                pending.settle(error=self._unavailable(f"refused: {message.error}"))
        if not self._session.is_connected():
            self._lose()

    def wait(self, poller: ovs.poller.Poller) -> None:
        """Wake the poller up when `run` has something to do."""
        self._session.wait(poller)
        self._session.recv_wait(poller)

    def close(self) -> None:
        self._session.close()

    def _transact(self, operations: Sequence[Mapping[str, Any]]) -> Pending:
        pending = Pending()
        message = ovs.jsonrpc.Message.create_request("transact", [DATABASE, *operations])
        if not self.connected or self._session.send(message):
            pending.settle(error=self._unavailable("no connection"))
        else:
            self._under_way[message.id] = pending
        return pending

    def _ask_standing(self) -> None:
        """Have the server say what it is, now and whenever that changes."""
        if not self._session.is_connected():
            return
        wanted = {
            "columns": list(standing.STANDING_COLUMNS),
            "where": [["name", "==", DATABASE]],
        }
        message = ovs.jsonrpc.Message.create_request(
            "monitor_cond", [standing.SERVER_DATABASE, _STANDING, {"Database": [wanted]}]
        )
        if not self._session.send(message):
            self._standing_asked = message.id

    def _learns_standing(self, message: Any) -> bool:
        """Whether a message was about the server itself; it is taken in."""
        kinds = ovs.jsonrpc.Message
        if message.type == kinds.T_NOTIFY:
            if message.method != "update2" or message.params[0] != _STANDING:
                return False
            tables = message.params[1]
        elif message.id is not None and message.id == self._standing_asked:
            self._standing_asked = None
            # A server that has no such database, or not ours, is no member of a cluster.
            self._standing = dataclasses.asdict(standing.STANDALONE)
            tables = message.result if message.type == kinds.T_REPLY else {}
        else:
            return False
        for change in tables.get("Database", {}).values():
            # Columns that have their default are left out of what there is at first.
            self._standing = {
                **_NO_STANDING,
                **((self._standing or {}) if "modify" in change else {}),
                **(change.get("initial") or change.get("insert") or change.get("modify") or {}),
            }
        if self._serves:
            self._session.reset_backoff()
        else:
            self._lose()
            self._session.force_reconnect()
        return True

    def _lose(self) -> None:
        lost, self._under_way = self._under_way, {}
        for pending in lost.values():
            pending.settle(error=self._unavailable("connection lost"))

    def _unavailable(self, reason: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"fabric database {self.remote} does not answer ({reason}). See `nvctl db status`."
        )


def rows(pending: Pending, tables: Sequence[str]) -> list[list[Row]]:
    """The rows that a `select` of these tables found, query by query."""
    found = []
    # What follows a refusal has no answer.
    for table, result in zip(tables, pending.results(), strict=False):
        if "error" in result:
            raise BackendUnavailable(
                f"the fabric database refused a read of {table} ({result['error']}: "
                f"{result.get('details', '')}). Check that it serves this version's schema: "
                "`nvctl db status`."
            )
        found.append([codec.decode_row(table, columns) for columns in result["rows"]])
    return found
