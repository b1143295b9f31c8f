"""Reading all that the fabric database says for a check-up, and mending rows that say nonsense."""

import time
from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from uuid import UUID

from netvirt import rows
from netvirt.checks.fabric import (
    Account,
    DeleteBinding,
    DeleteHostPort,
    DeleteLease,
    FabricFacts,
    ForgetAttachments,
    Lease,
    Recount,
)
from netvirt.checks.hosts import ForgetAttachment, WithdrawBinding
from netvirt.model import NetworkId, Port, PortId, PortKind
from netvirt.service import attachments, host_ports, hosts
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.model import Resource

_COUNTED = (Resource.NETWORKS, Resource.PORTS, Resource.ADDRESSES)
_TABLES = ("Network", "Port", "Address", "Tenant", "Quota")

FabricMend = (
    DeleteBinding
    | DeleteHostPort
    | DeleteLease
    | ForgetAttachment
    | ForgetAttachments
    | Recount
    | WithdrawBinding
)


def observe(fabric: Fabric, version: str, follow_s: float) -> FabricFacts:
    """The database at one moment, once agents that report have had `follow_s` to
    apply what was there."""
    now_s = int(time.time())
    cfg = int(fabric.top()["cfg"])
    alive = frozenset(host.name for host in hosts.list_all(fabric) if hosts.is_alive(host, now_s))
    fabric.wait_for_hosts(cfg, alive, follow_s)
    names = (*_TABLES, "Subnet", "Host", "Binding", "Attachment")
    found = dict(zip(names, fabric.select_many([(table, {}) for table in names]), strict=True))
    subnets: dict[UUID, list[Row]] = {}
    for subnet in found["Subnet"]:
        subnets.setdefault(subnet["network"], []).append(subnet)
    ports = _ports(found["Port"], found["Address"])
    return FabricFacts(
        now_s=now_s,
        cfg=cfg,
        version=version,
        hosts=tuple(map(rows.host, found["Host"])),
        networks={
            NetworkId(row.id): rows.network(row, subnets.get(row.id, []))
            for row in found["Network"]
        },
        ports=ports,
        leases=tuple(_lease(row, found["Subnet"]) for row in found["Address"]),
        bindings=tuple(map(rows.binding, found["Binding"])),
        attachments=tuple(map(rows.attachment, found["Attachment"])),
        accounts=tuple(_accounts(found["Quota"], found)),
        alive=alive,
    )


def mend(fabric: Fabric, what: FabricMend) -> None:
    """Delete or correct the rows that a finding is about, if they still are what they were."""

    def build(transaction: Transaction) -> None:
        match what:
            case DeleteBinding(row_id):
                _delete_binding_of_nobody(fabric, transaction, row_id)
            case WithdrawBinding(row_id):
                transaction.delete_where("Binding", id=row_id)
            case DeleteLease(row_id):
                transaction.delete_where("Address", id=row_id)
            case DeleteHostPort(name, network):
                host_ports.remove_ports(fabric, transaction, name=name, network=network)
            case ForgetAttachments(host):
                transaction.require_none("Host", name=host)
                attachments.forget_host(fabric, transaction, host)
            case ForgetAttachment(row_id):
                attachments.forget(fabric, transaction, fabric.select("Attachment", id=row_id))
            case Recount(quota_id):
                _recount(fabric, transaction, quota_id)

    fabric.change(build)


def _delete_binding_of_nobody(fabric: Fabric, transaction: Transaction, row_id: UUID) -> None:
    for row in fabric.select("Binding", id=row_id):
        transaction.require_none("Host", name=row["host"])
        transaction.delete(row)


def _recount(fabric: Fabric, transaction: Transaction, quota_id: UUID) -> None:
    # Whoever makes or deletes what is counted changes the quota in the same transaction, so that
    # the guard fails and all is counted again.
    answers = fabric.select_many([(table, {}) for table in _TABLES])
    found = dict(zip(_TABLES, answers, strict=True))
    quota = [row for row in found["Quota"] if row.id == quota_id]
    for account in _accounts(quota, found):
        if account.booked != account.counted <= account.limit:
            transaction.guard(quota[0], "available", "limit")
            transaction.update(quota[0], {"available": account.limit - account.counted})


def _accounts(quotas: Iterable[Row], found: dict[str, list[Row]]) -> Iterable[Account]:
    tenants = {row.id: row["name"] for row in found["Tenant"]}
    charged = {row.id: row["tenant"] for row in found["Port"] if row["kind"] != PortKind.HOST}
    counted = {
        Resource.NETWORKS: Counter(row["tenant"] for row in found["Network"]),
        Resource.PORTS: Counter(charged.values()),
        Resource.ADDRESSES: Counter(
            charged[row["port"]] for row in found["Address"] if row["port"] in charged
        ),
    }
    for row in quotas:
        if row["resource"] in _COUNTED:
            yield Account(
                quota_id=row.id,
                tenant=tenants.get(row["tenant"], "?"),
                resource=row["resource"],
                limit=row["limit"],
                booked=row["limit"] - row["available"],
                counted=counted[Resource(row["resource"])][row["tenant"]],
            )


def _ports(found: Iterable[Row], addresses: Iterable[Row]) -> dict[PortId, Port]:
    of_port: dict[UUID, list[Row]] = {}
    for row in addresses:
        of_port.setdefault(row["port"], []).append(row)
    return {PortId(row.id): rows.port(row, of_port.get(row.id, [])) for row in found}


def _lease(row: Row, subnets: Iterable[Row]) -> Lease:
    subnet = next((one for one in subnets if one.id == row["subnet"]), None)
    fits = subnet is not None and subnet["network"] == row["network"]
    return Lease(
        id=row.id,
        ip=ip_address(row["ip"]),
        port=PortId(row["port"]),
        network=NetworkId(row["network"]),
        host=row["host"],
        subnet=ip_network(subnet["cidr"]) if subnet is not None and fits else None,
    )
