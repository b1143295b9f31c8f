"""Ports: create with address and MAC, find, list, change, delete."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from uuid import UUID, uuid4

from netvirt import admit, allocate, rows
from netvirt.model import (
    Binding,
    IPAddress,
    Mac,
    Network,
    Port,
    PortId,
    PortKind,
    Subnet,
    holder,
)
from netvirt.service import attachments, host_ports, hosts, networks
from netvirt.service.acknowledge import wait_for_hosts
from tenancy import ledger
from tenancy import service as tenants
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import (
    ReferenceViolation,
    Transaction,
    UniqueViolation,
)
from tenancy.errors import AlreadyExists, Conflict, InvalidRequest, NotFound, Refused
from tenancy.model import Resource
from tenancy.names import validate_name


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRequest:
    """What a user says of a port that does not exist yet; None leaves the choice to virtkit."""

    name: str
    kind: PortKind = PortKind.CONTAINER
    mac: str | None = None
    addresses: Sequence[str] = ()
    host: str | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortState:
    """A port with where it is: its network, and the binding that holds, if any does."""

    port: Port
    network: Network
    tenant_name: str
    binding: Binding | None


def create(
    fabric: Fabric,
    tenant_name: str,
    network_name: str,
    request: PortRequest,
    *,
    wait_s: float | None = None,
) -> PortState:
    """A new port with its MAC and one address in every subnet, unless addresses are given.

    With `wait_s`, returns when every host that holds the network knows the port.
    """
    name = validate_name("port", request.name)
    admit.check_port_kind(name, request.kind)
    if request.host is not None:
        hosts.find(fabric, request.host)
    mac = admit.check_port_mac(name, Mac.parse(request.mac)) if request.mac else None
    wanted = [admit.parse_address(f"port {name}", text) for text in request.addresses]
    made: list[Transaction] = []
    # What is chosen is nearly always free, and the database refuses it if it is not. Only then
    # is it worth looking: the server reads a whole table to find out.
    taken: Counter[str] = Counter()

    def build(transaction: Transaction) -> PortState:
        made.append(transaction)
        network_row = networks.find(fabric, tenant_name, network_name)
        subnets = fabric.select("Subnet", network=network_row.id)
        transaction.guard(network_row, "host_access")
        host_ports.check_port_name(fabric, name, network_row)
        network = rows.network(network_row, subnets)
        port_mac = mac or allocate.mac(network.id, name, taken["mac"])
        chosen = _choose_addresses(
            fabric, transaction, name, network_name, subnets, wanted, look=taken["ip"] > 0
        )
        port = Port(
            id=PortId(uuid4()),
            tenant=network.tenant,
            network=network.id,
            name=name,
            mac=port_mac,
            kind=request.kind,
            addresses=tuple(address for _, address in chosen),
            host=request.host,
            labels=request.labels or {},
        )
        insert(transaction, port, [subnet.id for subnet, _ in chosen])
        amounts = {Resource.PORTS: 1, Resource.ADDRESSES: len(chosen)}
        ledger.charge(transaction, port.tenant, tenant_name, amounts)
        if wait_s is not None:
            transaction.request_acknowledgement(port.network)
        return PortState(port=port, network=network, tenant_name=tenant_name, binding=None)

    def is_race(error: UniqueViolation) -> bool:
        """Whether virtkit chose the value that is taken, and so can choose another."""
        taken.update(error.columns)
        if "mac" in error.columns:
            return mac is None
        return "ip" in error.columns and _named(error, wanted) is None

    try:
        state = fabric.change(build, is_race)
    except UniqueViolation as error:
        raise _taken(error, name, network_name, mac, wanted) from error
    except ReferenceViolation as error:
        raise Conflict(f"port {name}: network {network_name} has just been deleted.") from error
    if wait_s is not None:
        wait_for_hosts(fabric, f"port {name}", made[-1].cfg, made[-1].holders, wait_s)
    return state


def insert(transaction: Transaction, port: Port, subnets: Sequence[UUID]) -> None:
    """Have the transaction write a port with its addresses, one in each of these subnets."""
    transaction.insert_as(
        port.id,
        "Port",
        {
            "tenant": port.tenant,
            "network": port.network,
            "name": port.name,
            "mac": str(port.mac),
            "kind": port.kind,
            "host": port.host,
            "labels": port.labels,
        },
    )
    for address, subnet in zip(port.addresses, subnets, strict=True):
        columns = {"network": port.network, "subnet": subnet, "port": port.id}
        transaction.insert("Address", {**columns, "ip": str(address), "host": port.host})


def get(fabric: Fabric, tenant_name: str, network_name: str, name: str) -> PortState:
    return _state(fabric, find(fabric, tenant_name, network_name, name))


def get_by_id(fabric: Fabric, port_id: UUID) -> PortState:
    row = fabric.find("Port", id=port_id)
    if row is None:
        raise NotFound(f"port {port_id} does not exist. See `nvctl port list`.")
    return _state(fabric, row)


def find(fabric: Fabric, tenant_name: str, network_name: str, name: str) -> Row:
    """The port's row, or `NotFound` with what to do."""
    network = networks.find(fabric, tenant_name, network_name)
    row = fabric.find("Port", network=network.id, name=name)
    if row is None:
        raise NotFound(
            f"port {name} of network {network_name} does not exist. "
            f"See `nvctl port list --tenant {tenant_name} --network {network_name}`."
        )
    return row


def list_all(
    fabric: Fabric, tenant_name: str | None = None, network_name: str | None = None
) -> list[PortState]:
    """Ports by tenant, network and name: of a network, of a tenant, or all."""
    equals: dict[str, UUID] = {}
    if network_name is not None:
        if tenant_name is None:
            raise InvalidRequest(f"network {network_name}: whose? Give --tenant.")
        equals = {"network": networks.find(fabric, tenant_name, network_name).id}
    elif tenant_name is not None:
        equals = {"tenant": tenants.find(fabric, tenant_name).id}
    of_network = {"network": equals["network"]} if "network" in equals else {}
    ports, addresses, bindings = fabric.select_many(
        [("Port", equals), ("Address", of_network), ("Binding", of_network)]
    )
    known = {network.id: (tenant, network) for tenant, network in networks.list_all(fabric)}
    by_port = _group(addresses)
    bindings_by_port = _group(bindings)
    states = []
    for row in ports:
        if row["network"] not in known:
            continue  # deleted between the two reads
        tenant, network = known[row["network"]]
        states.append(
            PortState(
                port=rows.port(row, by_port.get(row.id, [])),
                network=network,
                tenant_name=tenant,
                binding=holder(map(rows.binding, bindings_by_port.get(row.id, [])), row["host"]),
            )
        )
    return sorted(states, key=lambda s: (s.tenant_name, s.network.name, s.port.name))


def set_labels(
    fabric: Fabric, tenant_name: str, network_name: str, name: str, labels: Mapping[str, str]
) -> PortState:
    """Replace the port's labels."""
    row = find(fabric, tenant_name, network_name, name)
    transaction = fabric.transaction()
    transaction.update(row, {"labels": labels})
    transaction.commit()
    return get(fabric, tenant_name, network_name, name)


def set_host(
    fabric: Fabric, tenant_name: str, network_name: str, name: str, host: str | None
) -> PortState:
    """Say which host alone may hold the port; None lets it go wherever it is plugged in.

    A port that is held elsewhere is cut off there until it is plugged in on that host.
    """

    def build(transaction: Transaction) -> None:
        row = find(fabric, tenant_name, network_name, name)
        host_ports.check_not_host_port(name, row["kind"], network_name, "bound by hand")
        attachments.check_not_attached(fabric, row.id, name, "bound by hand")
        transaction.guard(row, "host")
        transaction.update(row, {"host": host})
        for address in fabric.select("Address", port=row.id):
            transaction.update(address, {"host": host})

    if host is not None:
        hosts.find(fabric, host)
    fabric.change(build)
    return get(fabric, tenant_name, network_name, name)


def delete(
    fabric: Fabric,
    tenant_name: str,
    network_name: str,
    name: str,
    *,
    force: bool = False,
    wait_s: float | None = None,
) -> None:
    """Remove a port with its addresses. One that is bound to a host needs `force`."""
    made: list[Transaction] = []

    def build(transaction: Transaction) -> None:
        made.append(transaction)
        row = find(fabric, tenant_name, network_name, name)
        host_ports.check_not_host_port(name, row["kind"], network_name, "deleted by hand")
        addresses, bindings = fabric.select_many(
            [("Address", {"port": row.id}), ("Binding", {"port": row.id})]
        )
        if bindings and not force:
            where = ", ".join(sorted(binding["host"] for binding in bindings))
            raise Refused(
                f"port {name} of network {network_name} is in use on {where}. Unplug it there "
                f"first (`nvctl port unplug {name}`), or give --force."
            )
        if not force:
            attachments.check_not_attached(fabric, row.id, name, "deleted")
        if not bindings:
            transaction.require_none("Binding", port=row.id)
        # Two deleters must not both give the quota back.
        transaction.require("Port", id=row.id)
        if wait_s is not None:
            # Ahead of the deletion: the host that held the port is concerned as well.
            transaction.request_acknowledgement(row["network"])
        transaction.delete_where("Binding", port=row.id)
        transaction.delete_where("Address", port=row.id)
        transaction.delete_where("Attachment", port=row.id)
        transaction.delete(row)
        amounts = {Resource.PORTS: 1, Resource.ADDRESSES: len(addresses)}
        ledger.refund(transaction, row["tenant"], amounts)

    fabric.change(build)
    if wait_s is not None:
        wait_for_hosts(fabric, f"port {name}", made[-1].cfg, made[-1].holders, wait_s)


def _state(fabric: Fabric, row: Row) -> PortState:
    addresses, bindings, network, subnets, tenant = fabric.select_many(
        [
            ("Address", {"port": row.id}),
            ("Binding", {"port": row.id}),
            ("Network", {"id": row["network"]}),
            ("Subnet", {"network": row["network"]}),
            ("Tenant", {"id": row["tenant"]}),
        ]
    )
    if not network or not tenant:
        raise NotFound(f"port {row['name']} has just been deleted.")
    return PortState(
        port=rows.port(row, addresses),
        network=rows.network(network[0], subnets),
        tenant_name=tenant[0]["name"],
        binding=holder(map(rows.binding, bindings), row["host"]),
    )


def _choose_addresses(
    fabric: Fabric,
    transaction: Transaction,
    port: str,
    network: str,
    subnet_rows: list[Row],
    wanted: Sequence[IPAddress],
    *,
    look: bool,
) -> list[tuple[Row, IPAddress]]:
    """An address in every subnet: the one wanted there, or else one that is free.

    `look` whether it is; without, the next one is taken for it.
    """
    subnets = [(row, rows.subnet(row)) for row in subnet_rows]
    subnets.sort(key=lambda found: found[1].cidr.version)
    given = admit.check_port_addresses(port, network, wanted, [subnet for _, subnet in subnets])
    return [
        (
            row,
            given.get(subnet.id)
            or _allocate_address(fabric, transaction, port, network, row, subnet, look=look),
        )
        for row, subnet in subnets
    ]


def _allocate_address(
    fabric: Fabric,
    transaction: Transaction,
    port: str,
    network: str,
    row: Row,
    subnet: Subnet,
    *,
    look: bool,
) -> IPAddress:
    """A free address; the transaction goes through only if nobody else was given it."""
    cursor = ip_address(row["cursor"]) if row["cursor"] else None
    address = allocate.address(
        allocate.addresses_from(subnet.cidr, subnet.gateway, subnet.pools, cursor),
        is_taken=lambda ip: (
            look and fabric.find("Address", network=row["network"], ip=str(ip)) is not None
        ),
        all_taken=lambda: {
            ip_address(taken["ip"]) for taken in fabric.select("Address", subnet=row.id)
        },
    )
    if address is None:
        raise Refused(
            f"port {port}: network {network} ({subnet.cidr}) has no free address left. "
            "Delete ports, or make a larger network."
        )
    transaction.guard(row, "cursor")
    transaction.update(row, {"cursor": str(address)})
    return address


def _named(error: UniqueViolation, addresses: Sequence[IPAddress]) -> IPAddress | None:
    """Which of the addresses it is that the error says is taken, if any."""
    return next((address for address in addresses if f'"{address}"' in str(error)), None)


def _taken(
    error: UniqueViolation,
    port: str,
    network: str,
    mac: Mac | None,
    addresses: Sequence[IPAddress],
) -> AlreadyExists:
    choose = "Choose another, or omit it and one is allocated."
    if "mac" in error.columns:
        return AlreadyExists(
            f"port {port}: MAC address {mac} is taken in network {network}. {choose}"
        )
    if "ip" in error.columns:
        address = _named(error, addresses)
        return AlreadyExists(
            f"port {port}: address {address} is taken in network {network}. {choose}"
        )
    return AlreadyExists(f"port {port} of network {network} exists already. Choose another name.")


def _group(found: list[Row]) -> dict[UUID, list[Row]]:
    by_port: dict[UUID, list[Row]] = {}
    for row in found:
        by_port.setdefault(row["port"], []).append(row)
    return by_port
