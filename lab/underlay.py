"""The network that joins the hosts: a bridge in `ctl`, and a veth from it to every host.

The addresses are the same in every lab, because they exist only inside its namespaces.
"""

import contextlib
import ctypes
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.ifinfmsg import IFF_NOARP, IFF_UP

from lab import latency
from lab.host import CTL, Host
from lab.linux import Namespace

BRIDGE = "underlay"
"""The switch, a link of `ctl`; on it, every host's port has the host's name."""

UPLINK = "uplink"
"""The other end of the port, a link of the host."""

NETWORK = ipaddress.IPv4Network("10.77.0.0/24")
CTL_ADDRESS = str(NETWORK[1])

_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17


def address_of(host: str) -> str:
    """The tunnel endpoint of `hN`, 10.77.0.(10+N)."""
    return str(NETWORK[10 + int(host.removeprefix("h"))])


def create_switch(ctl: Host, mtu_bytes: int) -> None:
    """Make the bridge in `ctl`, with `ctl`'s address on it."""

    def create() -> None:
        with IPRoute() as routes:
            routes.link("set", index=_index(routes, "lo"), state="up")
            routes.link("add", ifname=BRIDGE, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
            bridge = _index(routes, BRIDGE)
            routes.link("set", index=bridge, mtu=mtu_bytes, state="up")
            routes.addr("add", index=bridge, address=CTL_ADDRESS, prefixlen=NETWORK.prefixlen)
            _checksum_in_software(BRIDGE)

    ctl.call(create, namespaces=Namespace.NET)


def connect(ctl: Host, host: Host, mtu_bytes: int, *, relayed: bool = False) -> None:
    """Give the host its uplink: to the switch, or to a link that a relay carries to it."""

    def create() -> None:
        with IPRoute() as routes:
            peer = {"ifname": UPLINK, "net_ns_pid": host.process.pid}
            if relayed:
                near, far = latency.near_link(host.name), latency.far_link(host.name)
                routes.link("add", ifname=near, kind="veth", peer=peer)
                routes.link("add", ifname=host.name, kind="veth", peer={"ifname": far})
                for link in (near, far):
                    with contextlib.suppress(FileNotFoundError):
                        Path(f"/proc/sys/net/ipv6/conf/{link}/disable_ipv6").write_text("1")
                    routes.link("set", index=_index(routes, link), mtu=mtu_bytes, state="up")
                    _checksum_in_software(link)
            else:
                routes.link("add", ifname=host.name, kind="veth", peer=peer)
            port = _index(routes, host.name)
            routes.link("set", index=port, mtu=mtu_bytes, master=_index(routes, BRIDGE), state="up")
            _checksum_in_software(host.name)

    def complete() -> None:
        with IPRoute() as routes:
            routes.link("set", index=_index(routes, "lo"), state="up")
            # The userspace datapath gets copies of the frames; the kernel goes on reading them,
            # and would answer for the addresses of br-phy from here, with another MAC.
            with contextlib.suppress(FileNotFoundError):
                Path(f"/proc/sys/net/ipv6/conf/{UPLINK}/disable_ipv6").write_text("1")
            up_without_arp = IFF_UP | IFF_NOARP
            routes.link(
                "set",
                index=_index(routes, UPLINK),
                mtu=mtu_bytes,
                flags=up_without_arp,
                change=up_without_arp,
            )
            _checksum_in_software(UPLINK)

    ctl.call(create, namespaces=Namespace.NET)
    host.call(complete, namespaces=Namespace.NET)


def write_names(host: Host, hosts: Sequence[str]) -> None:
    """Let a host know the others, and itself, by name: /etc/hosts."""
    lines = ["127.0.0.1 localhost", "::1 localhost", f"{CTL_ADDRESS} {CTL}"]
    lines += [f"{address_of(name)} {name}" for name in hosts]
    file = host.path("/etc/hosts")
    file.unlink(missing_ok=True)  # it may be a link that leads out of the host
    file.write_text("\n".join(lines) + "\n")


def set_address(host: Host, link: str) -> None:
    """Put the host's address on a link of it and bring it up; does nothing where it is."""

    def configure() -> None:
        with IPRoute() as routes:
            index = _index(routes, link)
            routes.link("set", index=index, state="up")
            routes.addr("replace", index=index, address=host.address, prefixlen=NETWORK.prefixlen)

    host.call(configure, namespaces=Namespace.NET)


def _index(routes: IPRoute, link: str) -> int:
    return int(routes.link_lookup(ifname=link)[0])


def _checksum_in_software(link: str) -> None:
    """Have the kernel complete checksums (`ethtool -K LINK tx off`).

    A veth leaves them to the receiver, and the userspace datapath of Open vSwitch, which reads
    packets from the veth as they are, would pass on TCP segments that everybody drops.
    """
    value = ctypes.create_string_buffer(struct.pack("II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP", link.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)
