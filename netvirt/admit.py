"""From what a user wrote to what can be stored: parsing and the invariants of a request. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

from netvirt.model import (
    DEFAULT_UNDERLAY_MTU,
    GATEWAY_MAC,
    MINIMUM_MTU,
    SEGMENT_IDS,
    AddressRange,
    Host,
    Mac,
    Overlay,
    PortKind,
)
from tenancy.errors import InvalidRequest, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetPlan:
    """A subnet that does not exist yet."""

    cidr: IPv4Network
    gateway: IPv4Address
    pools: tuple[AddressRange, ...]
    dns: tuple[IPv4Address, ...]
    dhcp: bool


def plan_subnet(
    network: str,
    cidr_text: str,
    *,
    gateway_text: str | None = None,
    pool_texts: Sequence[str] = (),
    dns_texts: Sequence[str] = (),
    dhcp: bool = True,
) -> SubnetPlan:
    """The subnet meant. The gateway defaults to the first address, the pool to all the others."""
    cidr = parse_cidr(network, cidr_text)
    hosts_first, hosts_last = cidr.network_address + 1, cidr.broadcast_address - 1
    gateway = parse_address(network, gateway_text) if gateway_text else hosts_first
    if not hosts_first <= gateway <= hosts_last:
        raise InvalidRequest(
            f"network {network}: gateway {gateway} is not a host address of {cidr}. "
            f"Choose one of {hosts_first} to {hosts_last}, or omit it."
        )
    pools = tuple(parse_range(network, text, cidr) for text in pool_texts)
    return SubnetPlan(
        cidr=cidr,
        gateway=gateway,
        pools=pools or (AddressRange(first=hosts_first, last=hosts_last),),
        dns=tuple(parse_address(network, text) for text in dns_texts),
        dhcp=dhcp,
    )


def parse_cidr(network: str, text: str) -> IPv4Network:
    try:
        cidr = ip_network(text)
    except ValueError as error:
        hint = ""
        try:
            hint = f" Did you mean {ip_network(text, strict=False)}?"
        except ValueError:
            hint = " Write address and prefix length: 10.1.0.0/24."
        raise InvalidRequest(f"network {network}: {text!r} is not a CIDR.{hint}") from error
    if not isinstance(cidr, IPv4Network):
        raise InvalidRequest(
            f"network {network}: {cidr} is IPv6, which is not supported yet. Give an IPv4 CIDR."
        )
    if not 8 <= cidr.prefixlen <= 29:
        raise InvalidRequest(
            f"network {network}: {cidr} has prefix length {cidr.prefixlen}. Choose /8 to /29."
        )
    if cidr.is_multicast or cidr.is_loopback or cidr.is_unspecified or cidr.is_link_local:
        raise InvalidRequest(
            f"network {network}: {cidr} is multicast, loopback, link-local or unspecified space. "
            "Choose unicast addresses, such as 10.1.0.0/24."
        )
    return cidr


def parse_address(what: str, text: str) -> IPv4Address:
    try:
        address = ip_address(text)
    except ValueError as error:
        raise InvalidRequest(
            f"{what}: {text!r} is not an IP address. Write it as 10.1.0.7."
        ) from error
    if not isinstance(address, IPv4Address):
        raise InvalidRequest(
            f"{what}: {address} is IPv6, which is not supported yet. Give an IPv4 address."
        )
    return address


def parse_range(network: str, text: str, cidr: IPv4Network) -> AddressRange:
    first_text, dash, last_text = text.partition("-")
    if not dash:
        raise InvalidRequest(f"network {network}: pool {text!r} is not a range. Write FIRST-LAST.")
    first, last = parse_address(network, first_text), parse_address(network, last_text)
    if first > last or not cidr.network_address < first <= last < cidr.broadcast_address:
        raise InvalidRequest(
            f"network {network}: pool {text} is empty or not inside {cidr}. "
            f"Choose it within {cidr.network_address + 1}-{cidr.broadcast_address - 1}."
        )
    return AddressRange(first=first, last=last)


def check_segment_id(network: str, segment_id: int) -> int:
    if segment_id not in SEGMENT_IDS:
        raise InvalidRequest(
            f"network {network}: segment id {segment_id} is out of range. "
            f"Choose 1 to {SEGMENT_IDS[-1]}, or omit it and one is allocated."
        )
    return segment_id


def network_mtu(
    network: str, overlay: Overlay, hosts: Iterable[Host], wanted: int | None = None
) -> int:
    """The MTU in bytes for a tenant's IP packets: what the smallest underlay leaves, or less."""
    underlays = [
        host.underlay_mtu_bytes
        for host in hosts
        if host.underlay_mtu_bytes and overlay in host.overlays
    ]
    underlay = min(underlays, default=DEFAULT_UNDERLAY_MTU)
    largest = underlay - overlay.overhead_bytes
    if largest < MINIMUM_MTU:
        raise InvalidRequest(
            f"network {network}: an underlay MTU of {underlay} leaves {largest} for {overlay}, and "
            f"IPv4 needs {MINIMUM_MTU}. Raise it on the hosts: `nvctl host list`."
        )
    if wanted is None:
        return largest
    if not MINIMUM_MTU <= wanted <= largest:
        raise InvalidRequest(
            f"network {network}: MTU {wanted} does not fit. The underlay's {underlay} less "
            f"{overlay.overhead_bytes} for {overlay} allows {MINIMUM_MTU} to {largest}."
        )
    return wanted


def check_host_access(
    network: str,
    cidr: IPv4Network,
    taken: Iterable[tuple[IPv4Network, str]],
    hosts: Iterable[Host],
) -> None:
    """Refuse host access if a host would then have two ways to one address.

    `taken` are the subnets with host access that there are, and whose each is.
    """
    for other, owner in taken:
        if cidr.version == other.version and cidr.overlaps(other):
            raise Refused(
                f"network {network}: with host access its {cidr} would overlap {other} of "
                f"{owner}, and a host can reach only one of them. Choose other addresses, or "
                "leave host access off."
            )
    for host in hosts:
        if host.tunnel_ip is not None and host.tunnel_ip in cidr:
            raise Refused(
                f"network {network}: with host access its {cidr} would cover {host.tunnel_ip}, "
                f"the tunnel endpoint of host {host.name}. Choose other addresses, or leave host "
                "access off."
            )


def check_port_kind(port: str, kind: PortKind) -> None:
    if kind is PortKind.HOST:
        raise InvalidRequest(
            f"port {port}: ports of kind host are made by the hosts' agents, one in every network "
            "with host access. Choose container, vm or netns."
        )


def check_port_mac(port: str, mac: Mac) -> Mac:
    if mac == GATEWAY_MAC:
        raise InvalidRequest(
            f"port {port}: MAC address {mac} is the gateway's in every network. Choose another, "
            "or omit it and one is allocated."
        )
    return mac


def check_port_address(
    port: str, network: str, address: IPv4Address, cidr: IPv4Network, gateway: IPv4Address
) -> IPv4Address:
    if address not in cidr:
        raise InvalidRequest(
            f"port {port}: address {address} is outside network {network} ({cidr}). "
            "Choose an address inside it, or omit it and one is allocated."
        )
    if address in (cidr.network_address, cidr.broadcast_address, gateway):
        raise InvalidRequest(
            f"port {port}: address {address} is network {network}'s own (network, broadcast or "
            "gateway). Choose another, or omit it and one is allocated."
        )
    return address
