"""Networks, ports and hosts as the fabric knows them. Pure records; invariants hold from birth."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NewType, Self
from uuid import UUID

from tenancy.errors import InvalidRequest
from tenancy.model import TenantId
from tenancy.names import shortened

NetworkId = NewType("NetworkId", UUID)
SubnetId = NewType("SubnetId", UUID)
PortId = NewType("PortId", UUID)
BindingId = NewType("BindingId", UUID)
AttachmentId = NewType("AttachmentId", UUID)

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

SEGMENT_IDS = range(1, 2**24)

# VXLAN carries IPv4 (20), UDP (8), VXLAN (8) and the inner Ethernet header (14); GRE with a key
# carries IPv4 (20), GRE with key (8) and the inner Ethernet header (14). RFC 7348; RFC 2890.
OVERHEAD_BYTES = {"vxlan": 50, "gre": 42}
DEFAULT_UNDERLAY_MTU = 1500
# RFC 791: every IPv4 module must take in datagrams of 576 bytes. RFC 8200, section 5: IPv6 needs
# links of 1280.
MINIMUM_MTU = {4: 576, 6: 1280}


class Overlay(StrEnum):
    VXLAN = "vxlan"
    GRE = "gre"

    @property
    def overhead_bytes(self) -> int:
        """What the overlay adds to a tenant's IP packet on an IPv4 underlay."""
        return OVERHEAD_BYTES[self]


class PortKind(StrEnum):
    CONTAINER = "container"
    VM = "vm"
    NETNS = "netns"
    HOST = "host"


class Mac(int):
    """A 48-bit Ethernet address; as text, six lower-case octets."""

    _TEXT = re.compile(r"(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}", re.IGNORECASE)

    @classmethod
    def parse(cls, text: str) -> Self:
        if not cls._TEXT.fullmatch(text):
            raise InvalidRequest(
                f"MAC address {shortened(text)!r} is not one. Write six octets: 0a:00:00:00:00:01."
            )
        mac = cls(int(text.replace(":", "").replace("-", ""), 16))
        if mac >> 40 & 1 or mac == 0:
            raise InvalidRequest(
                f"MAC address {text} is a group address or zero. A port needs a unicast address."
            )
        return mac

    def __str__(self) -> str:
        return ":".join(f"{octet:02x}" for octet in self.to_bytes(6, "big"))

    __repr__ = __str__

    @property
    def link_local(self) -> IPv6Address:
        """The link-local address that a host forms of this MAC (RFC 4291, appendix A)."""
        halves = (self >> 24 ^ 0x020000) << 40 | 0xFFFE << 24 | self & 0xFFFFFF
        return IPv6Address(0xFE80 << 112 | halves)


# Who answers DHCP and ARP for a subnet's gateway address: the same on every host, so that a VM
# that moves keeps its ARP cache.
GATEWAY_MAC = Mac(0x0A766B000001)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressRange:
    """Addresses of one family from `first` to `last`, both included."""

    first: IPAddress
    last: IPAddress

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """Addresses of one network and one family. `gateway` is reserved; `pools` is where allocation
    looks. `dhcp` says nothing of IPv6.
    """

    id: SubnetId
    network: NetworkId
    cidr: IPNetwork
    gateway: IPAddress
    pools: tuple[AddressRange, ...]
    dns: tuple[IPAddress, ...] = ()
    dhcp: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A tenant's network. `mtu_bytes` is what a tenant's IP packet may measure.

    It has one subnet or two, and then one of either family, IPv4 first. With `host_access` every
    host has a port of its own in it: hosts reach their containers and VMs, and those reach the
    hosts and, through them, the outside.
    """

    id: NetworkId
    tenant: TenantId
    name: str
    overlay: Overlay
    segment_id: int
    mtu_bytes: int
    subnets: tuple[Subnet, ...] = ()
    host_access: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)

    def subnet(self, version: int) -> Subnet | None:
        """The subnet of IP version 4 or 6, if there is one."""
        return next((one for one in self.subnets if one.cidr.version == version), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A port seen on a host. Of several for one port, the active one with the highest claim holds.

    A claim is a number above all claims there were when it was made, so that a host that takes a
    port over needs to write no row but its own.
    """

    id: BindingId
    port: PortId
    network: NetworkId
    host: str
    claim: int
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A place on a network for one container or VM, or for a host itself, with an address in each
    subnet.

    `host` is the only one that may hold it; without one, the host with the latest claim does.
    """

    id: PortId
    tenant: TenantId
    network: NetworkId
    name: str
    mac: Mac
    kind: PortKind
    addresses: tuple[IPAddress, ...] = ()
    host: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A container's interface that the CNI made on a host, and the port it is on.

    `conflist` is the name of the network configuration that asked for it: the runtime that uses
    that one collects what it has left, and nothing else.
    """

    id: AttachmentId
    host: str
    conflist: str
    container: str
    interface: str
    netns: str
    port: PortId
    network: NetworkId


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A machine with an agent. `cfg` is the last change it has applied, `problems` what its agent
    could not do.

    Tunnels run over IPv4, whatever they carry.
    """

    name: str
    tunnel_ip: IPv4Address | None
    overlays: frozenset[Overlay]
    underlay_mtu_bytes: int | None
    cfg: int = 0
    heartbeat_s: int = 0
    problems: frozenset[str] = frozenset()
    version: str = ""
    crush_host: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def host_port_name(host: str) -> str:
    """What a host's own port is called, in every network with host access."""
    return f"host-{host}"


def holder(bindings: Iterable[Binding], only: str | None = None) -> Binding | None:
    """The binding that says where a port is now; of one that `only` a host may hold, that host's.

    A host can write a claim to any port, whoever has its key: so it is for the others to pass
    over what it must not claim.
    """
    active = [one for one in bindings if one.active and only in (None, one.host)]
    return max(active, key=lambda binding: (binding.claim, binding.host), default=None)
