"""OVSDB's JSON values to Python's and back (RFC 7047, section 5.1), led by the schema.

A scalar column is `str`, `int`, `bool` or `UUID`; an optional one may be `None`; a set is a
`frozenset`, a map a `dict`. Which of them a column is, only the schema can say: on the wire a
set of one looks like a scalar.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib import resources
from typing import Any
from uuid import UUID

Value = Any  # str | int | bool | UUID | Ref | None | frozenset[...] | Mapping[str, ...]

DATABASE = "Virtkit_Fabric"
# What makes an empty database a fabric's.
FIRST_ROW = {"op": "insert", "table": "Fabric", "row": {"cfg": 0, "next_segment": 1}}


@dataclass(frozen=True, slots=True)
class Ref:
    """A row inserted earlier in the same transaction, before it has a UUID."""

    name: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read: `row["name"]`."""

    table: str
    id: UUID
    columns: Mapping[str, Value]

    def __getitem__(self, column: str) -> Value:
        return self.columns[column]


class Shape(Enum):
    SCALAR = 1
    OPTIONAL = 2
    SET = 3
    MAP = 4


def schema_text() -> str:
    return resources.files("tenancy").joinpath("fabric.ovsschema").read_text()


@cache
def shapes() -> Mapping[str, Mapping[str, Shape]]:
    """The shape of every column: table → column → shape."""
    tables = json.loads(schema_text())["tables"]
    return {
        table: {column: _shape(spec["type"]) for column, spec in body["columns"].items()}
        for table, body in tables.items()
    }


def decode_row(table: str, columns: Mapping[str, Any]) -> Row:
    """A row of this version's schema. Columns that a later version has added are left out; raises
    `KeyError` with the name of a column that an earlier version lacks.
    """
    known = shapes()[table]
    decoded = {name: decode(shape, columns[name]) for name, shape in known.items()}
    return Row(table, UUID(columns["_uuid"][1]), decoded)


def decode(shape: Shape, value: Any) -> Value:
    if shape is Shape.SCALAR:
        return _decode_atom(value)
    if shape is Shape.MAP:
        return {_decode_atom(k): _decode_atom(v) for k, v in value[1]}
    items = value[1] if isinstance(value, list) and value[0] == "set" else [value]
    if shape is Shape.SET:
        return frozenset(_decode_atom(item) for item in items)
    return _decode_atom(items[0]) if items else None


def encode(value: Value) -> Any:
    """Encoding needs no schema: the Python type says what is meant."""
    if value is None:
        return ["set", []]
    if isinstance(value, Mapping):
        return ["map", [[encode(k), encode(v)] for k, v in value.items()]]
    if isinstance(value, (frozenset, set, tuple, list)):
        return ["set", [encode(item) for item in value]]
    if isinstance(value, UUID):
        return ["uuid", str(value)]
    if isinstance(value, Ref):
        return ["named-uuid", value.name]
    if isinstance(value, bool | int):
        return value
    return str(value)


def _shape(spec: Any) -> Shape:
    if isinstance(spec, str):
        return Shape.SCALAR
    if "value" in spec:
        return Shape.MAP
    low, high = spec.get("min", 1), spec.get("max", 1)
    if (low, high) == (1, 1):
        return Shape.SCALAR
    return Shape.OPTIONAL if (low, high) == (0, 1) else Shape.SET


def _decode_atom(atom: Any) -> Value:
    return UUID(atom[1]) if isinstance(atom, list) else atom
