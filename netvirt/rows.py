"""Rows of the fabric database to records of the model. Pure, and the only place that knows both."""

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address, ip_network

from netvirt.model import (
    AddressRange,
    Attachment,
    AttachmentId,
    Binding,
    BindingId,
    Host,
    IPAddress,
    Mac,
    Network,
    NetworkId,
    Overlay,
    Port,
    PortId,
    PortKind,
    Subnet,
    SubnetId,
)
from tenancy.backends.codec import Row
from tenancy.model import TenantId

# What an agent replicates; commands read whole rows.
AGENT_COLUMNS = {
    "Fabric": ("cfg",),
    "Network": ("tenant", "name", "overlay", "segment_id", "mtu", "cfg", "host_access", "labels"),
    "Subnet": ("network", "cidr", "gateway", "pools", "dns", "dhcp"),
    "Port": ("tenant", "network", "name", "mac", "kind", "host", "labels"),
    "Address": ("network", "port", "ip", "host"),
    "Binding": ("port", "network", "host", "claim", "active"),
    "Attachment": ("host", "conflist", "container", "interface", "netns", "port", "network"),
    "Host": (
        "name",
        "tunnel_ip",
        "overlays",
        "underlay_mtu",
        "crush_host",
        "cfg",
        "heartbeat",
        "problems",
        "version",
        "labels",
    ),
}

# Those whose few values stand in very many rows, and are kept once.
REPEATED_COLUMNS = {
    "Port": ("tenant", "network", "kind"),
    "Address": ("network",),
    "Binding": ("network", "host", "claim", "active"),
}


def subnet(row: Row) -> Subnet:
    cidr = ip_network(row["cidr"])
    gateway = row["gateway"]
    return Subnet(
        id=SubnetId(row.id),
        network=NetworkId(row["network"]),
        cidr=cidr,
        gateway=ip_address(gateway) if gateway else cidr[1],
        pools=tuple(sorted(map(address_range, row["pools"]), key=lambda pool: int(pool.first))),
        dns=tuple(sorted(map(ip_address, row["dns"]), key=int)),
        dhcp=row["dhcp"],
    )


def network(row: Row, subnets: Iterable[Row]) -> Network:
    return Network(
        id=NetworkId(row.id),
        tenant=TenantId(row["tenant"]),
        name=row["name"],
        overlay=Overlay(row["overlay"]),
        segment_id=row["segment_id"],
        mtu_bytes=row["mtu"],
        subnets=tuple(sorted(map(subnet, subnets), key=lambda one: one.cidr.version)),
        host_access=row["host_access"],
        labels=row["labels"],
    )


def port(row: Row, addresses: Iterable[Row]) -> Port:
    return Port(
        id=PortId(row.id),
        tenant=TenantId(row["tenant"]),
        network=NetworkId(row["network"]),
        name=row["name"],
        mac=Mac.parse(row["mac"]),
        kind=PortKind(row["kind"]),
        # A host that writes an address to a port not its own has written nothing.
        addresses=tuple(
            sorted(
                (ip_address(one["ip"]) for one in addresses if one["host"] == row["host"]),
                key=_order,
            )
        ),
        host=row["host"],
        labels=row["labels"],
    )


def binding(row: Row) -> Binding:
    return Binding(
        id=BindingId(row.id),
        port=PortId(row["port"]),
        network=NetworkId(row["network"]),
        host=row["host"],
        claim=row["claim"],
        active=row["active"],
    )


def attachment(row: Row) -> Attachment:
    return Attachment(
        id=AttachmentId(row.id),
        host=row["host"],
        conflist=row["conflist"],
        container=row["container"],
        interface=row["interface"],
        netns=row["netns"],
        port=PortId(row["port"]),
        network=NetworkId(row["network"]),
    )


def host(row: Row) -> Host:
    tunnel_ip = row["tunnel_ip"]
    return Host(
        name=row["name"],
        tunnel_ip=IPv4Address(tunnel_ip) if tunnel_ip else None,
        overlays=frozenset(map(Overlay, row["overlays"])),
        underlay_mtu_bytes=row["underlay_mtu"],
        cfg=row["cfg"],
        heartbeat_s=row["heartbeat"],
        problems=row["problems"],
        version=row["version"],
        crush_host=row["crush_host"],
        labels=row["labels"],
    )


def address_range(text: str) -> AddressRange:
    first, _, last = text.partition("-")
    return AddressRange(first=ip_address(first), last=ip_address(last))


def _order(address: IPAddress) -> tuple[int, int]:
    """IPv4 before IPv6."""
    return address.version, int(address)
