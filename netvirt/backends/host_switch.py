"""This host's Open vSwitch, asked and told in single calls; agents keep a replica instead."""

from collections.abc import Mapping
from typing import Any

from tenancy.backends.rpc import Rpc
from tenancy.errors import BackendUnavailable

SWITCH = "unix:/run/openvswitch/db.sock"
_DATABASE = "Open_vSwitch"
_TIMEOUT_S = 5.0


def bridges(remote: str = SWITCH) -> frozenset[str]:
    """The names of its bridges. Raises BackendUnavailable."""
    select = {"op": "select", "table": "Bridge", "where": [], "columns": ["name"]}
    return frozenset(row["name"] for row in _transact(remote, select)[0]["rows"])


def remove_bridge(name: str, remote: str = SWITCH) -> bool:
    """Take the bridge away with all its ports; False if there is none."""
    by_name = {"table": "Bridge", "where": [["name", "==", name]]}
    (found,) = _transact(remote, {"op": "select", "columns": ["_uuid"], **by_name})
    if not found["rows"]:
        return False
    uuid = found["rows"][0]["_uuid"]
    # Rows that nothing refers to are the database's to collect.
    mutate = {
        "op": "mutate",
        "table": "Open_vSwitch",
        "where": [],
        "mutations": [["bridges", "delete", uuid]],
    }
    bump = {**mutate, "mutations": [["next_cfg", "+=", 1]]}
    _transact(remote, mutate, bump)
    return True


def _transact(remote: str, *operations: Mapping[str, Any]) -> list[Any]:
    try:
        rpc = Rpc.connect(remote, _TIMEOUT_S)
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f"Open vSwitch of this host does not answer ({error}). Install and start it: "
            "apt-get install openvswitch-switch."
        ) from error
    try:
        answers = rpc.call("transact", [_DATABASE, *operations])
    finally:
        rpc.close()
    for answer in answers:
        if answer and "error" in answer:
            raise BackendUnavailable(f"Open vSwitch of this host refuses: {answer['error']}.")
    return list(answers)
