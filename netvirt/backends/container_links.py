"""Looking into a container's network namespace, by netlink. Nothing is changed here."""

import errno
import socket
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from netvirt.backends import namespaces
from netvirt.observed import LinkState
from tenancy.errors import BackendUnavailable

_IFF_UP = 1
_MAIN_TABLE = 254  # RT_TABLE_MAIN of linux/rtnetlink.h
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


def is_own(netns: str) -> bool:
    """Whether this is the namespace that we are in ourselves. Raises `NotFound`."""
    with namespaces.opened(netns) as descriptor:
        own = Path("/proc/thread-self/ns/net").stat()
        return Path(f"/proc/self/fd/{descriptor}").stat().st_ino == own.st_ino


def has_default_route(netns: str) -> bool:
    """Whether the namespace has a default route, of either family. Raises `NotFound`."""
    with (
        namespaces.opened(netns) as descriptor,
        namespaces.entered(descriptor),
        IPRoute() as inside,
    ):
        return any(
            route["dst_len"] == 0
            for family in _FAMILIES.values()
            for route in inside.get_routes(family=family, table=_MAIN_TABLE)
            if route.get_attr("RTA_GATEWAY") or route.get_attr("RTA_OIF")
        )


def inspect(netns: str, name: str) -> LinkState | None:
    """The interface of this name, or None. Raises `NotFound` without the namespace."""
    with (
        namespaces.opened(netns) as descriptor,
        namespaces.entered(descriptor),
        IPRoute() as inside,
    ):
        try:
            link = inside.link("get", ifname=name)[0]
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise BackendUnavailable(
                f"interface {name} in network namespace {netns}: the kernel refuses ({error})."
            ) from error
        index = link["index"]
        addresses = {
            f"{found.get_attr('IFA_ADDRESS')}/{found['prefixlen']}"
            for found in inside.get_addr(index=index)
        }
        routes = {
            _route(version, found)
            for version, family in _FAMILIES.items()
            for found in inside.get_routes(family=family, table=_MAIN_TABLE)
            if found.get_attr("RTA_OIF") == index
        }
        return LinkState(
            mac=link.get_attr("IFLA_ADDRESS"),
            mtu_bytes=link.get_attr("IFLA_MTU"),
            up=bool(link["flags"] & _IFF_UP),
            addresses=frozenset(addresses),
            routes=frozenset(routes),
        )


def _route(version: int, found: Any) -> tuple[str, str | None]:
    destination = found.get_attr("RTA_DST")
    text = f"{destination}/{found['dst_len']}" if destination else _EVERYWHERE[version]
    return str(ip_network(text)), found.get_attr("RTA_GATEWAY")
