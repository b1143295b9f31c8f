"""Containers' interfaces that the CNI made: who has which port, and whose they are to take away."""

from dataclasses import dataclass
from uuid import UUID

from netvirt import rows
from netvirt.model import Attachment, Port
from tenancy import ledger
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import Refused
from tenancy.model import Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentState:
    """An attachment with its port."""

    attachment: Attachment
    port: Port
    network_name: str
    tenant_name: str


def list_all(fabric: Fabric, host: str | None = None) -> list[AttachmentState]:
    """Attachments by host, container and interface: of one host, or all."""
    equals = {} if host is None else {"host": host}
    found, port_rows, addresses, network_rows, tenants = fabric.select_many(
        [("Attachment", equals), ("Port", {}), ("Address", {}), ("Network", {}), ("Tenant", {})]
    )
    names = {row.id: row["name"] for row in (*network_rows, *tenants)}
    port_of = {row.id: row for row in port_rows}
    address_of: dict[UUID, list[Row]] = {}
    for row in addresses:
        address_of.setdefault(row["port"], []).append(row)
    states = []
    for attachment in map(rows.attachment, found):
        port = rows.port(port_of[attachment.port], address_of.get(attachment.port, []))
        states.append(
            AttachmentState(
                attachment=attachment,
                port=port,
                network_name=names[port.network],
                tenant_name=names[port.tenant],
            )
        )
    return sorted(
        states,
        key=lambda s: (s.attachment.host, s.attachment.container, s.attachment.interface),
    )


def check_not_attached(fabric: Fabric, port_id: UUID, port: str, done: str) -> None:
    """Refuse to do by hand what is for the container's runtime to do."""
    row = fabric.find("Attachment", port=port_id)
    if row is not None:
        raise Refused(
            f"port {port} is interface {row['interface']} of container {row['container']} on host "
            f"{row['host']}, and not to be {done} by hand. Remove the container there."
        )


def forget_host(fabric: Fabric, transaction: Transaction, host: str) -> frozenset[UUID]:
    """Delete the ports of a host's containers, which are gone with it; returns their ids."""
    return forget(fabric, transaction, fabric.select("Attachment", host=host))


def forget(fabric: Fabric, transaction: Transaction, attachments: list[Row]) -> frozenset[UUID]:
    """Delete the ports of containers that are gone, and give their quota back; their ids."""
    for attachment in attachments:
        port, addresses = fabric.select_many(
            [("Port", {"id": attachment["port"]}), ("Address", {"port": attachment["port"]})]
        )
        if not port:
            continue
        transaction.require("Port", id=port[0].id)
        for table in ("Binding", "Address", "Attachment"):
            transaction.delete_where(table, port=port[0].id)
        transaction.delete(port[0])
        amounts = {Resource.PORTS: 1, Resource.ADDRESSES: len(addresses)}
        ledger.refund(transaction, port[0]["tenant"], amounts)
    return frozenset(attachment["port"] for attachment in attachments)
