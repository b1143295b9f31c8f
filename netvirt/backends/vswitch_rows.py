"""Which rows of the local switch's database are replicated, and what they say, as records."""

from pathlib import Path
from typing import Any
from uuid import UUID

import ovs.db.idl
import ovs.dirs

from netvirt.observed import Interface
from tenancy.errors import BackendUnavailable

_SCHEMA = Path(ovs.dirs.PKGDATADIR) / "vswitch.ovsschema"
_OBSERVED = {
    "Open_vSwitch": ["bridges", "next_cfg", "cur_cfg"],
    "Bridge": ["name", "ports", "fail_mode", "datapath_type"],
    "Port": ["name", "interfaces"],
    "Interface": [
        "name",
        "type",
        "options",
        "external_ids",
        "mtu_request",
        "ofport_request",
        "ofport",
        "error",
        "mac_in_use",
        "mtu",
        "ifindex",
    ],
}
# The key of external_ids that tells whose interface the CNI made.
ATTACHMENT_KEY = "virtkit-attachment"
# The types of interfaces that are devices of the kernel's.
_DEVICES = ("", "system")
# The pause between attempts to connect: the server is on this machine.
_BACKOFF_MS = 1000
_GONE = "the device has been deleted"


def connect(remote: str) -> "TouchedIdl":
    """A replica that fills as it is run; raises `BackendUnavailable` if there is no schema."""
    if not _SCHEMA.exists():
        raise BackendUnavailable(
            f"Open vSwitch is not installed here (no {_SCHEMA}). "
            "Install it: `apt-get install openvswitch-switch`."
        )
    helper = ovs.db.idl.SchemaHelper(location=str(_SCHEMA))
    for table, columns in _OBSERVED.items():
        helper.register_columns(table, columns)
    return TouchedIdl(remote, helper)


class TouchedIdl(ovs.db.idl.Idl):  # type: ignore[misc]
    """The IDL, noting which rows an update touched."""

    def __init__(self, remote: str, schema: Any) -> None:
        super().__init__(remote, schema)
        self._session.reconnect.set_backoff(_BACKOFF_MS, _BACKOFF_MS)
        self.touched: set[tuple[str, UUID]] = set()

    def notify(self, _event: str, row: Any, _updates: Any = None) -> None:
        # The server also tells about itself, in tables of its own.
        if row._table.name in _OBSERVED:
            self.touched.add((row._table.name, row.uuid))


def decode(row: Any) -> Interface:
    """A row of table Interface."""
    ofport, error = _optional(row.ofport), _optional(row.error)
    if row.type in _DEVICES and _optional(row.ifindex) == 0:
        # A device that was deleted. The userspace datapath keeps its OpenFlow port all the same.
        ofport, error = None, error or _GONE
    return Interface(
        name=row.name,
        # -1 is what ovs-vswitchd writes when it can't open the device.
        ofport=ofport if ofport is not None and ofport > 0 else None,
        iface_id=_uuid(row.external_ids.get("iface-id", "")),
        attachment=_attachment(row.external_ids.get(ATTACHMENT_KEY, "")),
        type=row.type,
        error=error,
        mac=_optional(row.mac_in_use),
        mtu=_optional(row.mtu),
        # A tunnel is no device of the kernel's, and has number 0.
        ifindex=_optional(row.ifindex) or None,
    )


def attachment_id(container: str, interface: str) -> str:
    """What `ATTACHMENT_KEY` holds. Neither part has a slash in it."""
    return f"{container}/{interface}"


def _attachment(text: str) -> tuple[str, str] | None:
    container, slash, interface = text.partition("/")
    return (container, interface) if slash else None


def _optional(values: list[Any]) -> Any:
    return values[0] if values else None


def _uuid(text: str) -> UUID | None:
    """Other controllers' interfaces may carry ids that are no UUID; they are no ports of ours."""
    try:
        return UUID(text)
    except ValueError:
        return None
