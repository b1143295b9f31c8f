"""What ADD answers, in each version of the specification; and what CHECK finds wrong. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any

import msgspec

from netvirt.cni.call import VERSIONS, Call, WantedRoute, plain
from netvirt.model import IPAddress, Network, Port, Subnet
from netvirt.observed import LinkState
from tenancy.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a container's interface is to be: what ADD makes and CHECK looks for."""

    mtu_bytes: int
    addresses: tuple[Any, ...]  # IPv4Interface | IPv6Interface
    routes: tuple[WantedRoute, ...]


def plan(call: Call, network: Network, port: Port, *, has_default_route: bool) -> Plan:
    """The interface that follows from the port, its network and what the call asks for.

    Raises `InvalidRequest` for what cannot be, and for a result of earlier plugins that is none.
    """
    _told(call)
    if call.mtu_bytes is not None and call.mtu_bytes > network.mtu_bytes:
        raise InvalidRequest(
            f"network configuration {call.conflist}: mtu {call.mtu_bytes} is more than network "
            f"{network.name} carries. Choose {network.mtu_bytes} at most, or omit it."
        )
    placed = [
        (address, subnet)
        for address in port.addresses
        for subnet in network.subnets
        if address in subnet.cidr
    ]
    wants_default = call.default_route
    if wants_default is None:
        wants_default = network.host_access and not has_default_route
    routes = list(call.routes)
    if wants_default:
        asked = {route.destination for route in routes}
        routes += [
            WantedRoute(destination=everywhere, via=subnet.gateway)
            for _, subnet in placed
            if (everywhere := _everywhere(subnet)) not in asked
        ]
    return Plan(
        mtu_bytes=call.mtu_bytes or network.mtu_bytes,
        addresses=tuple(
            ip_interface(f"{address}/{subnet.cidr.prefixlen}") for address, subnet in placed
        ),
        routes=tuple(routes),
    )


def render(
    call: Call, network: Network, port: Port, wanted: Plan, link: str, link_mac: str
) -> dict[str, Any]:
    """The result of ADD in the version asked for: what earlier plugins of the chain answered, then
    the link on the host, then the container's interface.
    """
    earlier = {key: value for key, value in (call.previous or {}).items() if value}
    number = len(earlier.get("interfaces", ())) + 1
    level = VERSIONS.index(call.version)
    inside: dict[str, Any] = {"name": call.interface, "mac": str(port.mac), "sandbox": call.netns}
    if level >= VERSIONS.index("1.1.0"):
        inside["mtu"] = wanted.mtu_bytes
    gateways = _gateways(network, wanted)
    ips = []
    for address in wanted.addresses:
        entry: dict[str, Any] = {"address": str(address), "interface": number}
        if level < VERSIONS.index("1.0.0"):
            entry["version"] = str(address.version)
        if (gateway := gateways.get(address.version)) is not None:
            entry["gateway"] = str(gateway)
        ips.append(entry)
    return {
        "cniVersion": call.version,
        "interfaces": [*earlier.get("interfaces", ()), {"name": link, "mac": link_mac}, inside],
        "ips": [*earlier.get("ips", ()), *ips],
        "routes": [
            *earlier.get("routes", ()),
            *(
                {"dst": str(route.destination), **({"gw": str(route.via)} if route.via else {})}
                for route in wanted.routes
            ),
        ],
        "dns": _dns(call, network) or earlier.get("dns", {}),
    }


class _ToldInterface(msgspec.Struct):
    name: str
    mac: str | None = None
    sandbox: str | None = None


class _ToldAddress(msgspec.Struct):
    address: str
    interface: int | None = None


class _ToldRoute(msgspec.Struct):
    dst: str
    gw: str | None = None


class _Told(msgspec.Struct):
    """Of a result, what is looked at; other plugins of the chain may have added to it."""

    interfaces: list[_ToldInterface] | None = None
    ips: list[_ToldAddress] | None = None
    routes: list[_ToldRoute] | None = None
    dns: dict[str, Any] | None = None


def differences(call: Call, port: Port, network: Network, found: LinkState | None) -> list[str]:
    """What is not as ADD's result says, in the container; the runtime gives that result back.

    Only our interface is looked at. Raises `InvalidRequest` for what is no result.
    """
    told = _told(call)
    if found is None:
        return [f"interface {call.interface} is not in network namespace {call.netns}"]
    wrong = []
    index, inside = _told_interface(call, told)
    if inside is None:
        wrong.append(f"prevResult does not list interface {call.interface}")
    elif inside.sandbox != call.netns:
        wrong.append(f"prevResult has it in network namespace {inside.sandbox}")
    elif (inside.mac or str(port.mac)).lower() != str(port.mac):
        wrong.append(f"prevResult has MAC address {inside.mac}, and the port {port.mac}")
    if found.mac != str(port.mac):
        wrong.append(f"its MAC address is {found.mac}, not {port.mac}")
    if not found.up:
        wrong.append("it is down, or its end on the host")
    if found.mtu_bytes > network.mtu_bytes:
        wrong.append(f"its MTU is {found.mtu_bytes}, and network {network.name} carries less")
    addresses = [
        entry.address
        for entry in told.ips or ()
        if index is None or entry.interface in (None, index)
    ]
    own = {str(address) for address in port.addresses}
    for text in addresses:
        if text.partition("/")[0] not in own:
            wrong.append(f"prevResult has address {text}, which is not the port's")
        elif text not in found.addresses:
            wrong.append(f"address {text} is missing")
    wrong += [
        f"port address {address} is not in prevResult"
        for address in sorted(own)
        if address not in {text.partition("/")[0] for text in addresses}
    ]
    for route in told.routes or ():
        if (route.dst, route.gw or None) not in found.routes:
            over = f" over {route.gw}" if route.gw else ""
            wrong.append(f"route to {route.dst}{over} is missing")
    return wrong


def _told(call: Call) -> _Told:
    try:
        return msgspec.convert(call.previous or {}, _Told)
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"network configuration {call.conflist}: prevResult is none ({plain(str(error))}). The "
            "runtime must pass what ADD answered."
        ) from error


def _told_interface(call: Call, told: _Told) -> tuple[int | None, _ToldInterface | None]:
    for index, interface in enumerate(told.interfaces or ()):
        if interface.name == call.interface and interface.sandbox:
            return index, interface
    return None, None


def _everywhere(subnet: Subnet) -> Any:
    return subnet.cidr.supernet(new_prefix=0)


def _gateways(network: Network, wanted: Plan) -> dict[int, IPAddress]:
    """The gateway by IP version, for subnets over whose gateway a route leads."""
    used: Iterable[IPAddress] = {route.via for route in wanted.routes if route.via is not None}
    return {
        subnet.cidr.version: subnet.gateway for subnet in network.subnets if subnet.gateway in used
    }


def _dns(call: Call, network: Network) -> dict[str, Any]:
    if call.dns is not None:
        keys = {
            "nameservers": call.dns.nameservers,
            "domain": call.dns.domain,
            "search": call.dns.search,
            "options": call.dns.options,
        }
        return {key: value for key, value in keys.items() if value}
    servers = [str(server) for subnet in network.subnets for server in subnet.dns]
    return {"nameservers": servers} if servers else {}
