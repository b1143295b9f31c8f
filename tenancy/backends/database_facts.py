"""What each server of the fabric database says of itself, asked one by one and within seconds."""

import json
from typing import Any

from tenancy.backends import codec
from tenancy.backends.codec import DATABASE
from tenancy.backends.rpc import Rpc
from tenancy.database_checks import ServerFacts
from tenancy.errors import BackendUnavailable

ANSWER_S = 5.0
# The database in which ovsdb-server tells of those it serves; ovsdb-server(7).
_OWN = "_Server"


def ask(remote: str) -> ServerFacts:
    """Whether the server at one remote answers, with which schema, and how its cluster is."""
    try:
        rpc = Rpc.connect(remote, ANSWER_S)
    except BackendUnavailable as error:
        return ServerFacts(remote=remote, failure=str(error))
    try:
        schema = rpc.call("get_schema", [DATABASE])
        answer = rpc.call("transact", [_OWN, _select()])
    except BackendUnavailable as error:
        return ServerFacts(remote=remote, failure=str(error))
    finally:
        rpc.close()
    row = (answer[0].get("rows") or [{}])[0] if answer else {}
    return ServerFacts(
        remote=remote,
        schema=str(schema.get("version")) if isinstance(schema, dict) else None,
        model=row.get("model"),
        connected=bool(row.get("connected", True)),
    )


def own_schema() -> str:
    """The version of the schema that this program knows."""
    return str(json.loads(codec.schema_text())["version"])


def _select() -> dict[str, Any]:
    return {
        "op": "select",
        "table": "Database",
        "where": [["name", "==", DATABASE]],
        "columns": ["model", "connected", "leader"],
    }
