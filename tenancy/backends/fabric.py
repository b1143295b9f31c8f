"""The connection to the fabric database.

Writers speak OVSDB's JSON-RPC directly: they read the few rows that they need, decide, and send
one transaction that is refused as a whole if what they read has changed. Nothing is replicated
here; agents, which do follow the database, use `tenancy.backends.watch`.

Of a cluster it is the leader that is asked, because what is read there is the newest. When the
connection is lost, another member is looked for and the same is asked again: a change so that it
is made once (`Changes.may_be_sent_again`).
"""

import contextlib
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar
from uuid import UUID

from tenancy.backends import codec, standing
from tenancy.backends.codec import DATABASE, Row, Value
from tenancy.backends.rpc import ConnectionLost, Rpc
from tenancy.backends.transaction import (
    Changes,
    GuardFailed,
    Transaction,
    UniqueViolation,
    where,
)
from tenancy.errors import BackendUnavailable, Conflict

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 5.0
# Writers that lose a race wait a random moment and read again; this bounds how long.
CONTENTION_LIMIT_S = 20.0
# How long a command goes on when its connection is lost again and again.
RETRY_S = 30.0
# The name of the monitor that waits for hosts; one connection waits for one thing at a time.
_WAIT = "virtkit-wait"


class Fabric:
    """One connection to the fabric database. Not for use by several threads at once."""

    def __init__(self, remote: str, rpc: Rpc, timeout_s: float) -> None:
        self.remote = remote
        self._rpc = rpc
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, remote: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Self:
        """Connect to the member that leads, or else one that serves, of comma-separated remotes.

        Remotes are written as in ovsdb(7): `unix:PATH`, `tcp:IP:PORT`.
        """
        return cls(remote, standing.connect(remote, timeout_s), timeout_s)

    def close(self) -> None:
        self._rpc.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Reading

    def select(self, table: str, **equals: Value) -> list[Row]:
        """Rows whose columns equal the given values, `id` being the UUID; unordered."""
        return self.select_many([(table, equals)])[0]

    def select_many(self, queries: Sequence[tuple[str, Mapping[str, Value]]]) -> list[list[Row]]:
        """Several `select`s answered from one state of the database, in one round trip."""
        operations = [
            {"op": "select", "table": table, "where": where(equals)} for table, equals in queries
        ]
        results = self._ask("transact", [DATABASE, *operations])
        found = []
        for (table, _), result in zip(queries, results, strict=False):
            if "rows" not in result:
                raise self._other_schema(f"{result.get('error')}: {result.get('details')}")
            try:
                found.append([codec.decode_row(table, columns) for columns in result["rows"]])
            except KeyError as error:
                raise self._other_schema(f"table {table} has no column {error}") from error
        return found

    def find(self, table: str, **equals: Value) -> Row | None:
        """The row with these values, if there is one; for unique columns."""
        rows = self.select(table, **equals)
        return rows[0] if rows else None

    def values(self, table: str, column: str, **equals: Value) -> set[Value]:
        """What stands in one column of these rows, each value once: far less than the rows."""
        operation = {"op": "select", "table": table, "where": where(equals), "columns": [column]}
        [result] = self._rpc.call("transact", [DATABASE, operation])
        if "rows" not in result:
            raise self._other_schema(f"{result.get('error')}: {result.get('details')}")
        shape = codec.shapes()[table][column]
        return {codec.decode(shape, row[column]) for row in result["rows"]}

    def top(self) -> Row:
        """The one row of table Fabric."""
        row = self.find("Fabric")
        if row is None:
            raise BackendUnavailable(
                f"fabric database {self.remote} lacks its Fabric row, which `nvctl db start` "
                "writes into a new database. Insert it: ovsdb-client transact "
                f"{self.remote} '[\"{DATABASE}\", {json.dumps(codec.FIRST_ROW)}]'."
            )
        return row

    def schema_version(self) -> str:
        """The version of the schema that is served."""
        return str(self._ask("get_schema", [DATABASE])["version"])

    def _other_schema(self, reason: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"fabric database {self.remote} has another version's schema ({reason}). Restart it "
            "with this version: `nvctl db stop` and `nvctl db start` convert it."
        )

    # Writing

    def change(
        self,
        build: Callable[[Transaction], T],
        is_race: Callable[[UniqueViolation], bool] = lambda _: False,
    ) -> T:
        """Let `build` read and fill a transaction, and commit it; repeat while others interfere.

        `build` must read afresh each time. A unique violation is repeated if `is_race` says that
        a new choice would help. Raises `Conflict` after twenty seconds of losing.
        """
        give_up = time.monotonic() + CONTENTION_LIMIT_S
        pause_s = 0.001
        while True:
            transaction = self.transaction()
            outcome = build(transaction)
            try:
                transaction.commit()
                return outcome
            except (GuardFailed, UniqueViolation) as error:
                if isinstance(error, UniqueViolation) and not is_race(error):
                    raise
                if time.monotonic() > give_up:
                    raise Conflict(
                        "other writers keep changing the same objects. Try again."
                    ) from error
                time.sleep(random.uniform(0, pause_s))
                pause_s = min(pause_s * 2, 0.1)

    def transaction(self) -> Transaction:
        return Transaction(self.remote, self._make)

    def _make(self, changes: Changes) -> None:
        """Have changes made, once, whatever becomes of connections meanwhile."""
        operations, guards = list(changes.operations), 0
        give_up = time.monotonic() + RETRY_S
        repeated = False
        while True:
            try:
                results = self._rpc.call("transact", [DATABASE, *operations])
            except ConnectionLost as lost:
                if not changes.may_be_sent_again or time.monotonic() > give_up:
                    raise
                self._follow(lost)
                if not repeated and not changes.inserted:
                    # The first may be made yet, by whoever has it; then this one must not be.
                    required = Changes(self.remote)
                    for table, row_id in changes.deleted:
                        required.require(table, id=row_id)
                    guards = len(required.operations)
                    operations = [*required.operations, *operations]
                repeated = True
                continue
            refused = any(result and "error" in result for result in results)
            if repeated and refused and self._is_made(changes):
                changes.was_made(self.top()["cfg"], self._holders(changes.rings))
                return
            if any(result and "error" in result for result in results[:guards]):
                raise GuardFailed("what was to be deleted has changed meanwhile")
            changes.conclude(results[guards:])
            return

    def _holders(self, network: UUID | None) -> frozenset[str]:
        found = self.select("Binding", network=network) if network else []
        return frozenset(row["host"] for row in found)

    def _is_made(self, changes: Changes) -> bool:
        """Whether changes whose answer was lost have been made: all or none of them are."""
        if changes.inserted:
            table, row_id = changes.inserted[0]
            return self.find(table, id=row_id) is not None
        gone = [self.find(table, id=row_id) is None for table, row_id in changes.deleted]
        return bool(gone) and all(gone)

    def _ask(self, method: str, params: list[Any]) -> Any:
        """The answer to a question that may be asked twice."""
        give_up = time.monotonic() + RETRY_S
        while True:
            try:
                return self._rpc.call(method, params)
            except ConnectionLost as lost:
                if time.monotonic() > give_up:
                    raise
                self._follow(lost)

    def _follow(self, lost: ConnectionLost) -> None:
        """Turn to whoever leads now. One server that is there and silent is not asked again."""
        if lost.silent and "," not in self.remote:
            raise lost
        self._rpc.close()
        try:
            self._rpc = standing.connect(self.remote, self._timeout_s)
        except BackendUnavailable as error:
            raise ConnectionLost(
                f"{error} Whether the last change was made is unknown, and repeating it is safe.",
                reason=lost.reason,
                silent=lost.silent,
            ) from lost

    # Waiting

    def wait_until(
        self,
        table: str,
        satisfied: Callable[[Sequence[Row]], bool],
        timeout_s: float,
        **equals: Value,
    ) -> bool:
        """Wait for the rows with these values to satisfy; False if they don't in time.

        The monitor only tells when to look again. A notification that is passed over while we
        look is older than what we see.
        """
        deadline = time.monotonic() + timeout_s
        request = {table: [{"where": where(equals)}]}
        monitored: Rpc | None = None
        try:
            while True:
                try:
                    if monitored is not self._rpc:
                        self._rpc.call("monitor_cond", [DATABASE, _WAIT, request])
                        monitored = self._rpc
                    if satisfied(self.select(table, **equals)):
                        return True
                    if monitored is self._rpc and self._rpc.receive(deadline) is None:
                        return False
                except ConnectionLost as lost:
                    self._follow(lost)
        finally:
            if monitored is self._rpc:
                with contextlib.suppress(ConnectionLost):
                    self._rpc.call("monitor_cancel", [_WAIT])

    def wait_for_hosts(self, cfg: int, hosts: Iterable[str], timeout_s: float) -> frozenset[str]:
        """The hosts that have *not* applied everything up to `cfg` when the time is over.

        Only these hosts' rows are heard of. One that does not exist keeps nobody waiting.
        """
        clauses = [clause for name in sorted(hosts) for clause in where({"name": name})]
        if not clauses:
            return frozenset()
        deadline = time.monotonic() + timeout_s
        request = {"Host": [{"where": clauses, "columns": ["name", "cfg"]}]}
        found = self._rpc.call("monitor_cond", [DATABASE, _WAIT, request])
        lagging: dict[str, str] = {}
        try:
            while True:
                for row_id, change in found.get("Host", {}).items():
                    _note_progress(lagging, row_id, change, cfg)
                if not lagging:
                    return frozenset()
                message = self._rpc.receive(deadline)
                if message is None:
                    return frozenset(lagging.values())
                found = message.params[1] if message.method == "update2" else {}
        finally:
            self._rpc.call("monitor_cancel", [_WAIT])


def _note_progress(lagging: dict[str, str], row_id: str, change: Any, cfg: int) -> None:
    """Take in one row of an `update2` (ovsdb-server(7), 4.1.14), which leaves out what is 0."""
    if "delete" in change:
        lagging.pop(row_id, None)
        return
    row = change.get("initial", change.get("insert"))
    if row is not None and row.get("cfg", 0) < cfg:
        lagging[row_id] = row.get("name", "")
    elif change.get("modify", {}).get("cfg", 0) >= cfg:
        lagging.pop(row_id, None)
