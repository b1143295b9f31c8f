"""Several changes of links, addresses and routes in one exchange with the kernel.

pyroute2 writes the messages; its sockets, each with an event loop, cost ten times what the kernel
does to make a veth, and a container waits for it. So what a container waits for goes over a plain
socket, all at once, and so does what the agent's loop does itself. Everything else uses pyroute2
as it is.
"""

import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any, Self

from pyroute2 import NetlinkError
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from netvirt.model import IPAddress, IPNetwork

# Of linux/netlink.h, linux/rtnetlink.h, linux/if.h and linux/if_addr.h.
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
_DUMP = 0x300
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _GETADDR, _NEWROUTE = 16, 17, 20, 21, 22, 24
_ERROR, _DONE = 2, 3
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02
_MAIN_TABLE, _PROTOCOL_STATIC, _UNICAST = 254, 4, 1
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST = 0, 253, 254
_FOREVER_S = 0xFFFF_FFFF
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR_NUMBER = struct.Struct("=i")
_TIMEOUT_S = 10.0
# So many acknowledgements have room in a socket that nobody reads meanwhile.
_AT_ONCE = 64


class Channel:
    """A connection to the kernel in the calling thread's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.bind((0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def try_to(self, message: Any) -> bool:
        """Have the kernel make something; False if it is there already."""
        try:
            self.send(message)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                return False
            raise
        return True

    def send(self, *messages: Any) -> None:
        """Have the kernel do all of this, in order. Raises the first `NetlinkError`; what follows
        may be done all the same.
        """
        for begin in range(0, len(messages), _AT_ONCE):
            self._exchange(messages[begin : begin + _AT_ONCE])

    def _exchange(self, messages: Sequence[Any]) -> None:
        for number, message in enumerate(messages):
            message["header"]["sequence_number"] = number
            message.encode()
        self._socket.send(b"".join(bytes(message.data) for message in messages))
        failed: dict[int, int] = {}
        answered = 0
        while answered < len(messages):
            data, offset = self._socket.recv(1 << 16), 0
            while offset < len(data):
                length, kind, _, number, _ = _HEADER.unpack_from(data, offset)
                if kind == _ERROR:
                    answered += 1
                    (code,) = _ERROR_NUMBER.unpack_from(data, offset + _HEADER.size)
                    if code:
                        failed[number] = -code
                offset += (length + 3) & ~3
        if failed:
            code = failed[min(failed)]
            raise NetlinkError(code, os.strerror(code))

    def addresses(self) -> list[tuple[int, IPv4Interface | IPv6Interface]]:
        """Every address there is, with the index of the link that it is on."""
        body = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        length = _HEADER.size + len(body)
        self._socket.send(_HEADER.pack(length, _GETADDR, _REQUEST | _DUMP, 0, 0) + body)
        found: list[tuple[int, IPv4Interface | IPv6Interface]] = []
        while True:
            data, offset = self._socket.recv(1 << 16), 0
            while offset < len(data):
                length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    (code,) = _ERROR_NUMBER.unpack_from(data, offset + _HEADER.size)
                    raise NetlinkError(-code, os.strerror(-code))
                found.append(_address(data[offset + _HEADER.size : offset + length]))
                offset += (length + 3) & ~3


def new_veth(name: str, own_mac: str, mtu: int, peer: str, mac: str, namespace: int) -> Any:
    """A veth, up, whose peer, with its own name and MAC address, is in another namespace, and not
    yet up.
    """
    there = [
        ("IFLA_IFNAME", peer),
        ("IFLA_ADDRESS", mac),
        ("IFLA_MTU", mtu),
        ("IFLA_NET_NS_FD", namespace),
    ]
    pair = {"attrs": [("VETH_INFO_PEER", {"attrs": there})]}
    kind = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", pair)]}
    attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", own_mac),
        ("IFLA_MTU", mtu),
        ("IFLA_LINKINFO", kind),
    ]
    values = {"flags": _IFF_UP, "change": _IFF_UP}
    return _message(ifinfmsg, _NEWLINK, _CREATE | _EXCL, values, attributes)


def link_alias(name: str, alias: str) -> Any:
    """Say what a link is for; the kernel takes no alias when the link is made."""
    attributes = [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)]
    return _message(ifinfmsg, _NEWLINK, 0, {}, attributes)


def link_up(index: int) -> Any:
    """Set a link up."""
    values = {"index": index, "flags": _IFF_UP, "change": _IFF_UP}
    return _message(ifinfmsg, _NEWLINK, 0, values, [])


def link_mac(index: int, mac: str) -> Any:
    """Give a link this MAC address."""
    return _message(ifinfmsg, _NEWLINK, 0, {"index": index}, [("IFLA_ADDRESS", mac)])


def no_link(index: int) -> Any:
    """Delete a link."""
    return _message(ifinfmsg, _DELLINK, 0, {"index": index}, [])


def new_address(
    index: int, address: IPv4Interface | IPv6Interface, *, is_source: bool = True
) -> Any:
    """An address on a link; one of IPv6 is used without asking who else has it.

    The kernel never chooses one that `is_source` forbids as the source of something new: in IPv4
    it then is of the host's own scope, in IPv6 deprecated (RFC 6724, rule 3).
    """
    text = str(address.ip)
    attributes: list[tuple[str, Any]] = [("IFA_ADDRESS", text)]
    if address.version == 4:
        attributes.append(("IFA_LOCAL", text))
        # A network of one or two addresses has none for all (RFC 3021).
        if address.network.prefixlen < 31:
            attributes.append(("IFA_BROADCAST", str(address.network.broadcast_address)))
    elif not is_source:
        lifetimes = {"ifa_preferred": 0, "ifa_valid": _FOREVER_S}
        attributes.append(("IFA_CACHEINFO", lifetimes))
    values = {
        "family": _FAMILIES[address.version],
        "prefixlen": address.network.prefixlen,
        "index": index,
        "flags": _IFA_F_NODAD if address.version == 6 else 0,
        "scope": _SCOPE_UNIVERSE if is_source else _SCOPE_HOST,
    }
    return _message(ifaddrmsg, _NEWADDR, _CREATE | _REPLACE, values, attributes)


def no_address(index: int, address: IPv4Interface | IPv6Interface) -> Any:
    """Take an address from a link."""
    attributes = [(name, str(address.ip)) for name in ("IFA_LOCAL", "IFA_ADDRESS")]
    values = {
        "family": _FAMILIES[address.version],
        "prefixlen": address.network.prefixlen,
        "index": index,
    }
    return _message(ifaddrmsg, _DELADDR, 0, values, attributes)


def new_route(index: int, destination: IPNetwork, via: IPAddress | None) -> Any:
    """A route over a link; without `via`, its destination is on the link itself."""
    attributes: list[tuple[str, Any]] = [("RTA_OIF", index), ("RTA_TABLE", _MAIN_TABLE)]
    if destination.prefixlen:
        attributes.append(("RTA_DST", str(destination.network_address)))
    if via is not None:
        attributes.append(("RTA_GATEWAY", str(via)))
    on_link = via is None and destination.version == 4
    values = {
        "family": _FAMILIES[destination.version],
        "dst_len": destination.prefixlen,
        "table": _MAIN_TABLE,
        "proto": _PROTOCOL_STATIC,
        "scope": _SCOPE_LINK if on_link else _SCOPE_UNIVERSE,
        "type": _UNICAST,
    }
    return _message(rtmsg, _NEWROUTE, _CREATE | _REPLACE, values, attributes)


def _address(message: bytes) -> tuple[int, IPv4Interface | IPv6Interface]:
    """See "struct ifaddrmsg" in rtnetlink(7)."""
    _, prefix, _, _, index = _IFADDRMSG.unpack_from(message)
    found: dict[int, bytes] = {}
    offset = _IFADDRMSG.size
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        found[kind] = message[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    # IFA_ADDRESS is the other end's on a point-to-point link, and IPv6 has no IFA_LOCAL.
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
    return index, ip_interface((ip_address(packed), prefix))


def _message(
    kind: Any, number: int, flags: int, values: Mapping[str, Any], attributes: Sequence[Any]
) -> Any:
    message = kind()
    for key, value in values.items():
        message[key] = value
    message["attrs"] = list(attributes)
    message["header"]["type"] = number
    message["header"]["flags"] = _REQUEST | _ACK | flags
    return message
