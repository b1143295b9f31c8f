"""DHCPv4 messages in Ethernet frames: read with care, written by os-ken.

What is read comes from tenants. os-ken's own parser ends at the first padding octet among the
options, does not know option overload, and takes names for ASCII, so options are taken apart
here; every length is checked, and whatever does not fit is refused with a reason.
"""

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

from os_ken.lib.packet import dhcp as os_ken_dhcp
from os_ken.lib.packet import ether_types, in_proto
from os_ken.lib.packet.ethernet import ethernet
from os_ken.lib.packet.ipv4 import ipv4
from os_ken.lib.packet.packet import Packet
from os_ken.lib.packet.udp import udp

from netvirt.dhcp import DhcpReply, DhcpRequest, Message, Option

_SERVER_PORT, _CLIENT_PORT = 67, 68

_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
# op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file,
# and the cookie that opens the options (RFC 2131, section 2; RFC 2132, section 2).
_BOOTP = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE = bytes([99, 130, 83, 99])
_BROADCAST_FLAG = 0x8000
_FRAGMENT = 0x3FFF  # more fragments, or not the first
# RFC 1542, section 2.1: some clients ignore a message with less than this.
_MINIMUM_BYTES = 300


class _Malformed(Exception):
    """Why a frame is no request; the message is one of a few, so that they can be counted."""


def parse(frame: bytes) -> DhcpRequest | str:
    """The request in an Ethernet frame, or in a few words why there is none. Never raises."""
    try:
        return _parse_message(_udp_payload(frame))
    except _Malformed as reason:
        return str(reason)


def render(reply: DhcpReply) -> bytes:
    """The reply as an Ethernet frame, checksums included."""
    packet = Packet()
    packet.add_protocol(
        ethernet(dst=reply.destination_mac, src=reply.server_mac, ethertype=ether_types.ETH_TYPE_IP)
    )
    packet.add_protocol(
        ipv4(
            src=str(reply.server_ip),
            dst=str(reply.destination_ip),
            proto=in_proto.IPPROTO_UDP,
            ttl=64,
        )
    )
    packet.add_protocol(udp(src_port=_SERVER_PORT, dst_port=_CLIENT_PORT))
    packet.add_protocol(
        os_ken_dhcp.dhcp(
            op=os_ken_dhcp.DHCP_BOOT_REPLY,
            chaddr=reply.mac,
            xid=reply.xid,
            flags=_BROADCAST_FLAG if reply.broadcast else 0,
            ciaddr=str(reply.client_ip),
            yiaddr=str(reply.your_ip),
            siaddr="0.0.0.0",
            options=os_ken_dhcp.options(
                [os_ken_dhcp.option(int(option), value) for option, value in reply.options]
            ),
        )
    )
    length = _BOOTP.size + sum(2 + len(value) for _, value in reply.options) + 1
    packet.add_protocol(bytes(max(0, _MINIMUM_BYTES - length)))
    packet.serialize()
    return bytes(packet.data)


def _udp_payload(frame: bytes) -> bytes:
    """What UDP carries to the server's port. Checksums are not looked at: a VM whose network card
    computes them leaves that to whoever forwards its frames, and here nobody does."""
    _, _, ethertype = _unpack(_ETHERNET, frame, "Ethernet header")
    packet = frame[_ETHERNET.size :]
    if ethertype != ether_types.ETH_TYPE_IP:
        raise _Malformed("not IPv4")
    version_length, _, total, _, fragment, _, protocol, *_ = _unpack(_IPV4, packet, "IPv4 header")
    header = (version_length & 0xF) * 4
    if version_length >> 4 != 4 or header < _IPV4.size or not header <= total <= len(packet):
        raise _Malformed("IPv4 header's lengths")
    if protocol != in_proto.IPPROTO_UDP or fragment & _FRAGMENT:
        raise _Malformed("not UDP in one piece")
    datagram = packet[header:total]
    _, port, length, _ = _unpack(_UDP, datagram, "UDP header")
    if port != _SERVER_PORT or not _UDP.size <= length <= len(datagram):
        raise _Malformed("not for a DHCP server")
    return datagram[_UDP.size : length]


def _parse_message(message: bytes) -> DhcpRequest:
    fields = _unpack(_BOOTP, message, "DHCP message")
    op, hardware, hardware_length, _, xid, _, flags, ciaddr, _, _, giaddr, chaddr = fields[:12]
    sname, file, cookie = fields[12:]
    if op != os_ken_dhcp.DHCP_BOOT_REQUEST:
        raise _Malformed("not a request")
    if (hardware, hardware_length) != (1, 6):
        raise _Malformed("not an Ethernet address")
    if cookie != _COOKIE:
        raise _Malformed("BOOTP without DHCP")
    options = _parse_options(message[_BOOTP.size :], file, sname)
    return DhcpRequest(
        message=_message_type(options),
        xid=xid,
        mac=":".join(f"{octet:02x}" for octet in chaddr[:6]),
        broadcast=bool(flags & _BROADCAST_FLAG),
        client_ip=IPv4Address(ciaddr),
        relay_ip=IPv4Address(giaddr),
        requested_ip=_address(options, Option.REQUESTED_ADDRESS),
        server_ip=_address(options, Option.SERVER_ID),
        client_id=_client_id(options),
    )


def _parse_options(field: bytes, file: bytes, sname: bytes) -> dict[int, bytes]:
    """Options by number; those that come in parts are joined (RFC 3396)."""
    options: dict[int, bytes] = {}
    for number, value in _options(field):
        options[number] = options.get(number, b"") + value
    # RFC 2132, section 9.3: options may go on in the two name fields, the file's first.
    overload = options.get(Option.OVERLOAD, b"\0")[:1]
    for bit, more in ((1, file), (2, sname)):
        if overload and overload[0] & bit:
            for number, value in _options(more):
                options[number] = options.get(number, b"") + value
    return options


def _options(field: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(field) and field[at] != 255:
        if field[at] == 0:
            at += 1
            continue
        if at + 2 > len(field) or at + 2 + field[at + 1] > len(field):
            raise _Malformed("an option's length")
        yield field[at], field[at + 2 : at + 2 + field[at + 1]]
        at += 2 + field[at + 1]


def _message_type(options: dict[int, bytes]) -> Message:
    try:
        return Message(int.from_bytes(options[Option.MESSAGE_TYPE], "big"))
    except (KeyError, ValueError) as error:
        raise _Malformed("no message type") from error


def _client_id(options: dict[int, bytes]) -> bytes | None:
    value = options.get(Option.CLIENT_ID)
    # It is given back in one option, so it may not have come in more than one.
    if value is not None and len(value) > 255:
        raise _Malformed("a client identifier's length")
    return value


def _address(options: dict[int, bytes], option: Option) -> IPv4Address | None:
    value = options.get(option)
    if value is None:
        return None
    if len(value) != 4:
        raise _Malformed("an address's length")
    return IPv4Address(value)


def _unpack(layout: struct.Struct, data: bytes, what: str) -> tuple[Any, ...]:
    if len(data) < layout.size:
        raise _Malformed(f"truncated {what}")
    return layout.unpack_from(data)
