"""Networks: create, find, list, change, delete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from uuid import UUID

from netvirt import admit, allocate, rows
from netvirt.model import SEGMENT_IDS, Host, IPNetwork, Network, Overlay, PortKind
from netvirt.service import host_ports
from netvirt.service.acknowledge import wait_for_hosts
from tenancy import ledger
from tenancy import service as tenants
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import ReferenceViolation, Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, Conflict, NotFound, Refused
from tenancy.model import Resource
from tenancy.names import validate_name


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRequest:
    """What a user says of a network that does not exist yet; None leaves the choice to virtkit.

    One CIDR, or one of either family. Gateways, pools and DNS servers go to that of their family.
    """

    name: str
    cidrs: Sequence[str]
    overlay: Overlay = Overlay.VXLAN
    segment_id: int | None = None
    mtu: int | None = None
    gateways: Sequence[str] = ()
    pools: Sequence[str] = ()
    dns: Sequence[str] = ()
    dhcp: bool = True
    host_access: bool = False
    labels: Mapping[str, str] | None = None


def create(fabric: Fabric, tenant_name: str, request: NetworkRequest) -> Network:
    """A new network of the tenant, with its segment id and MTU."""
    name = validate_name("network", request.name)
    plans = admit.plan_subnets(
        name,
        request.cidrs,
        gateway_texts=request.gateways,
        pool_texts=request.pools,
        dns_texts=request.dns,
        dhcp=request.dhcp,
    )
    if request.segment_id is not None:
        admit.check_segment_id(name, request.segment_id)
    hosts = [rows.host(row) for row in fabric.select("Host")]
    versions = [plan.cidr.version for plan in plans]
    mtu = admit.network_mtu(name, request.overlay, hosts, versions, request.mtu)

    def build(transaction: Transaction) -> None:
        # Read afresh each time: one that is deleted meanwhile must not be waited for.
        tenant = tenants.find(fabric, tenant_name)
        segment_id = request.segment_id or _allocate_segment(fabric, transaction, name)
        if request.host_access:
            host_ports.check_network(fabric, transaction, name, [plan.cidr for plan in plans])
        network = transaction.insert(
            "Network",
            {
                "tenant": tenant.id,
                "name": name,
                "overlay": request.overlay,
                "segment_id": segment_id,
                "mtu": mtu,
                "host_access": request.host_access,
                "labels": request.labels or {},
            },
        )
        for plan in plans:
            transaction.insert(
                "Subnet",
                {
                    "network": network,
                    "cidr": str(plan.cidr),
                    "gateway": str(plan.gateway),
                    "pools": frozenset(map(str, plan.pools)),
                    "dns": frozenset(map(str, plan.dns)),
                    "dhcp": plan.dhcp,
                },
            )
        ledger.charge(transaction, tenant.id, tenant_name, {Resource.NETWORKS: 1})

    try:
        fabric.change(build)
    except UniqueViolation as error:
        if error.columns == ("segment_id",):
            raise AlreadyExists(
                f"network {name}: segment id {request.segment_id} is taken. "
                "Choose another, or omit it and one is allocated."
            ) from error
        raise AlreadyExists(
            f"network {name} of tenant {tenant_name} exists already. Choose another name."
        ) from error
    return get(fabric, tenant_name, name)


def get(fabric: Fabric, tenant_name: str, name: str) -> Network:
    row = find(fabric, tenant_name, name)
    return rows.network(row, fabric.select("Subnet", network=row.id))


def find(fabric: Fabric, tenant_name: str, name: str) -> Row:
    """The network's row, or `NotFound` with what to do."""
    tenant = tenants.find(fabric, tenant_name)
    row = fabric.find("Network", tenant=tenant.id, name=name)
    if row is None:
        raise NotFound(
            f"network {name} of tenant {tenant_name} does not exist. "
            f"See `nvctl network list --tenant {tenant_name}`."
        )
    return row


def list_all(fabric: Fabric, tenant_name: str | None = None) -> list[tuple[str, Network]]:
    """Networks with their tenant's name, by tenant and name; of one tenant, or of all."""
    networks, subnets, tenant_rows = fabric.select_many(
        [("Network", {}), ("Subnet", {}), ("Tenant", {})]
    )
    names = {row.id: row["name"] for row in tenant_rows}
    if tenant_name is not None:
        tenants.find(fabric, tenant_name)
    of_network: dict[UUID, list[Row]] = {}
    for subnet in subnets:
        of_network.setdefault(subnet["network"], []).append(subnet)
    found = [
        (names[row["tenant"]], rows.network(row, of_network.get(row.id, [])))
        for row in networks
        if tenant_name is None or names[row["tenant"]] == tenant_name
    ]
    return sorted(found, key=lambda pair: (pair[0], pair[1].name))


def change(
    fabric: Fabric,
    tenant_name: str,
    name: str,
    *,
    mtu: int | None = None,
    dns: Sequence[str] | None = None,
    dhcp: bool | None = None,
    host_access: bool | None = None,
    labels: Mapping[str, str] | None = None,
    wait_s: float | None = None,
) -> Network:
    """Change what is not None. Guests learn a new MTU or DNS server when they renew their lease.

    Without host access, the hosts' own ports go."""

    def build(transaction: Transaction) -> None:
        row = find(fabric, tenant_name, name)
        subnets = {ip_network(one["cidr"]): one for one in fabric.select("Subnet", network=row.id)}
        cidrs: dict[int, IPNetwork] = {cidr.version: cidr for cidr in sorted(subnets, key=_version)}
        if mtu is not None:
            hosts: list[Host] = [rows.host(host) for host in fabric.select("Host")]
            checked = admit.network_mtu(name, Overlay(row["overlay"]), hosts, cidrs, mtu)
            transaction.update(row, {"mtu": checked})
        if labels is not None:
            transaction.update(row, {"labels": labels})
        if host_access is not None and host_access != row["host_access"]:
            if host_access:
                host_ports.check_network(fabric, transaction, name, subnets, row.id)
            else:
                host_ports.remove_ports(fabric, transaction, network=row.id)
            transaction.update(row, {"host_access": host_access})
        servers = None if dns is None else admit.dns_servers(name, dns, cidrs)
        for cidr, subnet in subnets.items():
            if servers is not None:
                transaction.update(subnet, {"dns": frozenset(map(str, servers[cidr.version]))})
            if dhcp is not None:
                transaction.update(subnet, {"dhcp": dhcp})
        transaction.guard(row)
        if wait_s is not None:
            transaction.request_acknowledgement(row.id)
        made.append(transaction)

    made: list[Transaction] = []
    fabric.change(build)
    if wait_s is not None:
        concerned = made[-1].holders
        if host_access:
            # Those that are still to have a port in it, too.
            concerned |= {host["name"] for host in fabric.select("Host")}
        wait_for_hosts(fabric, f"network {name}", made[-1].cfg, concerned, wait_s)
    return get(fabric, tenant_name, name)


def delete(fabric: Fabric, tenant_name: str, name: str) -> None:
    """Remove a network that has no ports any more but the hosts' own."""

    def build(transaction: Transaction) -> None:
        row = find(fabric, tenant_name, name)
        # Two deleters must not both give the quota back.
        transaction.require("Network", id=row.id)
        host_ports.remove_ports(fabric, transaction, network=row.id)
        transaction.delete_where("Subnet", network=row.id)
        transaction.delete(row)
        ledger.refund(transaction, row["tenant"], {Resource.NETWORKS: 1})

    try:
        fabric.change(build)
    except ReferenceViolation as error:
        row = find(fabric, tenant_name, name)
        ports = fabric.select("Port", network=row.id)
        count = sum(port["kind"] != PortKind.HOST for port in ports)
        raise Refused(
            f"network {name} of tenant {tenant_name} still has {count} "
            f"port{'s' if count != 1 else ''}. Delete them first."
        ) from error


def _version(cidr: IPNetwork) -> int:
    return cidr.version


def _allocate_segment(fabric: Fabric, transaction: Transaction, network: str) -> int:
    """A free segment id; the transaction goes through only if nobody else was given it."""
    fabric_row = fabric.top()
    transaction.guard(fabric_row, "next_segment")
    wanted = fabric_row["next_segment"]
    if fabric.find("Network", segment_id=wanted) is not None:
        taken = {row["segment_id"] for row in fabric.select("Network")}
        free = allocate.segment_id(taken, wanted)
        if free is None:
            raise Conflict(f"network {network}: all segment ids are taken. Delete a network first.")
        wanted = free
    following = wanted + 1 if wanted + 1 in SEGMENT_IDS else SEGMENT_IDS[0]
    transaction.update(fabric_row, {"next_segment": following})
    return int(wanted)
