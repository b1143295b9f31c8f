"""Transactions on the fabric database: operations gathered here, sent once, all or nothing."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from tenancy.backends import codec
from tenancy.backends.codec import Ref, Row, Value
from tenancy.errors import BackendUnavailable, Conflict, Refused, VirtkitError


class GuardFailed(Conflict):
    """A row that the transaction was decided upon has changed meanwhile."""


class UniqueViolation(Conflict):
    """A unique index already holds the value. `table` and `columns` name the index."""

    def __init__(self, table: str, columns: tuple[str, ...], details: str) -> None:
        super().__init__(details)
        self.table = table
        self.columns = columns


class ReferenceViolation(Conflict):
    """A row of `table` that is deleted is still referenced, or it refers to a row that is gone."""

    def __init__(self, table: str, details: str) -> None:
        super().__init__(details)
        self.table = table


class Changes:
    """A set of changes that happen together or not at all, gathered and not sent.

    Each operation may name the error to raise if *it* is the one that fails; index and reference
    violations are raised as `UniqueViolation` and `ReferenceViolation`. Whoever sends
    `operations` hands what the server answers to `conclude`.
    """

    def __init__(self, remote: str) -> None:
        self._remote = remote
        self.cfg: int | None = None
        # The hosts that held the network for which an acknowledgement was requested.
        self.holders: frozenset[str] = frozenset()
        self._operations: list[dict[str, Any]] = []
        self._on_failure: dict[int, Callable[[str], VirtkitError]] = {}
        self._cfg_at: int | None = None
        # The network whose hosts are to acknowledge, if any.
        self.rings: UUID | None = None
        self._inserted: list[tuple[str, UUID]] = []
        self._deleted: list[tuple[str, UUID]] = []

    @property
    def inserted(self) -> Sequence[tuple[str, UUID]]:
        """The rows that it makes, by table and UUID: the writer chooses the UUID, so that a change
        that is sent again can't make them twice."""
        return self._inserted

    @property
    def deleted(self) -> Sequence[tuple[str, UUID]]:
        """The rows that it deletes by their UUID."""
        return self._deleted

    @property
    def may_be_sent_again(self) -> bool:
        """Whether sending it a second time, after the first went through, changes nothing more.

        Rows that it makes or deletes show that it was made. Without any, a guard on what it
        changes refuses the second; arithmetic that nothing guards would be done twice, except on
        the counter of acknowledgements, which may skip numbers.
        """
        if self._inserted or self._deleted or any(o["op"] == "wait" for o in self._operations):
            return True
        return all(o["op"] != "mutate" or o["table"] == "Fabric" for o in self._operations)

    @property
    def operations(self) -> Sequence[Mapping[str, Any]]:
        """The operations as `transact` takes them (RFC 7047, 4.1.3), without the database."""
        return self._operations

    def insert(self, table: str, columns: Mapping[str, Value]) -> Ref:
        ref = Ref(f"row{len(self._operations)}")
        row = {column: codec.encode(value) for column, value in columns.items()}
        row_id = uuid4()
        self._inserted.append((table, row_id))
        self._operations.append(
            {
                "op": "insert",
                "table": table,
                "row": row,
                "uuid-name": ref.name,
                "uuid": str(row_id),
            }
        )
        return ref

    def insert_as(self, row_id: UUID, table: str, columns: Mapping[str, Value]) -> None:
        """Insert a row whose UUID the writer has chosen; see "Insert" in ovsdb-server(7)."""
        row = {column: codec.encode(value) for column, value in columns.items()}
        self._inserted.append((table, row_id))
        self._operations.append({"op": "insert", "table": table, "row": row, "uuid": str(row_id)})

    def update(self, row: Row, columns: Mapping[str, Value]) -> None:
        encoded = {column: codec.encode(value) for column, value in columns.items()}
        self._operations.append(
            {"op": "update", "table": row.table, "where": where({"id": row.id}), "row": encoded}
        )

    def delete(self, row: Row) -> None:
        self._deleted.append((row.table, row.id))
        self.delete_where(row.table, id=row.id)

    def delete_where(self, table: str, **equals: Value) -> None:
        self._operations.append({"op": "delete", "table": table, "where": where(equals)})

    def mutate(
        self,
        table: str,
        equals: Mapping[str, Value],
        mutations: Sequence[tuple[str, str, Value]],
        on_failure: Callable[[str], VirtkitError] | None = None,
    ) -> None:
        """Arithmetic in the server (RFC 7047 5.2.4); refused if it leaves the schema's range."""
        if on_failure:
            self._on_failure[len(self._operations)] = on_failure
        self._operations.append(
            {
                "op": "mutate",
                "table": table,
                "where": where(equals),
                "mutations": [[c, op, codec.encode(value)] for c, op, value in mutations],
            }
        )

    def raw(self, operation: Mapping[str, Any]) -> None:
        """An operation as RFC 7047, 5.2 has it, encoded already."""
        self._operations.append(dict(operation))

    def guard(self, row: Row, *columns: str) -> None:
        """Go through only if these columns are still as read; without columns, if the row is."""
        if columns:
            rows = [{column: codec.encode(row[column]) for column in columns}]
            self._wait(row.table, {"id": row.id}, columns, "==", rows)
        else:
            self.require(row.table, id=row.id)

    def require(
        self,
        table: str,
        on_failure: Callable[[str], VirtkitError] | None = None,
        /,
        **equals: Value,
    ) -> None:
        """Go through only if such a row exists at commit."""
        if on_failure:
            self._on_failure[len(self._operations)] = on_failure
        self._wait(table, equals, (), "!=", [])

    def require_none(self, table: str, **equals: Value) -> None:
        """Go through only if no such row exists at commit."""
        self._wait(table, equals, (), "==", [])

    def require_same(self, table: str, column: str, rows: Iterable[Row], **equals: Value) -> None:
        """Go through only if the rows with these values are still the ones that were read, to be
        told apart by a column that never changes."""
        found = [{column: codec.encode(row[column])} for row in rows]
        self._wait(table, equals, (column,), "==", found)

    def request_acknowledgement(self, network: UUID) -> None:
        """Ask the hosts that hold a network to say when they have applied this.

        After commit, `cfg` is the number that they will acknowledge, and `holders` are those with
        a port of the network bound before the operations that come after this call.
        """
        self.mutate("Fabric", {}, [("cfg", "+=", 1)])
        self.mutate("Network", {"id": network}, [("cfg", "+=", 1)])
        self._cfg_at, self.rings = len(self._operations), network
        self._operations.append(
            {"op": "select", "table": "Fabric", "where": [], "columns": ["cfg"]}
        )
        # Rows that are equal in the columns that are asked for are sent once: a row for a host,
        # however many ports it has.
        self._operations.append(
            {
                "op": "select",
                "table": "Binding",
                "where": where({"network": network}),
                "columns": ["host"],
            }
        )

    def conclude(self, results: Sequence[Any]) -> None:
        """Raise what the server refused; else take over `cfg`, if it was asked for."""
        for index, result in enumerate(results):
            if result and "error" in result:
                raise self._failure(index, result["error"], result.get("details", ""))
        if self._cfg_at is not None:
            rows = results[self._cfg_at]["rows"]
            self.cfg = rows[0]["cfg"] if rows else 0
            self.holders = frozenset(row["host"] for row in results[self._cfg_at + 1]["rows"])

    def was_made(self, cfg: int, holders: frozenset[str]) -> None:
        """Take note that it was made although its answer was lost.

        `cfg` is the present one and `holders` the hosts that hold the network now: whoever waits
        for them waits for no less than this change.
        """
        if self._cfg_at is not None:
            self.cfg, self.holders = cfg, holders

    def _wait(
        self,
        table: str,
        equals: Mapping[str, Value],
        columns: tuple[str, ...],
        until: str,
        rows: list[dict[str, Any]],
    ) -> None:
        self._operations.append(
            {
                "op": "wait",
                "timeout": 0,
                "table": table,
                "where": where(equals),
                "columns": list(columns) or ["_uuid"],
                "until": until,
                "rows": rows,
            }
        )

    def _failure(self, index: int, error: str, details: str) -> VirtkitError:
        if error == "permission error":
            return Refused(
                f"fabric database {self._remote} does not let this machine's certificate make the "
                f"change ({details}). Run the command as an operator, or on the host concerned."
            )
        if index in self._on_failure:
            return self._on_failure[index](details)
        if error == "timed out":
            return GuardFailed(details)
        if error == "constraint violation" and index >= len(self._operations):
            table, columns = _parse_index_violation(details)
            if table:
                return UniqueViolation(table, columns, details)
        if error == "referential integrity violation":
            return ReferenceViolation(_parse_reference_violation(details), details)
        return BackendUnavailable(
            f"fabric database {self._remote} refused a change ({error}: {details}). "
            "Check that it serves this version's schema: `nvctl db status`."
        )


class Transaction(Changes):
    """Changes that are sent, and waited for, by `commit`."""

    def __init__(self, remote: str, send: Callable[[Changes], None]) -> None:
        """`send` has the changes made once, or raises why they were not."""
        super().__init__(remote)
        self._send = send

    def commit(self) -> None:
        if self._operations:
            self._send(self)


def where(equals: Mapping[str, Value]) -> list[Any]:
    """Equality conditions as OVSDB writes them; `id` stands for the row's UUID."""
    return [["_uuid" if c == "id" else c, "==", codec.encode(v)] for c, v in equals.items()]


# The three sentences of ovsdb-server's transaction.c that carry a table's name.
_INDEX = re.compile(r'multiple rows in "(\w+)" table .* for index on columns? (.*?)\.  ')
_REFERENCES = re.compile(r"cannot delete (\w+) row|Table (\w+) column")


def _parse_index_violation(details: str) -> tuple[str, tuple[str, ...]]:
    found = _INDEX.search(details)
    return (found[1], tuple(re.findall(r'"(\w+)"', found[2]))) if found else ("", ())


def _parse_reference_violation(details: str) -> str:
    found = _REFERENCES.search(details)
    return (found[1] or found[2]) if found else ""
