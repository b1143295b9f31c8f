"""What is in a file of an OVSDB database that is no cluster's: a backup, or a standalone one.

Pure: bytes in, schema and rows out. The format is that of ovsdb(5): records, each with a header
`OVSDB JSON LENGTH SHA1`, the first of them the schema, the others transactions. OVS's own readers
take a file whose last record is damaged up to there, with a warning; a backup must be whole.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenancy.errors import InvalidRequest

_HEADER = re.compile(rb"OVSDB (JSON|CLUSTER) (\d+) ([0-9a-f]{40})\n")
STANDALONE, CLUSTER = "JSON", "CLUSTER"

Columns = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """A database: its schema, and table → UUID → columns as JSON. Columns that have their default
    may be missing."""

    schema: Mapping[str, Any]
    rows: Mapping[str, Mapping[str, Columns]]

    @property
    def name(self) -> str:
        return str(self.schema.get("name"))

    @property
    def version(self) -> str:
        return str(self.schema.get("version", ""))

    def counts(self) -> dict[str, int]:
        """How many rows there are, of tables that have any."""
        return {table: len(found) for table, found in sorted(self.rows.items()) if found}


def model(head: bytes) -> str | None:
    """STANDALONE or CLUSTER, by the beginning of a file; None if it is no database."""
    found = _HEADER.match(head)
    return found[1].decode() if found else None


def parse(name: str, data: bytes) -> Contents:
    """The contents of a file. Raises InvalidRequest, naming it by `name`, unless it is whole."""
    records = _records(name, data)
    if not records or "tables" not in records[0]:
        raise InvalidRequest(f"{name} is no database's file. Name one that nvctl db backup made.")
    rows: dict[str, dict[str, dict[str, Any]]] = {table: {} for table in records[0]["tables"]}
    for transaction in records[1:]:
        for table, changed in transaction.items():
            # _date, _comment and _is_diff are of the transaction.
            if table.startswith("_"):
                continue
            if transaction.get("_is_diff") and any(
                row is not None and row_id in rows[table] for row_id, row in changed.items()
            ):
                raise InvalidRequest(
                    f"{name} is a server's own file, with changes after one another. Make a "
                    "backup of it first: nvctl db start, nvctl db backup."
                )
            for row_id, row in changed.items():
                if row is None:
                    rows[table].pop(row_id, None)
                else:
                    rows[table].setdefault(row_id, {}).update(row)
    return Contents(schema=records[0], rows=rows)


def check_fabric(name: str, contents: Contents, database: str) -> None:
    """Raise InvalidRequest unless this is a whole fabric: one that was cut off between two records
    lacks its one row of table Fabric."""
    if contents.name != database:
        raise InvalidRequest(
            f"{name} holds database {contents.name!r}, not {database}. Name a backup of a fabric."
        )
    if len(contents.rows.get("Fabric", {})) != 1:
        raise InvalidRequest(
            f"{name} has no row of table Fabric, so it is not whole. Name another backup."
        )


def _records(name: str, data: bytes) -> list[Any]:
    records: list[Any] = []
    at = 0
    while at < len(data):
        header = _HEADER.match(data, at)
        if header is None:
            if not records:
                return []
            raise _damaged(name, at)
        if header[1].decode() != STANDALONE:
            raise InvalidRequest(
                f"{name} is the file of a cluster's member. Name a backup; or, if the cluster is "
                f"lost for good, make another of it: nvctl db init --from {name}."
            )
        at = header.end()
        body = data[at : at + int(header[2])]
        if len(body) != int(header[2]) or hashlib.sha1(body).hexdigest().encode() != header[3]:
            raise _damaged(name, at)
        records.append(json.loads(body))
        at += len(body)
    return records


def _damaged(name: str, at: int) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is damaged (the checksum at byte {at} is wrong). Name another backup; nothing "
        "was changed."
    )
