"""The device of a gateway port: a host's own interface in a tenant's network, and what the host's
network stack must allow for it. By netlink and /proc/sys.

Open vSwitch makes the device. In userspace it makes another one whenever it starts, so that
everything here can be done again; what is as it should be is not written.
"""

import errno
import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from pathlib import Path
from typing import Any
from uuid import UUID

from pyroute2 import IPRoute, NetlinkError

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
_IFF_UP = 1
_IFA_F_NODAD = 0x02
_FOREVER_S = 0xFFFF_FFFF
_RT_SCOPE_UNIVERSE, _RT_SCOPE_HOST = 0, 254


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
        with IPRoute() as netlink:
            link = netlink.link("get", ifname=device.name)[0]
            changed = _write(f"ipv4/conf/{device.name}", settings)
            changed |= _write(f"ipv6/conf/{device.name}", _IPV6 if has_ipv6 else _NO_IPV6)
            if link.get_attr("IFLA_ADDRESS") != device.mac:
                netlink.link("set", index=link["index"], address=device.mac)
                changed = True
            if not link["flags"] & _IFF_UP:
                # Addresses of IPv6 go when a link goes down, so that they come last.
                netlink.link("set", index=link["index"], state="up")
                changed = True
            changed |= _ensure_addresses(netlink, link["index"], device, has_ipv6)
    except (NetlinkError, OSError) as error:
        raise _refusal(device.name, error) from error
    return changed


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
    """The addresses that the host has, but for those on its own devices, and each one's link."""
    try:
        with IPRoute() as netlink:
            names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
            return {
                ip_address(_address(found)): names[found["index"]]
                for found in netlink.get_addr()
                if names.get(found["index"], "") not in own and found["index"] in names
            }
    except NetlinkError as error:
        raise BackendUnavailable(f"the host's addresses can't be read ({error}).") from error


def _write(place: str, wanted: dict[str, str]) -> bool:
    """Write the settings that differ; those that this kernel does not have are passed over."""
    changed = False
    for setting, value in wanted.items():
        path = _SYSCTL / place / setting
        if path.exists() and path.read_text().strip() != value:
            path.write_text(value)
            changed = True
    return changed


def _ensure_addresses(netlink: IPRoute, index: int, device: GatewayDevice, has_ipv6: bool) -> bool:
    wanted = dict.fromkeys(device.addresses, _RT_SCOPE_UNIVERSE)
    wanted |= {
        ip_interface(f"{gateway}/{gateway.max_prefixlen}"): _RT_SCOPE_HOST
        for gateway in device.gateways
    }
    wanted = {
        address: scope for address, scope in wanted.items() if has_ipv6 or address.version == 4
    }
    found = {
        ip_interface(f"{_address(found)}/{found['prefixlen']}")
        for found in netlink.get_addr(index=index)
    }
    surplus = found - wanted.keys()
    for address in surplus:
        netlink.addr("del", index=index, address=str(address.ip), prefixlen=_bits(address))
    missing = [address for address in wanted if address not in found]
    for address in missing:
        netlink.addr("add", index=index, **_columns(address, wanted[address]))
    return bool(surplus or missing)


def _columns(address: IPInterface, scope: int) -> dict[str, Any]:
    columns: dict[str, Any] = {"address": str(address.ip), "prefixlen": _bits(address)}
    if address.version == 4:
        return {**columns, "scope": scope}
    # Every host has the gateway's address, so that it is not asked about. One that is deprecated
    # is no source of anything new (RFC 6724, rule 3).
    return {
        **columns,
        "family": socket.AF_INET6,
        "flags": _IFA_F_NODAD,
        "preferred_lft": 0 if scope == _RT_SCOPE_HOST else _FOREVER_S,
        "valid_lft": _FOREVER_S,
    }


def _bits(address: IPInterface) -> int:
    return address.network.prefixlen


def _address(message: Any) -> str:
    """IFA_ADDRESS is the other end's on a point-to-point link; IPv6 has no IFA_LOCAL."""
    local: str | None = message.get_attr("IFA_LOCAL")
    return local or str(message.get_attr("IFA_ADDRESS"))


def _refusal(device: str, error: NetlinkError | OSError) -> BackendUnavailable:
    code = error.code if isinstance(error, NetlinkError) else error.errno
    if code in (errno.ENODEV, errno.ENOENT):
        return BackendUnavailable(f"gateway device {device}: it is not there (yet).")
    return BackendUnavailable(
        f"gateway device {device}: the kernel refuses ({error}). See `dmesg`, and run as root."
    )
