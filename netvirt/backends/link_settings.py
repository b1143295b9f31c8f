"""Settings of a link that netlink does not reach: the host stack's manners, and checksums."""

import ctypes
import fcntl
import socket
import struct
from pathlib import Path

from pyroute2.ethtool.ioctl import ETHTOOL_STXCSUM, SIOCETHTOOL

from tenancy.errors import BackendUnavailable

_SYSCTL = Path("/proc/sys/net")
# See Documentation/networking/ip-sysctl of the kernel: answer no ARP request, take no packet
# whose source is not routed over this link (none is), forward nothing, speak no IPv6.
_SECLUDED = {
    "ipv4/conf/{}/arp_ignore": "8",
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/forwarding": "0",
    "ipv6/conf/{}/disable_ipv6": "1",
}
# The network has no router that advertises itself, and no address that is not in the database: so
# nothing is to be learnt, and nothing to be probed before use. The link-local address must be that
# of the MAC (EUI-64, mode 0): the switch lets no other pass.
_IPV6 = {"disable_ipv6": "0", "accept_ra": "0", "accept_dad": "0", "addr_gen_mode": "0"}


def seclude(name: str) -> None:
    """Keep the host's own network stack out of what arrives on a port's link; idempotent.

    A switch that forwards in userspace takes a copy of what arrives, and the kernel goes on with
    the original. It would answer a tenant's ARP request for the host's address, and then let the
    tenant talk to the host. Any link of a port needs this, whoever made it. Raises `OSError`.
    See "Firewall Rules" in Open vSwitch's intro/install/userspace.
    """
    for setting, value in _SECLUDED.items():
        path = _SYSCTL / setting.format(name)
        # A kernel without IPv6 has no such settings, and nothing to switch off.
        if path.parent.parent.exists():
            _write(path, value)


def enable_ipv6(name: str) -> None:
    """Have the calling thread's namespace speak IPv6 on an interface, with no address but those it
    is given; idempotent. Raises `OSError`, and `BackendUnavailable` if the kernel has no IPv6.
    """
    settings = _SYSCTL / "ipv6/conf" / name
    if not settings.exists():
        raise BackendUnavailable(
            f"interface {name}: it is to have an IPv6 address, and this kernel has no IPv6. Load "
            "the module (`modprobe ipv6`, no `ipv6.disable=1` at boot), or use IPv4 networks here."
        )
    for setting, value in _IPV6.items():
        _write(settings / setting, value)


def forwards(name: str) -> bool:
    """Whether the host forwards what arrives on a link; not if the link has gone."""
    try:
        return (_SYSCTL / "ipv4/conf" / name / "forwarding").read_text().strip() != "0"
    except OSError:
        return False


def disable_transmit_checksums(name: str) -> None:
    """`ethtool -K NAME tx off`, by the ioctl of linux/ethtool.h. Raises `OSError`."""
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, 0))
    request = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def _write(path: Path, value: str) -> None:
    if path.read_text().strip() != value:
        path.write_text(value)
