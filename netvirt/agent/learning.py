"""Having the flows follow what is known. Pure.

Only what has changed is passed on; that the outcome equals learning and compiling everything
anew, whatever happened before, is a property test.
"""

from netvirt.agent.knowledge import Knowledge
from netvirt.agent.topology import Topology
from netvirt.model import PortId


def learn(knowledge: Knowledge, topology: Topology) -> set[PortId]:
    """Bring `knowledge` up to date and `topology` with it; the ports that may have changed."""
    networks, ports = knowledge.refresh()
    for network in networks:
        topology.set_network(network, knowledge.networks.get(network))
    for port in ports:
        topology.set_port(port, knowledge.ports.get(port), knowledge.location(port))
    return ports
