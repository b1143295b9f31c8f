"""What may be written by whoever comes in by a door with a role: OVSDB's role-based access.

A door is a row of table Connection. Everybody who comes in by one with a role has that role's
permissions and no others, and is known by the common name of his certificate (ovsdb-server(7),
"RBAC"): a row may be written if one of its columns named under `authorization` holds that name.
What may be *read* is not restricted.

The role `host` is that of node agents. They write their own Host row, claim ports, and make ports
for containers and for themselves. `Port.host` and `Address.host` say which host alone may hold
the port, and so make a port what it is: its own. They charge quotas and ask for acknowledgements,
so that what a tenant has left, `Fabric.cfg` and `Network.cfg` are numbers that a host may change.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

HOST = "host"
# Where Fabric.settings says which roles are stored.
STORED = "roles"


@dataclass(frozen=True, slots=True)
class Permission:
    """`own` is the column that must hold the writer's name; without one, any row will do."""

    table: str
    own: str | None
    insert_delete: bool
    update: tuple[str, ...]


PERMISSIONS = {
    HOST: (
        Permission(
            "Host",
            "name",
            True,
            (
                "tunnel_ip",
                "overlays",
                "underlay_mtu",
                "crush_host",
                "cfg",
                "heartbeat",
                "problems",
                "version",
            ),
        ),
        Permission("Binding", "host", True, ()),
        Permission("Attachment", "host", True, ()),
        Permission("Port", "host", True, ()),
        Permission("Address", "host", True, ()),
        Permission("Quota", None, False, ("available",)),
        Permission("Fabric", None, False, ("cfg",)),
        Permission("Network", None, False, ("cfg",)),
    )
}


def stored_as() -> str:
    """A digest of the permissions: two are equal if they allow the same."""
    return hashlib.sha256(repr(sorted(PERMISSIONS.items())).encode()).hexdigest()[:16]


def operations(doors: Sequence[str]) -> list[dict[str, Any]]:
    """OVSDB operations (RFC 7047, 5.2) after which exactly these roles and doors are stored.

    `doors` are passive targets for hosts, such as `pssl:6640:10.0.0.1`.
    """
    made: list[dict[str, Any]] = [
        {"op": "delete", "table": table, "where": []} for table in ("RBAC_Role", "RBAC_Permission")
    ]
    for role, permissions in PERMISSIONS.items():
        named = []
        for permission in permissions:
            name = f"{role}_{permission.table}"
            named.append([permission.table, ["named-uuid", name]])
            row = {
                "table": permission.table,
                # An empty name means that nobody in particular is asked for.
                "authorization": permission.own or "",
                "insert_delete": permission.insert_delete,
                "update": ["set", list(permission.update)],
            }
            made.append({"op": "insert", "table": "RBAC_Permission", "uuid-name": name, "row": row})
        columns = {"name": role, "permissions": ["map", named]}
        made.append({"op": "insert", "table": "RBAC_Role", "row": columns})
    references = []
    for number, door in enumerate(doors):
        name = f"door_{number}"
        references.append(["named-uuid", name])
        row = {"target": door, "role": HOST}
        made.append({"op": "insert", "table": "Connection", "uuid-name": name, "row": row})
    settings = ["map", [[STORED, stored_as()]]]
    made += [
        {
            "op": "update",
            "table": "Fabric",
            "where": [],
            "row": {"connections": ["set", references]},
        },
        {
            "op": "mutate",
            "table": "Fabric",
            "where": [],
            "mutations": [
                ["settings", "delete", ["set", [STORED]]],
                ["settings", "insert", settings],
            ],
        },
    ]
    return made
