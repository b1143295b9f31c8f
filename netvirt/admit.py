"""From what a user wrote to what can be stored: parsing and the invariants of a request. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from netvirt.model import (
    DEFAULT_UNDERLAY_MTU,
    GATEWAY_MAC,
    MINIMUM_MTU,
    SEGMENT_IDS,
    AddressRange,
    Host,
    IPAddress,
    IPNetwork,
    Mac,
    Overlay,
    PortKind,
    Subnet,
    SubnetId,
)
from tenancy.errors import InvalidRequest, Refused

# Room for the gateway and a few ports at least; and at most what belongs to one owner: a /48 is a
# whole IPv6 site (RFC 6177).
_PREFIX_LENGTHS = {4: range(8, 30), 6: range(48, 125)}
_OWN_ADDRESSES = {4: "network, broadcast or gateway", 6: "subnet-router anycast or gateway"}
# What is no place for hosts that others reach. RFC 4291; RFC 3879 for site-local addresses.
_RESERVED_IPV6 = {
    IPv6Network("::/8"): "reserved for the unspecified, loopback and IPv4-mapped addresses",
    IPv6Network("fe80::/10"): "link-local: every port has such an address without asking",
    IPv6Network("fec0::/10"): "site-local space, which is deprecated",
    IPv6Network("ff00::/8"): "multicast space",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetPlan:
    """A subnet that does not exist yet."""

    cidr: IPNetwork
    gateway: IPAddress
    pools: tuple[AddressRange, ...]
    dns: tuple[IPAddress, ...]
    dhcp: bool


def plan_subnets(
    network: str,
    cidr_texts: Sequence[str],
    *,
    gateway_texts: Sequence[str] = (),
    pool_texts: Sequence[str] = (),
    dns_texts: Sequence[str] = (),
    dhcp: bool = True,
) -> tuple[SubnetPlan, ...]:
    """The subnets meant, one of either family at most; what else is said goes to its family's.

    A gateway defaults to a subnet's first address, the pool to all the others.
    """
    if not cidr_texts:
        raise InvalidRequest(f"network {network}: which addresses? Give a CIDR: 10.1.0.0/24.")
    cidrs: dict[int, IPNetwork] = {}
    for text in cidr_texts:
        cidr = parse_cidr(network, text)
        if cidrs.setdefault(cidr.version, cidr) != cidr:
            raise InvalidRequest(
                f"network {network}: {cidrs[cidr.version]} and {cidr} are both "
                f"IPv{cidr.version}. Give one CIDR of either family."
            )
    gateways: dict[int, IPAddress] = {}
    for text in gateway_texts:
        gateway = _of_a_subnet(network, "gateway", parse_address(f"network {network}", text), cidrs)
        if gateways.setdefault(gateway.version, gateway) != gateway:
            raise InvalidRequest(
                f"network {network}: {gateways[gateway.version]} and {gateway} are both gateways "
                f"of {cidrs[gateway.version]}. Give one."
            )
    pools: list[AddressRange] = [parse_range(network, text, cidrs) for text in pool_texts]
    servers = dns_servers(network, dns_texts, cidrs)
    return tuple(
        SubnetPlan(
            cidr=cidr,
            gateway=_gateway(network, gateways.get(version), cidr),
            pools=tuple(pool for pool in pools if pool.first.version == version)
            or (usable_range(cidr),),
            dns=servers[version],
            dhcp=dhcp,
        )
        for version, cidr in sorted(cidrs.items())
    )


def parse_cidr(network: str, text: str) -> IPNetwork:
    try:
        cidr = ip_network(text)
    except ValueError as error:
        hint = ""
        try:
            hint = f" Did you mean {ip_network(text, strict=False)}?"
        except ValueError:
            hint = " Write address and prefix length: 10.1.0.0/24 or fd00:1::/64."
        raise InvalidRequest(f"network {network}: {text!r} is not a CIDR.{hint}") from error
    lengths = _PREFIX_LENGTHS[cidr.version]
    if cidr.prefixlen not in lengths:
        raise InvalidRequest(
            f"network {network}: {cidr} has prefix length {cidr.prefixlen}. "
            f"Choose /{lengths[0]} to /{lengths[-1]}."
        )
    if isinstance(cidr, IPv6Network):
        for space, what in _RESERVED_IPV6.items():
            if cidr.subnet_of(space):
                raise InvalidRequest(
                    f"network {network}: {cidr} is in {space}, {what}. "
                    "Choose unicast addresses, such as fd00:1::/64."
                )
    elif cidr.is_multicast or cidr.is_loopback or cidr.is_unspecified or cidr.is_link_local:
        raise InvalidRequest(
            f"network {network}: {cidr} is multicast, loopback, link-local or unspecified space. "
            "Choose unicast addresses, such as 10.1.0.0/24."
        )
    return cidr


def parse_address(what: str, text: str) -> IPAddress:
    try:
        address = ip_address(text)
    except ValueError as error:
        raise InvalidRequest(
            f"{what}: {text!r} is not an IP address. Write it as 10.1.0.7 or fd00:1::7."
        ) from error
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise InvalidRequest(
            f"{what}: {text} names an interface. Write the address alone: {text.partition('%')[0]}."
        )
    return address


def parse_endpoint(what: str, text: str) -> IPv4Address:
    """A tunnel endpoint."""
    address = parse_address(what, text)
    if not isinstance(address, IPv4Address):
        raise InvalidRequest(
            f"{what}: {address} is IPv6, and tunnels run over IPv4 only. Give an IPv4 address."
        )
    return address


def parse_range(network: str, text: str, cidrs: Mapping[int, IPNetwork]) -> AddressRange:
    """A pool in the subnet of its family."""
    first_text, dash, last_text = text.partition("-")
    if not dash:
        raise InvalidRequest(f"network {network}: pool {text!r} is not a range. Write FIRST-LAST.")
    what = f"network {network}"
    first = _of_a_subnet(network, f"pool {text}", parse_address(what, first_text), cidrs)
    last = parse_address(what, last_text)
    cidr = cidrs[first.version]
    usable = usable_range(cidr)
    in_order = first.version == last.version and int(first) <= int(last)
    if not in_order or int(first) < int(usable.first) or int(last) > int(usable.last):
        raise InvalidRequest(
            f"network {network}: pool {text} is empty or not inside {cidr}. "
            f"Choose it within {usable}."
        )
    return AddressRange(first=first, last=last)


def dns_servers(
    network: str, texts: Sequence[str], cidrs: Mapping[int, IPNetwork]
) -> dict[int, tuple[IPAddress, ...]]:
    """DNS servers for the subnet of their family, by IP version."""
    servers = [
        _of_a_subnet(network, "DNS server", parse_address(f"network {network}", text), cidrs)
        for text in texts
    ]
    return {
        version: tuple(server for server in servers if server.version == version)
        for version in cidrs
    }


def usable_range(cidr: IPNetwork) -> AddressRange:
    """The addresses that hosts may have.

    IPv4 leaves out the first and the last (RFC 922). IPv6 has no broadcast, but the first address
    is every router's at once (RFC 4291, 2.6.1).
    """
    last = cidr.broadcast_address - 1 if isinstance(cidr, IPv4Network) else cidr.broadcast_address
    return AddressRange(first=cidr.network_address + 1, last=last)


def _gateway(network: str, wanted: IPAddress | None, cidr: IPNetwork) -> IPAddress:
    usable = usable_range(cidr)
    gateway = wanted or usable.first
    if not int(usable.first) <= int(gateway) <= int(usable.last):
        raise InvalidRequest(
            f"network {network}: gateway {gateway} is not a host address of {cidr}. "
            f"Choose one of {usable.first} to {usable.last}, or omit it."
        )
    return gateway


def _of_a_subnet(
    network: str, what: str, address: IPAddress, cidrs: Mapping[int, IPNetwork]
) -> IPAddress:
    """The address, if the network has a subnet of its family."""
    if address.version not in cidrs:
        has = ", ".join(map(str, cidrs.values()))
        raise InvalidRequest(
            f"network {network}: {what} has the address {address}, and the network has no "
            f"IPv{address.version} subnet ({has}). Give it a CIDR of that family, or omit it."
        )
    return address


def check_segment_id(network: str, segment_id: int) -> int:
    if segment_id not in SEGMENT_IDS:
        raise InvalidRequest(
            f"network {network}: segment id {segment_id} is out of range. "
            f"Choose 1 to {SEGMENT_IDS[-1]}, or omit it and one is allocated."
        )
    return segment_id


def network_mtu(
    network: str,
    overlay: Overlay,
    hosts: Iterable[Host],
    versions: Collection[int],
    wanted: int | None = None,
) -> int:
    """The MTU in bytes for a tenant's IP packets: what the smallest underlay leaves, or less.

    `versions` are the IP versions of the network's subnets.
    """
    underlays = [
        host.underlay_mtu_bytes
        for host in hosts
        if host.underlay_mtu_bytes and overlay in host.overlays
    ]
    underlay = min(underlays, default=DEFAULT_UNDERLAY_MTU)
    largest = underlay - overlay.overhead_bytes
    version = max(versions)
    least = MINIMUM_MTU[version]
    if largest < least:
        raise InvalidRequest(
            f"network {network}: an underlay MTU of {underlay} leaves {largest} for {overlay}, and "
            f"IPv{version} needs {least}. Raise it on the hosts: `nvctl host list`."
        )
    if wanted is None:
        return largest
    if not least <= wanted <= largest:
        raise InvalidRequest(
            f"network {network}: MTU {wanted} does not fit. The underlay's {underlay} less "
            f"{overlay.overhead_bytes} for {overlay} allows {least} to {largest} for "
            f"IPv{version}."
        )
    return wanted


def check_host_access(
    network: str,
    cidr: IPNetwork,
    taken: Iterable[tuple[IPNetwork, str]],
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
    for host in sorted(hosts, key=lambda host: host.name):
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


def check_port_addresses(
    port: str, network: str, addresses: Iterable[IPAddress], subnets: Iterable[Subnet]
) -> dict[SubnetId, IPAddress]:
    """The addresses that a port is to have, by subnet: one in each at most."""
    chosen: dict[SubnetId, IPAddress] = {}
    subnets = tuple(subnets)
    for address in addresses:
        subnet = next((subnet for subnet in subnets if address in subnet.cidr), None)
        if subnet is None:
            has = ", ".join(str(subnet.cidr) for subnet in subnets)
            raise InvalidRequest(
                f"port {port}: address {address} is outside network {network} ({has}). "
                "Choose an address inside it, or omit it and one is allocated."
            )
        usable = usable_range(subnet.cidr)
        is_usable = int(usable.first) <= int(address) <= int(usable.last)
        if not is_usable or address == subnet.gateway:
            raise InvalidRequest(
                f"port {port}: address {address} is network {network}'s own "
                f"({_OWN_ADDRESSES[address.version]}). Choose another, or omit it and one is "
                "allocated."
            )
        if chosen.setdefault(subnet.id, address) != address:
            raise InvalidRequest(
                f"port {port}: {chosen[subnet.id]} and {address} are both in {subnet.cidr}, and a "
                "port has one address in each subnet. Choose one of them."
            )
    return chosen
