"""Following the fabric database: a replica of just the rows that a host is interested in.

The interest is a condition per table, kept by the server; whoever watches changes it as it learns
more. Nothing here blocks: `run` takes in what has arrived, `wait` tells a poller what to wake for.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import ovs.db.idl

from tenancy.backends import codec, standing
from tenancy.backends import tls as _tls  # noqa: F401  (makes remotes over TLS possible)
from tenancy.backends.codec import Row, Shape, Value

# How long a silent server may stay silent before the connection is given up.
PROBE_INTERVAL_MS = 5000
# The pause between attempts to connect, doubled each time.
FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS = 1000, 4000
# How long a server that is there may leave a question open before it is asked again from scratch.
ANSWER_S = 10.0
# The pause after a refused write, doubled each time.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 2.0


@dataclass(frozen=True, slots=True)
class Insert:
    table: str
    columns: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Update:
    row: Row
    columns: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Delete:
    row: Row


Write = Insert | Update | Delete


class _Idl(ovs.db.idl.Idl):  # type: ignore[misc]
    """The IDL, noting which rows an update touched, and keeping values that repeat once.

    A value takes some 400 bytes in the IDL, which never changes one: it puts another in its place.
    """

    def __init__(self, remote: str, schema: Any, repeated: Mapping[str, Sequence[str]]) -> None:
        # A member that follows serves as well as the leader, a relay can't lead; and so hosts are
        # spread over members, and stay where they are when another is elected.
        super().__init__(remote, schema, probe_interval=PROBE_INTERVAL_MS, leader_only=False)
        self._repeated = repeated
        self._shared: dict[tuple[str, str, Any], Any] = {}
        self._session.reconnect.set_backoff(FIRST_BACKOFF_MS, LONGEST_BACKOFF_MS)
        self.touched: set[tuple[str, UUID]] = set()
        # The cluster that was followed last.
        self.followed: Any = None

    def force_reconnect(self) -> None:
        """Leave this server for another; the IDL does so with those that don't serve, or whose
        data is older than what was seen.

        Which is older, only numbers of one cluster say. Another that has taken its place, made
        from a backup, counts from the beginning.
        """
        now = self.cluster()
        if now is not None and now != self.followed:
            self._min_index = 0
        super().force_reconnect()

    def cluster(self) -> Any:
        """The id of the cluster at the other end, None if there is none."""
        for table in (self.server_tables or {}).values():
            for row in table.rows.values():
                if row.name == self._db.name and row.cid:
                    return row.cid[0]
        return None

    def notify(self, event: str, row: Any, updates: Any = None) -> None:  # noqa: ARG002
        # The IDL also follows the server's own _Server database.
        table = row._table.name
        if table not in self.tables:
            return
        self.touched.add((table, row.uuid))
        for column in self._repeated.get(table, ()):
            # Columns that have their default are not stored at all.
            datum = row._data.get(column)
            if datum is not None and len(datum.values) == 1:
                value = next(iter(datum.values)).value
                row._data[column] = self._shared.setdefault((table, column, value), datum)


class FabricWatch:
    """A conditional replica of some columns of the fabric database.

    `columns` gives what is replicated, table by table. Every table starts with no interest.
    `repeated` are the columns, no maps, that have the same few values in very many rows.
    """

    def __init__(
        self,
        remote: str,
        columns: Mapping[str, Sequence[str]],
        repeated: Mapping[str, Sequence[str]] = {},
    ) -> None:
        helper = ovs.db.idl.SchemaHelper(schema_json=json.loads(codec.schema_text()))
        for table, names in columns.items():
            helper.register_columns(table, list(names))
        self._columns = columns
        self._idl = _Idl(standing.spread(remote), helper, repeated)
        self._settled_once: int | None = None
        self._session_seqno: int | None = None
        self._change_seqno = 0
        self._transaction: Any = None
        self._write_failures = 0
        self.write_not_before = 0.0
        # Why the last write was refused, if it was for a reason that does not pass by itself.
        self.write_refused: str | None = None
        self._waiting_since: float | None = None
        for table in columns:
            self._idl.cond_change(table, [False])

    def close(self) -> None:
        self._idl.close()

    # Taking in

    def run(self) -> set[tuple[str, UUID]]:
        """Process what has arrived. The rows that changed, appeared or went, as (table, id).

        After a reconnect that is every row known before or now, since a server that has lost its
        history says what there is and not what has gone.
        """
        known = self._known() if self._reconnecting() else None
        self._mind_silence()
        self._idl.run()
        if self._transaction is not None:
            self._transaction_step()
        touched, self._idl.touched = self._idl.touched, set()
        if known is not None and self._idl.change_seqno != self._change_seqno:
            touched |= known | self._known()
            self._session_seqno = self._idl._session.get_seqno()
        self._change_seqno = self._idl.change_seqno
        if self.connected and self._settled_once != self._idl._session.get_seqno():
            # Should this member go, the next ones are tried at once, not after a pause.
            self._settled_once = self._idl._session.get_seqno()
            self._idl._session.reset_backoff()
            self._idl.followed = self._idl.cluster()
        return touched

    def wait(self, poller: Any) -> None:
        if self._idl._session.is_connected():
            self._idl.wait(poller)
        else:
            # The IDL would wake the poller at once, again and again, for an interest that it can
            # tell nobody.
            self._idl._session.wait(poller)
        if self._transaction is not None:
            self._transaction.wait(poller)

    @property
    def connected(self) -> bool:
        """Whether the server is there and the replica follows it.

        The IDL's state alone does not tell: it stays as it was until the next connection is made.
        """
        idl = self._idl
        return bool(idl.state == idl.IDL_S_MONITORING and idl._session.is_connected())

    @property
    def settled(self) -> bool:
        """Whether the replica holds everything that the present interest asks for."""
        return self.connected and all(
            table.condition_state.new is None and table.condition_state.requested is None
            for table in self._idl.tables.values()
        )

    # Interest

    def set_interest(self, table: str, clauses: Iterable[tuple[str, Value]]) -> None:
        """Replicate the rows in which any of these columns has its value; `id` is the UUID."""
        conditions: list[Any] = sorted(
            ["_uuid" if column == "id" else column, "==", codec.encode(value)]
            for column, value in clauses
        )
        self._idl.cond_change(table, conditions or [False])

    def set_interest_in_all(self, table: str) -> None:
        self._idl.cond_change(table, [True])

    # Reading

    def row(self, table: str, row_id: UUID) -> Row | None:
        found = self._idl.tables[table].rows.get(row_id)
        return None if found is None else self._decode(table, found)

    def rows(self, table: str) -> list[Row]:
        return [self._decode(table, row) for row in self._idl.tables[table].rows.values()]

    # Writing

    @property
    def writing(self) -> bool:
        """Whether a write is on its way. One at a time."""
        return self._transaction is not None

    def write(self, writes: Sequence[Write]) -> None:
        """Send changes as one transaction. What becomes of it shows in the replica.

        A write that fails is not repeated here: the writer compares wanted and found again, not
        before `write_not_before` on the monotonic clock.
        """
        assert self._transaction is None
        transaction = ovs.db.idl.Transaction(self._idl)
        for change in writes:
            if isinstance(change, Insert):
                row = transaction.insert(self._idl.tables[change.table])
                _assign(row, change.columns)
                continue
            row = self._idl.tables[change.row.table].rows.get(change.row.id)
            if row is None:
                continue
            if isinstance(change, Update):
                _assign(row, change.columns)
            else:
                row.delete()
        self._transaction = transaction
        self._transaction_step()

    def _transaction_step(self) -> None:
        status = self._transaction.commit()
        if status == ovs.db.idl.Transaction.INCOMPLETE:
            return
        refused = self._transaction.get_error()
        self._transaction = None
        self.write_refused = None
        if status in (ovs.db.idl.Transaction.SUCCESS, ovs.db.idl.Transaction.UNCHANGED):
            self._write_failures = 0
        else:
            self._write_failures += 1
            pause_s = min(FIRST_PAUSE_S * 2**self._write_failures, LONGEST_PAUSE_S)
            self.write_not_before = time.monotonic() + pause_s
            if status == ovs.db.idl.Transaction.ERROR:
                self.write_refused = refused

    # Inside

    def _mind_silence(self) -> None:
        """Connect anew if an answer does not come, although the server is alive."""
        if self.connected and self.settled and self._transaction is None:
            self._waiting_since = None
        elif self._waiting_since is None or not self._idl._session.is_connected():
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > ANSWER_S:
            self._waiting_since = None
            self._idl.force_reconnect()

    def _reconnecting(self) -> bool:
        return bool(self._session_seqno != self._idl._session.get_seqno())

    def _known(self) -> set[tuple[str, UUID]]:
        return {(name, row_id) for name, table in self._idl.tables.items() for row_id in table.rows}

    def _decode(self, table: str, row: Any) -> Row:
        shapes = codec.shapes()[table]
        columns = {name: _value(shapes[name], row._data[name]) for name in self._columns[table]}
        return Row(table, row.uuid, columns)


def _value(shape: Shape, datum: Any) -> Value:
    """A column's value. References stay UUIDs: the row they point to may be of no interest."""
    if shape is Shape.MAP:
        return {key.value: value.value for key, value in datum.values.items()}
    values = [atom.value for atom in datum.values]
    if shape is Shape.SET:
        return frozenset(values)
    return values[0] if values else None


def _assign(row: Any, columns: Mapping[str, Value]) -> None:
    for name, value in columns.items():
        if isinstance(value, frozenset):
            plain: Any = sorted(value)
        else:
            plain = [] if value is None else value
        setattr(row, name, plain)
