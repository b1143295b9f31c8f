"""Settings of a link that netlink does not reach: the host stack's manners, and checksums."""

import ctypes
import fcntl
import socket
import struct
from pathlib import Path

from pyroute2.ethtool.ioctl import ETHTOOL_STXCSUM, SIOCETHTOOL

# See Documentation/networking/ip-sysctl of the kernel: answer no ARP request, take no packet
# whose source is not routed over this link (none is), forward nothing, speak no IPv6.
_SECLUDED = {
    "ipv4/conf/{}/arp_ignore": "8",
    "ipv4/conf/{}/rp_filter": "1",
    "ipv4/conf/{}/forwarding": "0",
    "ipv6/conf/{}/disable_ipv6": "1",
}


def seclude(name: str) -> None:
    """Keep the host's own network stack out of what arrives on a port's link; idempotent.

    A switch that forwards in userspace takes a copy of what arrives, and the kernel goes on with
    the original. It would answer a tenant's ARP request for the host's address, and then let the
    tenant talk to the host. Any link of a port needs this, whoever made it. Raises `OSError`.
    See "Firewall Rules" in Open vSwitch's intro/install/userspace.
    """
    for setting, value in _SECLUDED.items():
        path = Path("/proc/sys/net") / setting.format(name)
        # A kernel without IPv6 has no such settings, and nothing to switch off.
        if path.parent.parent.exists() and path.read_text().strip() != value:
            path.write_text(value)


def disable_transmit_checksums(name: str) -> None:
    """`ethtool -K NAME tx off`, by the ioctl of linux/ethtool.h. Raises `OSError`."""
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_STXCSUM, 0))
    request = struct.pack("=16sQ16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)
