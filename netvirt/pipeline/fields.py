"""The packet and metadata fields that the pipeline matches and sets, under the names of
ovs-fields(7).

Values are plain integers everywhere in the pipeline; a field knows its width and how ovs-ofctl
writes it. Registers carry a name for what virtkit keeps in them, so that no other module says
`reg14`.
"""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address


class Kind(Enum):
    """How ovs-ofctl writes a value."""

    DECIMAL = "decimal"
    HEX = "hex"
    MAC = "mac"
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    FRAGMENT = "fragment"


# Which piece of a datagram a packet is.
WHOLE, FIRST_FRAGMENT, LATER_FRAGMENT = 0, 1, 3
_FRAGMENTS = {WHOLE: "no", FIRST_FRAGMENT: "first", LATER_FRAGMENT: "later"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its ovs-fields(7) name, width, notation, and what virtkit uses it for."""

    name: str
    bits: int
    kind: Kind
    purpose: str

    def text(self, value: int) -> str:
        if self.kind is Kind.MAC:
            return ":".join(f"{byte:02x}" for byte in value.to_bytes(6, "big"))
        if self.kind is Kind.IPV4:
            return str(IPv4Address(value))
        if self.kind is Kind.IPV6:
            return str(IPv6Address(value))
        if self.kind is Kind.FRAGMENT:
            return _FRAGMENTS.get(value, f"{value:#x}")
        return f"{value:#x}" if self.kind is Kind.HEX else str(value)

    @property
    def all_ones(self) -> int:
        return (1 << self.bits) - 1


IN_PORT = Field("in_port", 32, Kind.DECIMAL, "OpenFlow port that the packet came in by")
METADATA = Field("metadata", 64, Kind.HEX, "segment id of the packet's network")
TUN_ID = Field("tun_id", 64, Kind.HEX, "segment id on the wire: VXLAN VNI or GRE key")
TUN_SRC = Field("tun_src", 32, Kind.IPV4, "tunnel endpoint that sent the packet")
TUN_DST = Field("tun_dst", 32, Kind.IPV4, "tunnel endpoint that the packet goes to")

FLAGS = Field("reg13", 32, Kind.HEX, "bit 0: the packet came out of a tunnel")
REASON = Field("reg14", 32, Kind.DECIMAL, "why the packet is dropped, for table drop")
OUTPUT = Field("reg15", 32, Kind.DECIMAL, "OpenFlow port that the packet leaves by")

ETH_SRC = Field("eth_src", 48, Kind.MAC, "source MAC address")
ETH_DST = Field("eth_dst", 48, Kind.MAC, "destination MAC address")
ETH_TYPE = Field("eth_type", 16, Kind.HEX, "EtherType")
IP_PROTO = Field("nw_proto", 8, Kind.DECIMAL, "IP protocol; of IPv6, behind extension headers")
IP_FRAGMENT = Field("nw_frag", 8, Kind.FRAGMENT, "which fragment of a datagram it is, or none")
IPV4_SRC = Field("nw_src", 32, Kind.IPV4, "IPv4 source address")
IPV4_DST = Field("nw_dst", 32, Kind.IPV4, "IPv4 destination address")
IPV6_SRC = Field("ipv6_src", 128, Kind.IPV6, "IPv6 source address")
UDP_SRC = Field("udp_src", 16, Kind.DECIMAL, "UDP source port")
UDP_DST = Field("udp_dst", 16, Kind.DECIMAL, "UDP destination port")
ARP_OP = Field("arp_op", 16, Kind.DECIMAL, "1 request, 2 reply")
ARP_SPA = Field("arp_spa", 32, Kind.IPV4, "ARP sender IPv4 address")
ARP_TPA = Field("arp_tpa", 32, Kind.IPV4, "ARP target IPv4 address")
ARP_SHA = Field("arp_sha", 48, Kind.MAC, "ARP sender MAC address")
ARP_THA = Field("arp_tha", 48, Kind.MAC, "ARP target MAC address")
ICMPV6_TYPE = Field("icmpv6_type", 8, Kind.DECIMAL, "135 solicitation, 136 advertisement, ...")
ND_TARGET = Field("nd_target", 128, Kind.IPV6, "IPv6 address that neighbour discovery is about")
ND_SLL = Field("nd_sll", 48, Kind.MAC, "MAC address of the sender of a solicitation; 0 without")
ND_TLL = Field("nd_tll", 48, Kind.MAC, "MAC address of an advertisement's target; 0 without")

ALL_FIELDS: tuple[Field, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Field)
)

# The bits of FLAGS
FROM_TUNNEL = 0x1
