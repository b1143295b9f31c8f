"""Links of the local kernel: a port's veth or tap, and the underlay's MTU. By netlink.

A port's link on the host has a name made from the port's id, so that any later call finds it:
to make it again is to find it there and mend what differs.
"""

import errno
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_interface
from typing import Any
from uuid import UUID

from pyroute2 import IPRoute, NetlinkError

from netvirt.backends import namespaces, netlink
from netvirt.backends.link_settings import disable_transmit_checksums, enable_ipv6, seclude
from netvirt.model import MINIMUM_MTU, IPAddress, IPNetwork
from tenancy.errors import AlreadyExists, BackendUnavailable, InvalidRequest, Refused, VirtkitError

_NAME = re.compile(r"[^\s/:]{1,15}")
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_OWN_NAME = re.compile(r"vk[0-9a-f]{11}")
_ALIAS = re.compile(r"virtkit [a-z]+ ([0-9a-f-]{36})")
# The least that IPv4 allows (RFC 791), and the most that a veth does.
_MTU_RANGE = range(68, 65536)
_TAP = 2  # IFF_TAP of linux/if_tun.h
# Of linux/if_addr.h.
_IFA_F_DADFAILED, _IFA_F_TENTATIVE = 0x08, 0x40

IPInterface = IPv4Interface | IPv6Interface
# NETNSA_NSID_NOT_ASSIGNED of linux/net_namespace.h, unsigned.
_NO_NAMESPACE_ID = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route; without `via`, who is asked for is on the link itself."""

    destination: IPNetwork
    via: IPAddress | None = None


def link_name(port_id: UUID) -> str:
    """The name of a port's link on the host: `vk` and 11 hexadecimal digits of its id."""
    return f"vk{port_id.hex[:11]}"


def host_mac(mac: str) -> str:
    """The MAC address of a link on the host whose port, at its other end, has `mac`.

    That is the port's alone; this is what libvirt gives to a tap.
    """
    return f"fe{mac[2:]}"


def plug_veth(
    port_id: UUID,
    *,
    netns: str,
    name: str,
    mac: str,
    mtu: int,
    addresses: Iterable[IPInterface] = (),
    routes: Iterable[Route] = (),
    checksum_offload: bool = False,
    maker: str = "port",
) -> str:
    """Give a namespace an interface for a port; returns the name of the end on the host.

    `netns` is a name under /run/netns, a path, or a process id. The interface speaks IPv6 if it
    has an address of it, and can use that at once. Without `checksum_offload` the
    namespace computes the checksums of what it sends, which it must where the switch forwards
    in userspace: nobody else would. `maker` is noted in the link's alias, for `made_by`.
    Idempotent; a link that this call made goes if it fails.
    """
    addresses = frozenset(addresses)
    speaks_ipv6 = any(address.version == 6 for address in addresses)
    _check(name, mac, mtu)
    if speaks_ipv6 and mtu < MINIMUM_MTU[6]:
        raise InvalidRequest(
            f"interface {name}: MTU {mtu} is less than the {MINIMUM_MTU[6]} that IPv6 needs "
            "(RFC 8200). Raise it, or give it no IPv6 address."
        )
    host = link_name(port_id)
    with (
        namespaces.opened(netns) as namespace,
        _translated(f"interface {name} in network namespace {netns}"),
        ExitStack() as undo,
    ):
        pair = netlink.new_veth(host, host_mac(mac), mtu, name, mac, namespace)
        with netlink.Channel() as here:
            is_new = here.try_to(pair) or _ensure_pair(port_id, pair, netns, namespace, name)
            if is_new:
                undo.callback(_remove, host)
            here.send(netlink.link_alias(host, _alias(port_id, maker)))
        seclude(host)
        with namespaces.entered(namespace):
            if speaks_ipv6:
                enable_ipv6(name)
            if not is_new:
                _mend(name, mac, mtu, addresses)
            with netlink.Channel() as inside:
                index = socket.if_nametoindex(name)
                inside.send(
                    netlink.link_up(index),
                    *(netlink.new_address(index, address) for address in addresses),
                    *(netlink.new_route(index, route.destination, route.via) for route in routes),
                )
            if not checksum_offload:
                disable_transmit_checksums(name)
        undo.pop_all()
    return host


def plug_tap(port_id: UUID, *, mac: str, mtu: int, owner: int | None = None) -> str:
    """Make a persistent tap for a VM whose own MAC address is `mac`; returns its name.

    `owner` is the user id that may open it, besides root. Idempotent.
    """
    host = link_name(port_id)
    _check(host, mac, mtu)
    with _translated(f"tap {host}"), IPRoute() as here, ExitStack() as undo:
        link = _own_link(here, host, port_id)
        if link is not None and _kind(link) != "tun":
            _delete(here, host)
            link = None
        if link is None:
            ids = {} if owner is None else {"tun_owner": owner}
            here.link("add", ifname=host, kind="tun", tun_type=_TAP, **ids)
            undo.callback(_delete, here, host)
            link = _link(here, host)
        _set(here, link, address=host_mac(mac))
        seclude(host)
        here.link("set", index=link["index"], mtu=mtu, ifalias=_alias(port_id), state="up")
        undo.pop_all()
    return host


def index(port_id: UUID) -> int | None:
    """The kernel's number of a port's link, another one whenever it is made anew; None without."""
    host = link_name(port_id)
    with _translated(f"link {host}"), IPRoute() as here:
        link = _find(here, host)
    return None if link is None else int(link["index"])


def unplug(port_id: UUID) -> bool:
    """Remove a port's link, with its other end; False if there was none. Idempotent."""
    host = link_name(port_id)
    with _translated(f"link {host}"), IPRoute() as here:
        return _own_link(here, host, port_id) is not None and _delete(here, host)


def made_by(maker: str) -> list[UUID]:
    """The ports whose links were made with this `maker`, and are still here."""
    with _translated("links"), IPRoute() as here:
        aliases = [link.get_attr("IFLA_IFALIAS") or "" for link in here.get_links()]
    ports = (_made_for(alias) for alias in aliases if alias.startswith(f"virtkit {maker} "))
    return [port for port in ports if port is not None]


def nameless() -> frozenset[str]:
    """Veths that look like a port's, and don't say of which: being made, or left half-made."""
    with _translated("links"), IPRoute() as here:
        return frozenset(
            name
            for link in here.get_links()
            if _OWN_NAME.fullmatch(name := link.get_attr("IFLA_IFNAME"))
            and _kind(link) == "veth"
            and not link.get_attr("IFLA_IFALIAS")
        )


def remove_nameless(name: str) -> None:
    """Delete such a link, if it still says of nobody that it is his. Idempotent."""
    with _translated(f"link {name}"), IPRoute() as here:
        link = _find(here, name)
        if link is not None and not link.get_attr("IFLA_IFALIAS"):
            _delete(here, name)


def underlay_mtu(tunnel_ip: IPv4Address) -> tuple[str, int]:
    """The link that holds the tunnel endpoint's address, and its MTU in bytes."""
    with _translated(f"tunnel endpoint {tunnel_ip}"), IPRoute() as here:
        for address in here.get_addr(family=socket.AF_INET):
            if address.get_attr("IFA_LOCAL") == str(tunnel_ip):
                link = here.link("get", index=address["index"])[0]
                return link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU")
    raise InvalidRequest(
        f"tunnel endpoint {tunnel_ip}: no interface of this host has this address. "
        "Give one that `ip address` shows, and that the other hosts reach."
    )


def _check(name: str, mac: str, mtu: int) -> None:
    if not _NAME.fullmatch(name) or name in (".", "..", "all", "default"):
        raise InvalidRequest(
            f"interface name {name!r} is none that Linux takes: choose 1 to 15 characters "
            "without space, `/` and `:`."
        )
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise InvalidRequest(
            f"interface {name}: {mac!r} is no unicast MAC address. Write it like 0a:00:00:00:00:01."
        )
    if mtu not in _MTU_RANGE:
        raise InvalidRequest(
            f"interface {name}: MTU {mtu} is outside {_MTU_RANGE.start} to {_MTU_RANGE.stop - 1}."
        )


def _link(netlink: IPRoute, name: str) -> Any:
    return netlink.link("get", ifname=name)[0]


def _find(netlink: IPRoute, name: str) -> Any:
    """The link of this name, or None."""
    try:
        return _link(netlink, name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise


def _kind(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    kind: str | None = info.get_attr("IFLA_INFO_KIND") if info else None
    return kind


def _alias(port_id: UUID, maker: str = "port") -> str:
    return f"virtkit {maker} {port_id}"


def _made_for(alias: str) -> UUID | None:
    found = _ALIAS.fullmatch(alias)
    return UUID(found[1]) if found else None


def _own_link(here: IPRoute, host: str, port_id: UUID) -> Any:
    """The port's link on the host, or None; raises `Refused` if the name is somebody else's.

    One without an alias is ours, too: whoever made it was killed before giving it one.
    """
    link = _find(here, host)
    alias = (link.get_attr("IFLA_IFALIAS") or "") if link is not None else ""
    if alias and _made_for(alias) != port_id:
        raise Refused(
            f"link {host} belongs to {alias!r}, not to port {port_id}. "
            f"Rename or delete it: `ip link delete {host}`."
        )
    return link


def _delete(here: IPRoute, name: str) -> bool:
    """Delete a link, which may just have gone with its namespace; whether it was there."""
    try:
        here.link("del", ifname=name)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return False
        raise
    return True


def _remove(name: str) -> None:
    with IPRoute() as here:
        _delete(here, name)


def _is_pair(here: IPRoute, link: Any, namespace: int, name: str) -> bool:
    """Whether the other end of this veth is the link of that name in the namespace."""
    if _kind(link) != "veth":
        return False
    with namespaces.entered(namespace), IPRoute() as inside:
        other = _find(inside, name)
    # Indexes are counted in each namespace, so that both ends' must fit and the namespace, too.
    return (
        other is not None
        and _kind(other) == "veth"
        and link.get_attr("IFLA_LINK") == other["index"]
        and other.get_attr("IFLA_LINK") == link["index"]
        and link.get_attr("IFLA_LINK_NETNSID") == _namespace_id(here, namespace)
    )


def _namespace_id(here: IPRoute, namespace: int) -> int | None:
    """The number by which our namespace calls another; None for itself or an unknown one."""
    number = here.get_netnsid(fd=namespace)["nsid"]
    return None if number == _NO_NAMESPACE_ID else int(number)


def _ensure_pair(port_id: UUID, pair: Any, netns: str, namespace: int, name: str) -> bool:
    """Find the port's pair, or make it in the place of a rest of one; whether it is new."""
    host = link_name(port_id)
    with IPRoute() as here:
        link = _own_link(here, host, port_id)
        if link is not None and _is_pair(here, link, namespace, name):
            here.link("set", index=link["index"], mtu=pair.get_attr("IFLA_MTU"), state="up")
            return False
        if link is not None:
            _delete(here, host)
    with netlink.Channel() as fresh:
        if not fresh.try_to(pair):
            raise AlreadyExists(
                f"network namespace {netns} already has an interface {name}, of another port or "
                "not of virtkit's. Choose another name, or unplug the other port first."
            )
    return True


def _mend(name: str, mac: str, mtu: int, wanted: frozenset[IPInterface]) -> None:
    """Bring back what was changed on an interface, but for what is missing."""
    with IPRoute() as inside:
        end = _link(inside, name)
        _set(inside, end, address=mac, mtu=mtu)
        for entry in inside.get_addr(index=end["index"]):
            address = ip_interface((entry.get_attr("IFA_ADDRESS"), entry["prefixlen"]))
            # Every interface that speaks IPv6 has a link-local address; the kernel sees to it.
            if address.version == 6 and address.is_link_local:
                continue
            in_doubt = entry["flags"] & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)
            if address not in wanted or in_doubt:
                ip, prefix = str(address.ip), address.network.prefixlen
                inside.addr("del", index=end["index"], address=ip, prefixlen=prefix)


def _set(netlink: IPRoute, link: Any, **wanted: str | int) -> None:
    """Write what differs: some settings make the kernel announce a change even if there is none."""
    differing = {
        key: value for key, value in wanted.items() if link.get_attr(f"IFLA_{key.upper()}") != value
    }
    if differing:
        netlink.link("set", index=link["index"], **differing)


@contextmanager
def _translated(subject: str) -> Iterator[None]:
    """The kernel's refusals as ours, saying what was being done to what."""
    try:
        yield
    except NetlinkError as error:
        raise _refusal(subject, error.code, str(error)) from error
    except OSError as error:
        raise _refusal(subject, error.errno or 0, str(error)) from error


def _refusal(subject: str, code: int, text: str) -> VirtkitError:
    if code == errno.EPERM:
        return BackendUnavailable(f"{subject}: the kernel refuses ({text}). Run as root.")
    if code == errno.EEXIST:
        return AlreadyExists(f"{subject}: somebody made it at the same time ({text}). Try again.")
    # IPv4 says the one, IPv6 the other.
    if code in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return InvalidRequest(
            f"{subject}: a route leads over a gateway that none of its addresses reaches. "
            "Give an address in the gateway's network, or another gateway."
        )
    return BackendUnavailable(f"{subject}: the kernel refuses ({text}). See `dmesg`.")
