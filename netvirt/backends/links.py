"""Links of the local kernel: a port's veth or tap, and the underlay's MTU. By netlink only."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    destination: IPv4Network
    via: IPv4Address


def link_name(port_id: UUID) -> str:
    """The name of a port's link on the host: `vk` and 11 hexadecimal digits of its id."""
    raise NotImplementedError


def plug_veth(
    port_id: UUID,
    *,
    netns: str,
    name: str,
    mac: str,
    mtu: int,
    addresses: tuple[IPv4Interface, ...] = (),
    routes: tuple[Route, ...] = (),
) -> str:
    """Give a namespace an interface for a port; returns the name of the end on the host.

    `netns` is a name under /run/netns, a path, or a process id. Idempotent; undone on failure.
    """
    raise NotImplementedError


def plug_tap(
    port_id: UUID, *, mac: str, mtu: int, name: str | None = None, owner: int | None = None
) -> str:
    """Make a persistent tap for a VM; returns its name. Idempotent."""
    raise NotImplementedError


def unplug(port_id: UUID) -> bool:
    """Remove a port's link, with its other end; False if there was none. Idempotent."""
    raise NotImplementedError


def underlay_mtu(tunnel_ip: IPv4Address) -> tuple[str, int]:
    """The link that holds the tunnel endpoint's address, and its MTU in bytes."""
    raise NotImplementedError
