"""The tables of br-int, why packets are dropped, and what happens to a packet no flow matches.

Numbers leave gaps where conntrack, policy, routing and load balancing will go.
"""

from dataclasses import dataclass
from enum import IntEnum

from netvirt.pipeline import fields as f
from netvirt.pipeline.flow import Action, Goto, SetField


class Reason(IntEnum):
    """Why a packet is dropped; table `drop` counts each."""

    UNKNOWN_PORT = 1
    UNKNOWN_SEGMENT = 2
    MAC_SOURCE = 3
    ARP_SOURCE = 4
    IP_SOURCE = 5
    DHCP_SERVER = 6
    ARP_UNKNOWN = 7
    UNKNOWN_DESTINATION = 8
    UNKNOWN_NETWORK = 9
    ETHERTYPE = 10
    IP_VERSION = 11
    IPV6_HEADERS = 12
    ROUTER = 13
    ND_SOURCE = 14
    ND_UNKNOWN = 15

    @property
    def label(self) -> str:
        """The reason as commands and metrics print it."""
        return self.name.lower().replace("_", "-")


EXPLANATION = {
    Reason.UNKNOWN_PORT: "came in by an interface that is no port of the fabric (yet)",
    Reason.UNKNOWN_SEGMENT: "came out of a tunnel with a segment id this host holds no port of",
    Reason.MAC_SOURCE: "source MAC address is not the port's own",
    Reason.ARP_SOURCE: "ARP sender addresses are not the port's own",
    Reason.IP_SOURCE: "source IP address is not the port's own",
    Reason.DHCP_SERVER: "a port played DHCP or DHCPv6 server",
    Reason.ARP_UNKNOWN: "ARP request for an address that no port of the network has",
    Reason.UNKNOWN_DESTINATION: "destination MAC address is no port's of the network",
    Reason.ETHERTYPE: "is neither IP nor ARP",
    Reason.UNKNOWN_NETWORK: "flooded in a network that this host does not hold",
    Reason.IP_VERSION: "is IPv4 or IPv6 in a network that has no subnet of it",
    Reason.IPV6_HEADERS: "extension headers hide what an IPv6 packet or its first fragment is",
    Reason.ROUTER: "a port played IPv6 router: advertisement or redirect",
    Reason.ND_SOURCE: "neighbour discovery with addresses that are not the port's own",
    Reason.ND_UNKNOWN: "neighbour solicitation for an address that no port of the network has",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A stage. `miss` is the drop reason, or the next table, for what no flow matches."""

    id: int
    name: str
    purpose: str
    miss: "Reason | Table | None"


DROP = Table(90, "drop", "drop, counted by reason", None)
OUTPUT = Table(80, "output", "send to the port chosen earlier", None)
FLOOD = Table(65, "flood", "head-end replication to all of the network", Reason.UNKNOWN_NETWORK)
L2 = Table(60, "l2", "(segment, MAC) to local port or remote host", Reason.UNKNOWN_DESTINATION)
PUNT = Table(42, "punt", "DHCP to the agent, metered", L2)
ARP = Table(40, "arp", "ARP requests answered in the switch", PUNT)
ND = Table(41, "nd", "neighbour solicitations sent to the port they ask for", PUNT)
GUARD_ND = Table(14, "guard-nd", "neighbour discovery must name the port's own addresses", ND)
GUARD_IP = Table(12, "guard-ip", "source IP address must be the port's own", Reason.ETHERTYPE)
GUARD_MAC = Table(10, "guard-mac", "source MAC and ARP must be the port's own", Reason.MAC_SOURCE)
TUNNEL = Table(5, "tunnel", "tunnel's segment id to metadata", Reason.UNKNOWN_SEGMENT)
CLASSIFY = Table(0, "classify", "where does it come from", Reason.UNKNOWN_PORT)

ALL_TABLES: tuple[Table, ...] = (
    CLASSIFY,
    TUNNEL,
    GUARD_MAC,
    GUARD_IP,
    GUARD_ND,
    ARP,
    ND,
    PUNT,
    L2,
    FLOOD,
    OUTPUT,
    DROP,
)

# Meter 1 limits what tenants can make the agent do; per host, in packets per second.
PUNT_METER = 1
PUNT_RATE_PPS = 500
METERS = {PUNT_METER: PUNT_RATE_PPS}


def drop(reason: Reason) -> tuple[Action, ...]:
    """The actions that drop a packet and count why."""
    return (SetField(f.REASON, reason), Goto(DROP.id))
