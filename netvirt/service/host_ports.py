"""Host access to networks: whether a network can have it, and the hosts' own ports.

A host's own port is made by its agent. It is nobody's to plug, and costs no quota; it goes with
the network, with the host, or when the network loses host access.
"""

from collections.abc import Iterable
from uuid import UUID

from netvirt import admit, rows
from netvirt.model import IPNetwork, PortKind, host_port_name
from tenancy.backends.codec import Row, Value
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import Refused


def check_network(
    fabric: Fabric,
    transaction: Transaction,
    name: str,
    cidrs: Iterable[IPNetwork],
    network: UUID | None = None,
) -> None:
    """Refuse host access to a network that its hosts could not tell from others.

    `network` is its id if it exists. The transaction goes through only if no other network is
    given host access meanwhile.
    """
    others, subnets, tenants, hosts = fabric.select_many(
        [("Network", {"host_access": True}), ("Subnet", {}), ("Tenant", {}), ("Host", {})]
    )
    transaction.require_same("Network", "segment_id", others, host_access=True)
    tenant_names = {tenant.id: tenant["name"] for tenant in tenants}
    taken = [
        (subnet.cidr, f"network {other['name']} of tenant {tenant_names.get(other['tenant'])}")
        for other in others
        if other.id != network
        for subnet in map(rows.subnet, subnets)
        if subnet.network == other.id
    ]
    for cidr in cidrs:
        admit.check_host_access(name, cidr, taken, map(rows.host, hosts))
    if network is not None:
        _check_names(fabric, name, network, hosts)


def check_port_name(fabric: Fabric, port: str, network: Row) -> None:
    """Refuse a port the name that a host's own port has or will have."""
    host = port.removeprefix(host_port_name(""))
    if host == port or not network["host_access"]:
        return
    if fabric.find("Host", name=host) is not None:
        raise Refused(
            f"port {port}: that is what host {host}'s own port in network {network['name']} is "
            "called. Choose another name."
        )


def check_not_host_port(port: str, kind: str, network: str, done: str) -> None:
    """Refuse to do by hand with a host's own port what its agent does."""
    if kind == PortKind.HOST:
        raise Refused(
            f"port {port} of network {network} is a host's own and can't be {done}. It goes when "
            f"the network loses host access (`nvctl network set {network} --no-host-access`) or "
            "the host is forgotten (`nvctl host delete`)."
        )


def remove_ports(fabric: Fabric, transaction: Transaction, **equals: Value) -> None:
    """Remove the hosts' own ports with these values, also one that appears meanwhile."""
    for port in fabric.select("Port", kind=PortKind.HOST, **equals):
        transaction.delete_where("Binding", port=port.id)
        transaction.delete_where("Address", port=port.id)
        transaction.delete(port)
    transaction.require_none("Port", kind=PortKind.HOST, **equals)


def _check_names(fabric: Fabric, network_name: str, network: UUID, hosts: Iterable[Row]) -> None:
    reserved = {host_port_name(host["name"]) for host in hosts}
    for port in fabric.select("Port", network=network):
        if port["name"] in reserved and port["kind"] != PortKind.HOST:
            raise Refused(
                f"network {network_name}: its port {port['name']} has the name of a host's own "
                "port. Delete it, or make it anew with another name."
            )
