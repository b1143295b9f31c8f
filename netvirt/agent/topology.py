"""The flows that follow from what a host knows, kept up to date piece by piece. Pure.

Every object owns its flows; a change marks the objects it concerns, and only those are compiled
again. The result equals compiling everything anew: that is a property test.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address
from typing import TypeVar

from netvirt import compile as compiler
from netvirt.compile import Local, Location, Remote
from netvirt.model import Network, NetworkId, Overlay, Port, PortId
from netvirt.pipeline.flow import Flow, FlowChanges

# Where ports of a network are: behind an OpenFlow port, or an endpoint.
Place = TypeVar("Place", int, IPv4Address)

_BASE = "base"
_Key = str | tuple[str, NetworkId | PortId]


class Topology:
    """Networks, ports and where they are, on one side; flows on the other."""

    def __init__(self) -> None:
        self.tunnels: Mapping[Overlay, int] = {}
        self._networks: dict[NetworkId, Network] = {}
        self._ports: dict[PortId, tuple[Port, Location]] = {}
        self._members: dict[NetworkId, set[PortId]] = {}
        # How many ports of a network are behind each OpenFlow port or endpoint.
        self._local: dict[NetworkId, Counter[int]] = {}
        self._remote: dict[NetworkId, Counter[IPv4Address]] = {}
        self._flows_of: dict[_Key, dict[int, Flow]] = {}
        self._dirty: set[_Key] = {_BASE}
        self.wanted: dict[int, Flow] = {}
        self.objects_compiled = 0

    def set_tunnels(self, tunnels: Mapping[Overlay, int]) -> None:
        """The OpenFlow port of each overlay's tunnel interface."""
        if tunnels == self.tunnels:
            return
        self.tunnels = dict(tunnels)
        self._dirty.add(_BASE)
        for network in self._networks:
            self._mark_network_and_ports(network)

    def set_network(self, network_id: NetworkId, network: Network | None) -> None:
        if network == self._networks.get(network_id):
            return
        if network is None:
            del self._networks[network_id]
        else:
            self._networks[network_id] = network
        self._mark_network_and_ports(network_id)

    def set_port(self, port_id: PortId, port: Port | None, location: Location | None) -> None:
        """A port and where it is; without a port or a location it has no flows."""
        old = self._ports.get(port_id)
        new = (port, location) if port is not None and location is not None else None
        if new == old:
            return
        if old is not None:
            self._forget(port_id, *old)
        if new is not None:
            self._remember(port_id, *new)
        self._dirty.add(("port", port_id))

    def changes(self) -> FlowChanges:
        """What has changed in `wanted` since the last call."""
        before: dict[int, Flow] = {}
        after: dict[int, Flow] = {}
        for key in self._dirty:
            before |= self._flows_of.pop(key, {})
            flows = {flow.cookie: flow for flow in self._compile(key)}
            self.objects_compiled += 1
            if flows:
                self._flows_of[key] = flows
            after |= flows
        self._dirty.clear()
        gone = [cookie for cookie in before if cookie not in after]
        for cookie in gone:
            del self.wanted[cookie]
        self.wanted |= after
        return FlowChanges(
            add=[flow for cookie, flow in after.items() if cookie not in before], delete=gone
        )

    def cookies_of(self, port_id: PortId) -> frozenset[int] | None:
        """The cookies of a port's flows; None while they are still to be compiled."""
        return self._cookies(("port", port_id))

    def cookies_of_network(self, network: NetworkId) -> frozenset[int] | None:
        """The cookies of a network's own flows; None while they are still to be compiled."""
        return self._cookies(("network", network))

    def _cookies(self, key: _Key) -> frozenset[int] | None:
        return None if key in self._dirty else frozenset(self._flows_of.get(key, ()))

    @property
    def clean(self) -> bool:
        return not self._dirty

    def _compile(self, key: _Key) -> Iterable[Flow]:
        if isinstance(key, str):
            return compiler.base(self.tunnels)
        kind, object_id = key
        if kind == "network":
            network = self._networks.get(NetworkId(object_id))
            if network is None:
                return ()
            tunnel = self.tunnels.get(network.overlay)
            local = self._local.get(network.id, Counter())
            return compiler.network(network, tunnel, local, self._remote.get(network.id, Counter()))
        entry = self._ports.get(PortId(object_id))
        network = self._networks.get(entry[0].network) if entry else None
        if entry is None or network is None:
            return ()
        return compiler.port(entry[0], network, entry[1], self.tunnels.get(network.overlay))

    def _remember(self, port_id: PortId, port: Port, location: Location) -> None:
        self._ports[port_id] = (port, location)
        self._members.setdefault(port.network, set()).add(port_id)
        self._count(port.network, location, 1)

    def _forget(self, port_id: PortId, port: Port, location: Location) -> None:
        del self._ports[port_id]
        self._members[port.network].discard(port_id)
        if not self._members[port.network]:
            del self._members[port.network]
        self._count(port.network, location, -1)

    def _count(self, network: NetworkId, location: Location, step: int) -> None:
        """Note that a network has one port more or less at a place; flooding depends on it."""
        if isinstance(location, Local):
            changed = _step(self._local.setdefault(network, Counter()), location.ofport, step)
        else:
            counter = self._remote.setdefault(network, Counter())
            changed = _step(counter, location.endpoint, step)
        if changed:
            self._dirty.add(("network", network))

    def _mark_network_and_ports(self, network: NetworkId) -> None:
        self._dirty.add(("network", network))
        self._dirty |= {("port", port) for port in self._members.get(network, ())}


def compile_all(
    tunnels: Mapping[Overlay, int],
    networks: Collection[Network],
    ports: Iterable[tuple[Port, Location]],
) -> dict[int, Flow]:
    """All flows compiled at once: what `Topology` must come to, however it got there."""
    by_id = {network.id: network for network in networks}
    placed = [(port, location) for port, location in ports]
    flows = list(compiler.base(tunnels))
    for network in networks:
        here = [location for port, location in placed if port.network == network.id]
        local = {location.ofport for location in here if isinstance(location, Local)}
        remote = {location.endpoint for location in here if isinstance(location, Remote)}
        tunnel = tunnels.get(network.overlay)
        flows += compiler.network(network, tunnel, local, remote)
    for port, location in placed:
        if port.network in by_id:
            network = by_id[port.network]
            flows += compiler.port(port, network, location, tunnels.get(network.overlay))
    return {flow.cookie: flow for flow in flows}


def _step(counter: Counter[Place], key: Place, step: int) -> bool:
    """Change a count; True if the key appeared or went."""
    before = counter[key]
    counter[key] += step
    if counter[key] <= 0:
        del counter[key]
    return (before > 0) != (before + step > 0)
