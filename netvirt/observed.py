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
    `attachment` is the container and its interface's name, if the CNI made it.
    """

    name: str
    ofport: int | None
    iface_id: UUID | None
    attachment: tuple[str, str] | None = None
    type: str = ""
    error: str | None = None
    mac: str | None = None
    mtu: int | None = None
    ifindex: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """An interface in a container's namespace, as the kernel has it.

    `addresses` are written with their prefix length. `routes` are all of the namespace's, since
    other plugins add some over other interfaces: destination, and gateway or None. `up` means that
    its other end is up, too; `peer` is the number of that end's link.
    """

    mac: str
    mtu_bytes: int
    up: bool
    peer: int | None
    addresses: frozenset[str]
    routes: frozenset[tuple[str, str | None]]
