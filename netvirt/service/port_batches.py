"""Many ports at once: one transaction that makes all of them or none.

A batch keeps other writers waiting while the server takes it in, some 0.2 ms a port: a thousand
ports or fewer are a good size.
"""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from itertools import count
from uuid import uuid4

from netvirt import admit, allocate, rows
from netvirt.model import IPAddress, Mac, Network, Port, PortId, Subnet
from netvirt.service import host_ports, hosts, networks
from netvirt.service.acknowledge import wait_for_hosts
from netvirt.service.ports import PortRequest, PortState, insert
from tenancy import ledger
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import ReferenceViolation, Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, Conflict, InvalidRequest, Refused
from tenancy.model import Resource
from tenancy.names import validate_name


def create_many(
    fabric: Fabric,
    tenant_name: str,
    network_name: str,
    requests: Sequence[PortRequest],
    *,
    wait_s: float | None = None,
) -> list[PortState]:
    """New ports, in the order of the requests, whose MAC and IP addresses are all allocated.

    With `wait_s`, returns when every host that holds the network knows all of them.
    """
    for request in requests:
        _check(request)
    for host in {request.host for request in requests if request.host is not None}:
        hosts.find(fabric, host)
    if not requests:
        return []
    made: list[Transaction] = []

    def build(transaction: Transaction) -> list[PortState]:
        made.append(transaction)
        row = networks.find(fabric, tenant_name, network_name)
        subnets = fabric.select("Subnet", network=row.id)
        transaction.guard(row, "host_access")
        network = rows.network(row, subnets)
        macs = fabric.values("Port", "mac", network=row.id)
        by_id = {subnet.id: subnet for subnet in subnets}
        free = [
            (subnet, _free_addresses(fabric, by_id[subnet.id], subnet))
            for subnet in network.subnets
        ]
        states = []
        for request in requests:
            host_ports.check_port_name(fabric, request.name, row)
            addresses = tuple(_next(found, request.name, network, one) for one, found in free)
            port = Port(
                id=PortId(uuid4()),
                tenant=network.tenant,
                network=network.id,
                name=request.name,
                mac=_free_mac(network, request.name, macs),
                kind=request.kind,
                addresses=addresses,
                host=request.host,
                labels=request.labels or {},
            )
            insert(transaction, port, [subnet.id for subnet in network.subnets])
            states.append(
                PortState(port=port, network=network, tenant_name=tenant_name, binding=None)
            )
        for address, subnet in zip(states[-1].port.addresses, network.subnets, strict=True):
            transaction.guard(by_id[subnet.id], "cursor")
            transaction.update(by_id[subnet.id], {"cursor": str(address)})
        number = len(states)
        amounts = {Resource.PORTS: number, Resource.ADDRESSES: number * len(network.subnets)}
        ledger.charge(transaction, network.tenant, tenant_name, amounts)
        if wait_s is not None:
            transaction.request_acknowledgement(network.id)
        return states

    try:
        states = fabric.change(build, lambda error: "name" not in error.columns)
    except UniqueViolation as error:
        network = networks.find(fabric, tenant_name, network_name).id
        names = [request.name for request in requests]
        there = fabric.values("Port", "name", network=network).intersection(names)
        refused = there or {name for name in names if names.count(name) > 1}
        raise AlreadyExists(
            f"port {', '.join(sorted(refused)[:5])} of network {network_name} exists already, or "
            "is asked for twice. None of these ports is made. Choose another name."
        ) from error
    except ReferenceViolation as error:
        raise Conflict(f"network {network_name} has just been deleted.") from error
    if wait_s is not None:
        what = f"{len(states)} ports of network {network_name}"
        wait_for_hosts(fabric, what, made[-1].cfg, made[-1].holders, wait_s)
    return states


def _check(request: PortRequest) -> None:
    admit.check_port_kind(validate_name("port", request.name), request.kind)
    if request.mac is not None or request.addresses:
        raise InvalidRequest(
            f"port {request.name}: of many ports made at once all addresses are allocated. Make "
            "one that has its own by itself."
        )


def _free_addresses(fabric: Fabric, row: Row, subnet: Subnet) -> Iterator[IPAddress]:
    taken = {ip_address(ip) for ip in fabric.values("Address", "ip", subnet=row.id)}
    cursor = ip_address(row["cursor"]) if row["cursor"] else None
    candidates = allocate.addresses_from(subnet.cidr, subnet.gateway, subnet.pools, cursor)
    return (address for address in candidates if address not in taken)


def _next(found: Iterator[IPAddress], port: str, network: Network, subnet: Subnet) -> IPAddress:
    address = next(found, None)
    if address is None:
        raise Refused(
            f"port {port}: network {network.name} ({subnet.cidr}) has no free address left. None "
            "of these ports is made. Delete ports, or make a larger network."
        )
    return address


def _free_mac(network: Network, port: str, taken: set[str]) -> Mac:
    for attempt in count():
        mac = allocate.mac(network.id, port, attempt)
        if str(mac) not in taken:
            taken.add(str(mac))
            return mac
    raise AssertionError("count() does not end")
