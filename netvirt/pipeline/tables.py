"""The tables of br-int, why packets are dropped, and what happens to a packet no flow matches.

Numbers leave gaps where conntrack, policy, routing and load balancing will go.
"""

from dataclasses import dataclass
from enum import IntEnum


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
    Reason.DHCP_SERVER: "a port played DHCP server",
    Reason.ARP_UNKNOWN: "ARP request for an address that no port of the network has",
    Reason.UNKNOWN_DESTINATION: "destination MAC address is no port's of the network",
    Reason.ETHERTYPE: "is neither IPv4 nor ARP, such as IPv6, which is not supported yet",
    Reason.UNKNOWN_NETWORK: "flooded in a network that this host does not hold",
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
GUARD_IP = Table(12, "guard-ip", "source IP address must be the port's own", Reason.ETHERTYPE)
GUARD_MAC = Table(10, "guard-mac", "source MAC and ARP must be the port's own", Reason.MAC_SOURCE)
TUNNEL = Table(5, "tunnel", "tunnel's segment id to metadata", Reason.UNKNOWN_SEGMENT)
CLASSIFY = Table(0, "classify", "where does it come from", Reason.UNKNOWN_PORT)

ALL_TABLES: tuple[Table, ...] = (
    CLASSIFY,
    TUNNEL,
    GUARD_MAC,
    GUARD_IP,
    ARP,
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
