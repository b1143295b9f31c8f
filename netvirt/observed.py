"""What a host's switch reports, as records: the observed side of the agent's comparison.

The adapters in `netvirt.backends` fill these; pure modules read them.
"""

from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class InstalledFlow:
    """A flow that is in the switch: what names it, and what it has counted."""

    table: int
    priority: int
    cookie: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface of the integration bridge, as Open vSwitch sees it now.

    `ofport` is None until the switch has opened the device, or when it can't or the device has
    gone: then `error` says why. `iface_id` is the port's id if `external_ids:iface-id` holds one.
    """

    name: str
    ofport: int | None
    iface_id: UUID | None
    type: str = ""
    error: str | None = None
    mac: str | None = None
    mtu: int | None = None
    ifindex: int | None = None
