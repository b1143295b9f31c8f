"""Copies of the fabric database: made from one state of it, and put back in one transaction.

A backup is a file of OVSDB's own format, with every row and its UUID, which ovsdb-server could
serve and ovsdb-tool can read. What belongs to the servers and not to the fabric (roles, doors,
names of members) is in it, and is not put back: who is restored into keeps his own.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tenancy import dbfile, roles
from tenancy.backends import codec, embedded, standing
from tenancy.backends.codec import DATABASE
from tenancy.backends.rpc import Rpc
from tenancy.dbfile import Contents
from tenancy.errors import BackendUnavailable, Conflict, InvalidRequest, Refused, VerificationFailed
from tenancy.members import PREFIX

# For all that there is, in one message.
TIMEOUT_S = 60
# Tables that say how servers are reached, and by whom.
SERVERS_OWN = ("Connection", "RBAC_Role", "RBAC_Permission")
_ATTEMPTS = 5


def save(remote: str, file: Path, *, tls_options: list[str], replace: bool) -> Contents:
    """Write a backup of what the leader has to `file`, mode 0600: whole, or not at all."""
    if file.is_dir():
        raise InvalidRequest(f"{file} is a directory. Name a file in it.")
    if file.exists() and not replace:
        raise Refused(f"{file} exists. Name another file, or give --replace.")
    rpc = standing.connect(remote, TIMEOUT_S)
    chosen = rpc.remote
    rpc.close()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    except OSError as error:
        raise BackendUnavailable(
            f"{file} can't be written ({error.strerror}). Name a file in a directory that is there "
            "and that you may write."
        ) from error
    fresh = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target:
            _dump(chosen, target, tls_options)
            target.flush()
            os.fsync(descriptor)
        contents = read(fresh, called=f"what {chosen} has sent")
        fresh.replace(file)
    except OSError as error:
        raise BackendUnavailable(
            f"{file} can't be written ({error.strerror}). Make room, or name another file."
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    return contents


def read(file: Path, *, called: str | None = None) -> Contents:
    """A backup that is whole, its rows as this version's schema has them. Changes nothing."""
    name = called or str(file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"{name} can't be read ({error.strerror}). Name a file that nvctl db backup made."
        ) from error
    contents = dbfile.parse(name, data)
    dbfile.check_fabric(name, contents, DATABASE)
    ours = json.loads(codec.schema_text())
    if contents.version == ours["version"]:
        return contents
    if _number(contents.version) > _number(ours["version"]):
        raise InvalidRequest(
            f"{name} has schema {contents.version}, and this virtkit knows {ours['version']}. "
            "Restore it with the version that made it, or a later one."
        )
    with tempfile.TemporaryDirectory() as directory:
        copy, schema = Path(directory) / "copy.db", Path(directory) / "schema"
        copy.write_bytes(data)
        schema.write_text(codec.schema_text())
        embedded.tool("convert", copy, schema)
        embedded.tool("compact", copy)
        return dbfile.parse(name, copy.read_bytes())


def restore(remote: str, contents: Contents, *, replace: bool) -> None:
    """Have the database hold what the backup holds, in one transaction.

    Refused if it holds anything already, unless `replace` is given. Rows that are there with the
    same UUID are changed and not made anew, so that who follows hears of differences only.
    """
    rpc = standing.connect(remote, TIMEOUT_S)
    try:
        for _ in range(_ATTEMPTS):
            present = _present(rpc)
            held = {table: len(rows) for table, rows in present.items() if rows}
            held.pop("Fabric", None)
            if held and not replace:
                said = ", ".join(f"{count} of {table}" for table, count in sorted(held.items()))
                raise Refused(
                    f"fabric database {remote} is not empty: it has rows ({said}), which would be "
                    "replaced by the backup's. Give --replace if that is what you want."
                )
            if _commit(rpc, present, contents):
                _verify(_present(rpc), contents)
                return
    finally:
        rpc.close()
    raise Conflict(
        f"fabric database {remote}: others keep adding and removing rows. Stop them, or try again."
    )


def _commit(rpc: Rpc, present: Mapping[str, Mapping[str, Any]], contents: Contents) -> bool:
    """Whether it went through; not, if rows came or went since `present` was read."""
    guards: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
    for table in _tables():
        here, wanted = present[table], contents.rows.get(table, {})
        if table == "Fabric":
            changes.append(_top_change(here, wanted))
            continue
        uuids = [{"_uuid": ["uuid", row_id]} for row_id in here]
        guards.append(_wait(table, uuids))
        for row_id in here.keys() - wanted.keys():
            changes.append({"op": "delete", "table": table, "where": _is(row_id)})
        for row_id, columns in wanted.items():
            row = {**defaults(table), **columns}
            if row_id in here:
                changes.append({"op": "update", "table": table, "where": _is(row_id), "row": row})
            else:
                changes.append({"op": "insert", "table": table, "uuid": row_id, "row": row})
    answer = rpc.call("transact", [DATABASE, *guards, *changes])
    refused = [one for one in answer if one and "error" in one]
    if refused and refused[0]["error"] == "timed out":
        return False
    if refused:
        raise BackendUnavailable(
            f"fabric database {rpc.remote} refused the backup, and nothing was changed "
            f"({refused[0]['error']}: {refused[0].get('details')}). Name another backup."
        )
    return True


def _present(rpc: Rpc) -> dict[str, dict[str, Any]]:
    """All rows, from one state."""
    tables = _tables()
    answer = rpc.call(
        "transact", [DATABASE, *({"op": "select", "table": t, "where": []} for t in tables)]
    )
    found: dict[str, dict[str, Any]] = {}
    for table, one in zip(tables, answer, strict=False):
        if "rows" not in one:
            raise BackendUnavailable(
                f"fabric database {rpc.remote} has another version's schema ({one}). Restart it "
                "with this version: `nvctl db stop` and `nvctl db start` convert it."
            )
        found[table] = {row["_uuid"][1]: row for row in one["rows"]}
    return found


def _verify(present: Mapping[str, Mapping[str, Any]], contents: Contents) -> None:
    """See that rows are there, all and no others. Hosts may have reported since."""
    for table in _tables():
        if table != "Fabric" and present[table].keys() != contents.rows.get(table, {}).keys():
            if table in ("Host", "Binding", "Attachment"):
                continue
            raise VerificationFailed(
                f"table {table} has {len(present[table])} rows, and the backup "
                f"{len(contents.rows.get(table, {}))}: another writer is at work. See "
                "`nvctl db status`."
            )


def _top_change(here: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The one row: counters don't go back, and the servers' settings stay."""
    now, then = next(iter(here.values())), next(iter(wanted.values()))
    own = [pair for pair in now["settings"][1] if _is_servers(pair[0])]
    restored = [p for p in then.get("settings", ["map", []])[1] if not _is_servers(p[0])]
    row = {
        "cfg": max(now["cfg"], then.get("cfg", 0)),
        "next_segment": max(now["next_segment"], then.get("next_segment", 1)),
        "settings": ["map", [*own, *restored]],
    }
    return {"op": "update", "table": "Fabric", "where": [], "row": row}


def _is_servers(key: str) -> bool:
    return key == roles.STORED or key.startswith(PREFIX)


def _tables() -> list[str]:
    return [table for table in codec.shapes() if table not in SERVERS_OWN]


def defaults(table: str) -> dict[str, Any]:
    """What the columns of a table hold that a file leaves out (RFC 7047, 5.2.1)."""
    columns = json.loads(codec.schema_text())["tables"][table]["columns"]
    return {name: _default(spec["type"]) for name, spec in columns.items()}


def _default(spec: Any) -> Any:
    if isinstance(spec, Mapping):
        if "value" in spec:
            return ["map", []]
        if (spec.get("min", 1), spec.get("max", 1)) != (1, 1):
            return ["set", []]
        key = spec["key"]
        if isinstance(key, Mapping):
            if "enum" in key:
                # Of an enumeration the first, in order, is the default.
                return sorted(key["enum"][1])[0]
            key = key["type"]
        spec = key
    return {"integer": 0, "real": 0.0, "boolean": False, "string": ""}.get(
        spec, ["uuid", "00000000-0000-0000-0000-000000000000"]
    )


def _wait(table: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "op": "wait",
        "timeout": 0,
        "table": table,
        "where": [],
        "columns": ["_uuid"],
        "until": "==",
        "rows": rows,
    }


def _is(row_id: str) -> list[Any]:
    return [["_uuid", "==", ["uuid", row_id]]]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _dump(remote: str, target: Any, tls_options: list[str]) -> None:
    argv = [
        *("ovsdb-client", *tls_options, f"--timeout={TIMEOUT_S}", "--no-leader-only"),
        *("backup", remote, DATABASE),
    ]
    try:
        done = subprocess.run(argv, stdout=target, stderr=subprocess.PIPE, timeout=TIMEOUT_S + 5)
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "ovsdb-client is not installed. Install Open vSwitch: apt-get install "
            "openvswitch-switch."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailable(
            f"fabric database {remote}: no backup within {TIMEOUT_S} s. See `nvctl db status`."
        ) from error
    if done.returncode:
        reason = " ".join(done.stderr.decode(errors="replace").split())
        raise BackendUnavailable(f"fabric database {remote}: no backup ({reason}).")
