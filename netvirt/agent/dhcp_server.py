"""Answering the DHCP requests that the switch punts: which port asks, and what it is told."""

from collections import Counter
from ipaddress import IPv4Address, IPv4Network

import structlog

from netvirt import dhcp
from netvirt.agent.knowledge import Knowledge
from netvirt.backends import dhcp_frames
from netvirt.backends.openflow import Switch
from netvirt.backends.openflow_events import PacketIn
from netvirt.model import GATEWAY_MAC, Network, Port, PortId, PortKind
from netvirt.pipeline.flow import Output

log = structlog.get_logger()

# The lease never changes while the port exists; it ends so that a guest hears of a new MTU.
LEASE_TIME_S = 3600


class DhcpServer:
    """Answers for the ports of this host, from what the agent knows and nothing else."""

    def __init__(self, knowledge: Knowledge, switch: Switch) -> None:
        self._knowledge = knowledge
        self._switch = switch
        self.counts: Counter[str] = Counter()

    def receive(self, packet: PacketIn) -> None:
        """Answer a punted frame, if there is an answer."""
        request = dhcp_frames.parse(packet.frame)
        if not isinstance(request, dhcp.DhcpRequest):
            self.counts[f"malformed: {request}"] += 1
            return
        lease = self._lease(packet.in_port)
        if lease is None:
            self.counts["unknown port"] += 1
            return
        reply = dhcp.answer(request, lease)
        if reply is None:
            self.counts["no answer due"] += 1
            return
        self._switch.packet_out([Output(packet.in_port)], dhcp_frames.render(reply))
        self.counts["answered"] += 1

    def _lease(self, in_port: int) -> dhcp.Lease | None:
        """What the port behind this OpenFlow port is to be told. One interface, one address."""
        for port_id, interface in self._knowledge.interfaces.items():
            if interface.ofport == in_port:
                return self._lease_of(port_id)
        return None

    def _lease_of(self, port_id: PortId) -> dhcp.Lease | None:
        port = self._knowledge.ports.get(port_id)
        network = self._knowledge.networks.get(port.network) if port else None
        return lease_of(port, network) if port and network else None


def lease_of(port: Port, network: Network) -> dhcp.Lease | None:
    """The lease of a port's IPv4 address, if its subnet has DHCP; none for a host. Pure.

    With host access there is somebody behind the gateway's address, and so a default route.
    """
    subnet = network.subnet(4)
    address = next((ip for ip in port.addresses if isinstance(ip, IPv4Address)), None)
    if port.kind is PortKind.HOST or subnet is None or not subnet.dhcp or address is None:
        return None
    assert isinstance(subnet.cidr, IPv4Network)
    assert isinstance(subnet.gateway, IPv4Address)
    return dhcp.Lease(
        ip=address,
        network=subnet.cidr,
        server_ip=subnet.gateway,
        server_mac=str(GATEWAY_MAC),
        mtu=network.mtu_bytes,
        dns=tuple(server for server in subnet.dns if isinstance(server, IPv4Address)),
        routes=(),
        router=subnet.gateway if network.host_access else None,
        lease_time_s=LEASE_TIME_S,
        hostname=port.name,
    )
