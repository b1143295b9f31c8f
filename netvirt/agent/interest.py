"""Which rows of the fabric database a host asks for. Pure."""

from collections.abc import Collection

from netvirt.model import NetworkId, PortId
from tenancy.backends.codec import Value

Clause = tuple[str, Value]


def clauses(
    host_name: str,
    interfaces: Collection[PortId],
    networks: Collection[NetworkId],
    remote_hosts: Collection[str],
) -> dict[str, set[Clause]]:
    """Conditions by table: rows of the networks held, and what is needed to learn of more.

    A port with an interface here is asked for by its id: only its row tells its network. Every
    host is in the networks with host access.
    """
    of_networks: set[Clause] = {("network", network) for network in networks}
    return {
        "Network": {("host_access", True)} | {("id", network) for network in networks},
        "Subnet": of_networks,
        "Address": of_networks,
        "Port": of_networks | {("id", port) for port in interfaces},
        "Binding": of_networks | {("host", host_name)},
        "Attachment": {("host", host_name)},
        "Host": {("name", host_name)} | {("name", host) for host in remote_hosts},
    }
