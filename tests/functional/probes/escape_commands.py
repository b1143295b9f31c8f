"""Every command of monitors, manager, OSDs and placement groups, as the daemons list them."""

import json
from collections.abc import Callable, Iterator
from typing import Any

# Of a choice, this many are tried.
CHOICES = 5


def attempts(
    admin: Any, tenant: Any, pool: str, victim: str
) -> Iterator[tuple[str, Callable[[], tuple[int, bytes, str]]]]:
    """What is tried, named by daemon and command, and how."""
    group = f"{admin.pool_lookup(pool)}.0"
    for daemon, lister, ask in (
        ("mon", admin.mon_command, tenant.mon_command),
        ("mgr", admin.mgr_command, tenant.mgr_command),
        ("osd", lambda *a: admin.osd_command(0, *a), lambda *a: tenant.osd_command(0, *a)),
        ("pg", lambda *a: admin.pg_command(group, *a), lambda *a: tenant.pg_command(group, *a)),
    ):
        code, answer, status = lister(json.dumps({"prefix": "get_command_descriptions"}), b"")
        assert code == 0 and len(answer) > 1000, (daemon, status)
        for description in json.loads(answer).values():
            for request in _requests(description["sig"], pool, victim):
                prefix = request["prefix"]
                yield f"{daemon} {prefix}", lambda r=request, a=ask: a(json.dumps(r), b"")


def _requests(signature: list[Any], pool: str, victim: str) -> Iterator[dict[str, Any]]:
    words = [part for part in signature if isinstance(part, str)]
    prefix = " ".join(
        word
        for word in (
            *words,
            *(p["prefix"] for p in signature if isinstance(p, dict) and p["type"] == "CephPrefix"),
        )
    )
    parameters = [part for part in signature if isinstance(part, dict)]
    parameters = [part for part in parameters if part["type"] != "CephPrefix"]
    full = {part["name"]: _value(part, pool, victim) for part in parameters}
    needed = {part["name"] for part in parameters if str(part.get("req", "true")) != "false"}
    short = {name: value for name, value in full.items() if name in needed}
    seen = []
    for arguments in (full, short):
        choice = next(
            (p for p in parameters if p["type"] == "CephChoices" and p["name"] in arguments), None
        )
        for option in choice["strings"].split("|")[:CHOICES] if choice else [None]:
            chosen = dict(arguments)
            if choice and option is not None:
                chosen[choice["name"]] = [option] if choice.get("n") == "N" else option
            if chosen not in seen:
                seen.append(chosen)
                yield {"prefix": prefix, "format": "json", **chosen}


def _value(parameter: dict[str, Any], pool: str, victim: str) -> Any:
    name = parameter["name"]
    by_name = {
        "entity": f"client.virtkit.{victim}",
        "caps": ["mon", "allow *"],
        "poolstr": pool,
        "app": "rbd",
        "key": "virtkit",
        "value": "evil",
        "namespace": victim,
        "image_spec": f"{pool}/{victim}/secret",
        "sure": "--yes-i-really-mean-it",
    }
    by_type = {
        "CephString": "evil",
        "CephInt": 1,
        "CephFloat": 1.0,
        "CephBool": True,
        "CephPoolname": pool,
        "CephOsdName": 0,
        "CephPgid": "1.0",
        "CephEntityAddr": "10.255.255.1:0/1",
        "CephIPAddr": "10.255.255.1",
        "CephObjectname": "rbd_directory",
        "CephUUID": "00000000-0000-0000-0000-000000000001",
        "CephName": f"client.virtkit.{victim}",
    }
    if parameter["type"] == "CephChoices":
        value = parameter["strings"].split("|")[0]
    else:
        value = by_name.get(name, by_type.get(parameter["type"], "evil"))
    several = parameter.get("n") == "N" and not isinstance(value, list)
    return [value] if several else value
