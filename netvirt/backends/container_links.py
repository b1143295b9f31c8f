"""Looking into a container's network namespace, by netlink. Nothing is changed here."""

import errno
import os
import socket
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from netvirt.backends import namespaces
from netvirt.observed import LinkState
from tenancy.errors import BackendUnavailable

# IFF_UP and IFF_LOWER_UP of linux/if.h.
_UP = 0x1_0001
_MAIN_TABLE = 254  # RT_TABLE_MAIN of linux/rtnetlink.h
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# Files of proc_net(5) with the main routing tables, and where a line has the destination and its
# mask or length, in hexadecimal. Each namespace has a route to nowhere, over its loopback.
_ROUTING_TABLES = (("route", 1, 7), ("ipv6_route", 0, 1))
_NO_WAY = ("lo",)
_EVERYWHERE = {4: "0.0.0.0/0", 6: "::/0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """What is to be known of a container's namespace before it gets an interface."""

    is_our_own: bool
    has_default_route: bool


def look_into(netns: str) -> Namespace:
    """See `Namespace`. Raises `NotFound` if there is no namespace at that path."""
    with namespaces.opened(netns) as descriptor:
        own = Path("/proc/thread-self/ns/net").stat().st_ino
        is_our_own = os.fstat(descriptor).st_ino == own
        with namespaces.entered(descriptor):
            has_default_route = any(map(_has_default_route, _ROUTING_TABLES))
    return Namespace(is_our_own=is_our_own, has_default_route=has_default_route)


def _has_default_route(table: tuple[str, int, int]) -> bool:
    name, destination, length = table
    try:
        lines = Path("/proc/thread-self/net", name).read_text().splitlines()
    except FileNotFoundError:  # a kernel without IPv6
        return False
    columns = (line.split() for line in lines)
    return any(
        not row[destination].strip("0") and not row[length].strip("0") and row[-1] not in _NO_WAY
        for row in columns
        if len(row) > length
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
        }
        return LinkState(
            mac=link.get_attr("IFLA_ADDRESS"),
            mtu_bytes=link.get_attr("IFLA_MTU"),
            up=link["flags"] & _UP == _UP,
            peer=link.get_attr("IFLA_LINK"),
            addresses=frozenset(addresses),
            routes=frozenset(routes),
        )


def _route(version: int, found: Any) -> tuple[str, str | None]:
    destination = found.get_attr("RTA_DST")
    text = f"{destination}/{found['dst_len']}" if destination else _EVERYWHERE[version]
    return str(ip_network(text)), found.get_attr("RTA_GATEWAY")
