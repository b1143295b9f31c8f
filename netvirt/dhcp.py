"""DHCPv4 for a port whose address is known beforehand: what to answer, as records. Pure.

There is nothing to allocate and nothing to remember: a port has its lease as long as it exists,
so every host answers alike, and an answer does not depend on what was said before. Frames are
read and written by `netvirt.backends.dhcp_frames`.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network

NO_ADDRESS = IPv4Address("0.0.0.0")
BROADCAST = IPv4Address("255.255.255.255")
BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"
DEFAULT_ROUTE = IPv4Network("0.0.0.0/0")


class Message(IntEnum):
    """RFC 2132, section 9.6."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """RFC 2132; RFC 3442 for classless routes."""

    SUBNET_MASK = 1
    ROUTER = 3
    DNS = 6
    HOST_NAME = 12
    DOMAIN_NAME = 15
    MTU = 26
    BROADCAST_ADDRESS = 28
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    CLIENT_ID = 61
    CLASSLESS_ROUTES = 121


@dataclass(frozen=True, slots=True, kw_only=True)
class DhcpRequest:
    """What a client says. `client_ip` is the address it already uses, if it does."""

    message: Message
    xid: int
    mac: str
    broadcast: bool = False
    client_ip: IPv4Address = NO_ADDRESS
    relay_ip: IPv4Address = NO_ADDRESS
    requested_ip: IPv4Address | None = None
    server_ip: IPv4Address | None = None
    client_id: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a port is to be told. The server's address is its subnet's gateway address."""

    ip: IPv4Address
    network: IPv4Network
    server_ip: IPv4Address
    server_mac: str
    mtu: int
    dns: tuple[IPv4Address, ...] = ()
    routes: tuple[tuple[IPv4Network, IPv4Address], ...] = ()
    router: IPv4Address | None = None
    lease_time_s: int = 3600
    hostname: str | None = None
    domain: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DhcpReply:
    """A message to a client, and where it goes. `options` are in the order to be sent."""

    message: Message
    xid: int
    mac: str
    broadcast: bool
    client_ip: IPv4Address
    your_ip: IPv4Address
    server_ip: IPv4Address
    server_mac: str
    destination_ip: IPv4Address
    destination_mac: str
    options: tuple[tuple[Option, bytes], ...]


def answer(request: DhcpRequest, lease: Lease) -> DhcpReply | None:
    """The reply due to a request from the lease's port, or None. RFC 2131, section 4.3."""
    # Relay agents forward from one network to another, and a tenant's network has its own server.
    if request.relay_ip != NO_ADDRESS:
        return None
    match request.message:
        case Message.DISCOVER:
            return _grant(Message.OFFER, request, lease)
        case Message.REQUEST:
            return _answer_request(request, lease)
        case Message.INFORM if request.client_ip != NO_ADDRESS:
            return _reply(Message.ACK, request, lease, NO_ADDRESS, _configuration(lease))
        case _:
            # An address is the port's even when it is declined or released.
            return None


def _answer_request(request: DhcpRequest, lease: Lease) -> DhcpReply | None:
    """Section 4.3.2: which state the client is in shows in what it fills in."""
    if request.server_ip is not None:
        # SELECTING: a client that chose another server has nothing to ask of this one.
        if request.server_ip != lease.server_ip:
            return None
        asked = request.requested_ip
    elif request.requested_ip is not None:
        asked = request.requested_ip  # INIT-REBOOT
    elif request.client_ip != NO_ADDRESS:
        asked = request.client_ip  # RENEWING or REBINDING
    else:
        return None
    if asked != lease.ip:
        return _reply(Message.NAK, request, lease, NO_ADDRESS, ())
    return _grant(Message.ACK, request, lease)


def _grant(message: Message, request: DhcpRequest, lease: Lease) -> DhcpReply:
    # T1 and T2 are the fractions that section 4.4.5 gives as defaults.
    times = (
        (Option.LEASE_TIME, _seconds(lease.lease_time_s)),
        (Option.RENEWAL_TIME, _seconds(lease.lease_time_s // 2)),
        (Option.REBINDING_TIME, _seconds(lease.lease_time_s * 7 // 8)),
    )
    return _reply(message, request, lease, lease.ip, (*times, *_configuration(lease)))


def _reply(
    message: Message,
    request: DhcpRequest,
    lease: Lease,
    your_ip: IPv4Address,
    options: tuple[tuple[Option, bytes], ...],
) -> DhcpReply:
    ip, mac = _destination(message, request, your_ip)
    head = [
        (Option.MESSAGE_TYPE, bytes([message])),
        (Option.SERVER_ID, lease.server_ip.packed),
    ]
    # RFC 6842: a client identifier is always given back.
    tail = [(Option.CLIENT_ID, request.client_id)] if request.client_id else []
    return DhcpReply(
        message=message,
        xid=request.xid,
        mac=request.mac,
        broadcast=request.broadcast,
        client_ip=NO_ADDRESS if message in (Message.OFFER, Message.NAK) else request.client_ip,
        your_ip=your_ip,
        server_ip=lease.server_ip,
        server_mac=lease.server_mac,
        destination_ip=ip,
        destination_mac=mac,
        options=(*head, *options, *tail),
    )


def _destination(
    message: Message, request: DhcpRequest, your_ip: IPv4Address
) -> tuple[IPv4Address, str]:
    """Section 4.1: to the address in use, or, if the client can't take that yet, to everybody."""
    if message is Message.NAK:
        return BROADCAST, BROADCAST_MAC
    if request.client_ip != NO_ADDRESS and message is Message.ACK:
        return request.client_ip, request.mac
    if request.broadcast:
        return BROADCAST, BROADCAST_MAC
    return your_ip, request.mac


def _configuration(lease: Lease) -> tuple[tuple[Option, bytes], ...]:
    """What a client is told about its network; values too long for an option are left out."""
    options = [
        (Option.SUBNET_MASK, lease.network.netmask.packed),
        (Option.BROADCAST_ADDRESS, lease.network.broadcast_address.packed),
        (Option.MTU, struct.pack("!H", lease.mtu)),
        (Option.ROUTER, lease.router.packed if lease.router else b""),
        (Option.CLASSLESS_ROUTES, _classless_routes(lease)),
        (Option.DNS, b"".join(address.packed for address in lease.dns)),
        (Option.HOST_NAME, (lease.hostname or "").encode("ascii", "ignore")),
        (Option.DOMAIN_NAME, (lease.domain or "").encode("ascii", "ignore")),
    ]
    return tuple((option, value) for option, value in options if 0 < len(value) < 256)


def _classless_routes(lease: Lease) -> bytes:
    """RFC 3442. A client that reads this option ignores the router, so the router is in it."""
    if not lease.routes:
        return b""
    routes = list(lease.routes)
    if lease.router and all(destination != DEFAULT_ROUTE for destination, _ in routes):
        routes.append((DEFAULT_ROUTE, lease.router))
    return b"".join(_classless_route(destination, via) for destination, via in routes)


def _classless_route(destination: IPv4Network, via: IPv4Address) -> bytes:
    significant = (destination.prefixlen + 7) // 8
    address = destination.network_address.packed[:significant]
    return bytes([destination.prefixlen]) + address + via.packed


def _seconds(seconds: int) -> bytes:
    return struct.pack("!I", min(seconds, 0xFFFF_FFFF))
