"""The device of a gateway port: a host's own interface in a tenant's network, and what the host's
network stack must allow for it. By netlink and /proc/sys.

Open vSwitch makes the device. In userspace it makes another one whenever it starts, so that
everything here can be done again; what is as it should be is not written.
"""

import errno
import fcntl
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import Any
from uuid import UUID

from pyroute2 import NetlinkError

from netvirt.backends import netlink
from netvirt.model import IPAddress
from tenancy.errors import BackendUnavailable

IPInterface = IPv4Interface | IPv6Interface

PREFIX = "vh"
_SYSCTL = Path("/proc/sys/net")
# See Documentation/networking/ip-sysctl of the kernel. What a container sends to a Service comes
# back with another source, and the host's own addresses are not this link's to announce.
_IPV4 = {
    "rp_filter": "2",
    "arp_announce": "2",
    "arp_ignore": "1",
    "accept_redirects": "0",
}
# The link-local address is given as the others are.
_IPV6 = {
    "disable_ipv6": "0",
    "addr_gen_mode": "1",
    "accept_dad": "0",
    "accept_ra": "0",
    "accept_redirects": "0",
    "forwarding": "1",
}
_NO_IPV6 = {"disable_ipv6": "1"}
# Of linux/sockios.h and linux/if.h.
_SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8913, 0x8927
_IFF_UP = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayDevice:
    """What the device should be.

    The host's own addresses have their network's prefix. The gateways' are the same on every host,
    so that nothing new that leaves the host may carry them.
    """

    name: str
    mac: str
    addresses: tuple[IPInterface, ...]
    gateways: tuple[IPAddress, ...]


def name(port_id: UUID) -> str:
    """The name of a gateway port's device: `vh` and 11 hexadecimal digits of its id."""
    return f"{PREFIX}{port_id.hex[:11]}"


def configure(device: GatewayDevice, *, forwards: bool) -> bool:
    """Make the device what it should be; whether anything had to be changed.

    One that does not forward has no IPv6: there, the kernel forwards for all links or for none.
    Raises `BackendUnavailable`, also when there is no such device (yet).
    """
    has_ipv6 = forwards and any(address.version == 6 for address in device.addresses)
    settings = {**_IPV4, "forwarding": str(int(forwards))}
    try:
        index = socket.if_nametoindex(device.name)
        changed = _write(f"ipv4/conf/{device.name}", settings)
        changed |= _write(f"ipv6/conf/{device.name}", _IPV6 if has_ipv6 else _NO_IPV6)
        mac, is_up = _state(device.name)
        with netlink.Channel() as channel:
            changes = []
            if mac != device.mac:
                changes.append(netlink.link_mac(index, device.mac))
            if not is_up:
                # Addresses of IPv6 go when a link goes down, so that they come last.
                changes.append(netlink.link_up(index))
            found = {address for link, address in channel.addresses() if link == index}
            changes += _address_changes(index, device, found, has_ipv6)
            if changes:
                channel.send(*changes)
    except (NetlinkError, OSError) as error:
        raise _refusal(device.name, error) from error
    return changed or bool(changes)


def allow_forwarding(*, ipv6: bool) -> bool:
    """Have the host forward packets; whether it did not so far.

    The kernel then forwards on *all* links, those of ports too, which must be secluded again.
    A host that forwards IPv6 no longer listens to routers, unless told so: what a link has
    learnt from them it keeps learning. Raises `BackendUnavailable`.
    """
    try:
        changed = _write("ipv4", {"ip_forward": "1"})
        if ipv6 and (_SYSCTL / "ipv6/conf/all/forwarding").read_text().strip() == "0":
            for setting in (_SYSCTL / "ipv6/conf").glob("*/accept_ra"):
                if setting.read_text().strip() == "1":
                    setting.write_text("2")
            changed |= _write("ipv6/conf/all", {"forwarding": "1"})
    except OSError as error:
        raise BackendUnavailable(
            f"the host can't be made to forward packets ({error}). Set net.ipv4.ip_forward and "
            "net.ipv6.conf.all.forwarding to 1."
        ) from error
    return changed


def addresses_of_others(own: Collection[str]) -> dict[IPAddress, str]:
    """The addresses that the host has, but for those on its own devices, and each one's link.

    Those that every link of IPv6 has on itself alone are left out.
    """
    names = dict(socket.if_nameindex())
    try:
        with netlink.Channel() as channel:
            found = channel.addresses()
    except (NetlinkError, OSError) as error:
        raise BackendUnavailable(f"the host's addresses can't be read ({error}).") from error
    return {
        address.ip: names[link]
        for link, address in found
        if names.get(link) not in (None, *own) and not address.ip.is_link_local
    }


def _write(place: str, wanted: dict[str, str]) -> bool:
    """Write the settings that differ; those that this kernel does not have are passed over."""
    changed = False
    for setting, value in wanted.items():
        path = _SYSCTL / place / setting
        if path.exists() and path.read_text().strip() != value:
            path.write_text(value)
            changed = True
    return changed


def _address_changes(
    index: int, device: GatewayDevice, found: set[IPInterface], has_ipv6: bool
) -> list[Any]:
    wanted = dict.fromkeys(device.addresses, True)
    for gateway in device.gateways:
        wanted[ip_interface((gateway, gateway.max_prefixlen))] = False
    wanted = {address: own for address, own in wanted.items() if has_ipv6 or address.version == 4}
    return [
        *(netlink.no_address(index, address) for address in found - wanted.keys()),
        *(
            netlink.new_address(index, address, is_source=own)
            for address, own in wanted.items()
            if address not in found
        ),
    ]


def _state(name: str) -> tuple[str, bool]:
    """A link's MAC address, and whether it is up; see netdevice(7)."""
    request = struct.pack("16s24x", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        mac = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, request)[18:24]
        (flags,) = struct.unpack_from("=H", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request), 16)
    return mac.hex(":"), bool(flags & _IFF_UP)


def _refusal(device: str, error: NetlinkError | OSError) -> BackendUnavailable:
    code = error.code if isinstance(error, NetlinkError) else error.errno
    # if_nametoindex(3) gives no number.
    if code in (None, errno.ENODEV, errno.ENOENT):
        return BackendUnavailable(f"gateway device {device}: it is not there (yet).")
    return BackendUnavailable(
        f"gateway device {device}: the kernel refuses ({error}). See `dmesg`, and run as root."
    )
