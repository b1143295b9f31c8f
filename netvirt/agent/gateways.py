"""This host's own ports in networks with host access: their rows and their devices.

Level-triggered: what is wanted follows from what the agent knows; what is found is compared with
it whenever something has changed, and every second, because devices, sysctls and rules can be
changed by anybody. Nothing is taken back when the agent ends.
"""

import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_interface

import structlog

from netvirt.agent.allocation import Allocator, PortOrder, PortPlan
from netvirt.agent.forwarding import Forwarding
from netvirt.agent.knowledge import Knowledge
from netvirt.backends import gateway_device
from netvirt.backends.gateway_device import GatewayDevice
from netvirt.backends.vswitch import VSwitch
from netvirt.model import Network, NetworkId, Port, PortKind, host_port_name
from netvirt.observed import Interface
from tenancy.backends.requests import Requests
from tenancy.errors import AlreadyExists, BackendUnavailable, VirtkitError

log = structlog.get_logger()

# How often everything is looked at; one device each time.
LOOK_S = 1.0
# The pause after a port that could not be made.
ORDER_PAUSE_S = 5.0
# How long the switch may have no device for an interface until it is told to make another.
LOST_S = 2.0

# What a problem is about: a network, or the host as a whole.
_HOST = "host"
_Subject = NetworkId | str


@dataclass(frozen=True, slots=True)
class Gateway:
    """A network with host access, this host's own port in it, and the device that follows."""

    network: Network
    port: Port
    device: GatewayDevice

    @property
    def name(self) -> str:
        return self.device.name


def gateway_of(network: Network, port: Port) -> Gateway:
    """What a host's own port in a network comes to. Pure."""
    own = [
        ip_interface((address, subnet.cidr.prefixlen))
        for address in port.addresses
        for subnet in network.subnets
        if address in subnet.cidr
    ]
    if any(address.version == 6 for address in own):
        own.append(ip_interface((port.mac.link_local, 64)))
    device = GatewayDevice(
        name=gateway_device.name(port.id),
        mac=str(port.mac),
        addresses=tuple(own),
        gateways=tuple(subnet.gateway for subnet in network.subnets),
    )
    return Gateway(network, port, device)


@dataclass(frozen=True, slots=True)
class _Made:
    """A device, by the kernel's number of it, and what it has been made."""

    ifindex: int
    device: GatewayDevice
    forwards: bool


class Gateways:
    """Keeps the gateways of this host. `problems` are sentences on what is missing, and why."""

    def __init__(self, knowledge: Knowledge, vswitch: VSwitch, requests: Requests) -> None:
        self._knowledge = knowledge
        self._vswitch = vswitch
        self._requests = requests
        self._allocator = Allocator(knowledge)
        self._forwarding = Forwarding()
        self._gateways: dict[NetworkId, Gateway] = {}
        self._orders: dict[NetworkId, PortOrder] = {}
        self._order_not_before: dict[NetworkId, float] = {}
        # What each device was to be made, those that were, and the order in which they are looked
        # at again.
        self._tried: dict[str, _Made] = {}
        self._configured: set[str] = set()
        self._to_check: deque[str] = deque()
        # Interfaces that the switch has no device for, and since when.
        self._without_device: dict[str, float] = {}
        self._names: frozenset[str] = frozenset()
        self._forwards = False
        self._look_at = 0.0
        self._problems: dict[_Subject, str] = {}
        # Whether all is done that can be; whether there is more to do at once.
        self.idle = True
        self.busy = False

    @property
    def problems(self) -> frozenset[str]:
        return frozenset(self._problems.values())

    def step(self, *, news: bool, hold: bool) -> None:
        """Bring what is found closer to what is wanted; `hold` while that is not known whole."""
        now = time.monotonic()
        due = now >= self._look_at
        busy, self.busy = self.busy, False
        if hold or not (news or due or self._orders or busy):
            return
        if due:
            self._look_at = now + LOOK_S
        networks = self._knowledge.networks_with_host_access()
        gateways = []
        for network in networks:
            port = self._knowledge.own_port(network.id)
            if port is None:
                self._order_port(network, now)
            else:
                self._order_not_before.pop(network.id, None)
                gateways.append(self._gateway(network, port))
        self._gateways = {one.network.id: one for one in gateways}
        self._fit_switch(gateways, now)
        names = frozenset(gateway.name for gateway in gateways)
        if due or names != self._names:
            self._names = names
            ipv6 = any(address.version == 6 for one in gateways for address in one.device.gateways)
            self._forwards = self._forwarding.allow(names, ipv6=ipv6)
            self._note(_HOST, self._forwarding.problem)
        self._fit_devices(gateways, due)
        ids = {network.id for network in networks}
        for subject in self._problems.keys() - ids - {_HOST}:
            del self._problems[subject]
        for gone in self._orders.keys() - ids:
            del self._orders[gone]
        made = {gateway.network.id for gateway in gateways if gateway.name in self._configured}
        self.idle = ids <= made | self._problems.keys()

    def _gateway(self, network: Network, port: Port) -> Gateway:
        known = self._gateways.get(network.id)
        if known is not None and known.network is network and known.port is port:
            return known
        return gateway_of(network, port)

    # The port

    def _order_port(self, network: Network, now: float) -> None:
        """Have the host's own port stored; the replica then shows it."""
        if now < self._order_not_before.get(network.id, 0.0):
            return
        try:
            order = self._orders.get(network.id)
            if order is None:
                order = self._orders[network.id] = self._order(network)
                log.info("entering host into network", network=network.name)
            if not order.stored():
                return
            self._note(network.id, None)
        except AlreadyExists as error:
            hint = "Its name is this host's own there: delete it."
            self._note(network.id, f"no host access to network {network.name}: {error} {hint}")
        except VirtkitError as error:
            self._note(network.id, f"no host access to network {network.name}: {error}")
        # Also if it is stored: one that is then not seen has been deleted again.
        self._order_not_before[network.id] = now + ORDER_PAUSE_S
        self._orders.pop(network.id, None)

    def _order(self, network: Network) -> PortOrder:
        plan = PortPlan(
            # Only who is charged is named.
            tenant_name="",
            network=network,
            name=host_port_name(self._knowledge.host_name),
            kind=PortKind.HOST,
            host=self._knowledge.host_name,
            charged=False,
        )
        return PortOrder(self._requests, self._allocator, plan)

    # The device

    def _fit_switch(self, gateways: Collection[Gateway], now: float) -> None:
        """Have exactly these devices on the bridge. Others' are known by other names."""
        wanted = {gateway.name: gateway for gateway in gateways}
        interfaces = self._vswitch.interfaces()
        for name, gateway in wanted.items():
            found = interfaces.get(name)
            if found is None or found.type != "internal" or found.iface_id != gateway.port.id:
                # A switch that has not yet let an earlier one go would see no change.
                if found is not None or self._vswitch.applied:
                    ids = {"iface-id": str(gateway.port.id), "attached-mac": str(gateway.port.mac)}
                    self._vswitch.ensure_port(name, ids, type_="internal")
            elif found.error is not None:
                self._note(
                    gateway.network.id,
                    f"no host access to network {gateway.network.name}: Open vSwitch does not "
                    f"open {name} ({found.error}). See the log of ovs-vswitchd.",
                )
            elif self._is_lost(found, now):
                log.warning("gateway device was deleted; it is made anew", link=name)
                self._vswitch.remove_port(name)
        for interface in interfaces.values():
            if interface.type != "internal" or interface.iface_id is None:
                continue
            its_name = gateway_device.name(interface.iface_id)
            if interface.name == its_name and its_name not in wanted:
                self._vswitch.remove_port(its_name)

    def _is_lost(self, interface: Interface, now: float) -> bool:
        """Whether the switch has an interface whose device somebody has deleted.

        It does not make another by itself. One that starts has none for a moment, either.
        """
        name = interface.name
        has_none = interface.ofport is not None and interface.ifindex is None
        is_lost = has_none and now - self._without_device.setdefault(name, now) > LOST_S
        if is_lost or not has_none:
            self._without_device.pop(name, None)
        return is_lost

    def _fit_devices(self, gateways: Collection[Gateway], due: bool) -> None:
        """Give devices their addresses and settings; look at one of them again if it is due.

        One a turn, because the kernel takes some milliseconds for it.
        """
        for name in self._tried.keys() - self._names:
            del self._tried[name]
        self._configured &= self._names
        again = self._next_to_check() if due else None
        for gateway in gateways:
            name, device = gateway.name, gateway.device
            found = self._vswitch.interfaces().get(name)
            if found is None or not found.ofport or not found.ifindex or not device.addresses:
                self._configured.discard(name)
                continue
            wanted = _Made(found.ifindex, device, self._forwards)
            if self._tried.get(name) != wanted or name == again:
                self._fit_device(gateway.network, wanted)
                self.busy = True
                return

    def _fit_device(self, network: Network, wanted: _Made) -> None:
        name = wanted.device.name
        self._tried[name] = wanted
        try:
            rival = None if name in self._configured else self._rival(network)
            if rival is None:
                if gateway_device.configure(wanted.device, forwards=wanted.forwards):
                    log.info("gateway device fitted", link=name, network=network.name)
                self._configured.add(name)
            self._note(network.id, rival)
        except BackendUnavailable as error:
            self._configured.discard(name)
            self._note(network.id, f"no host access to network {network.name}: {error}")

    def _rival(self, network: Network) -> str | None:
        """Why the host cannot have this network: it has an address in it already."""
        for address, link in gateway_device.addresses_of_others(self._names).items():
            for subnet in network.subnets:
                if address in subnet.cidr:
                    return (
                        f"no host access to network {network.name}: its {subnet.cidr} covers "
                        f"{address}, which the host has on {link}. Give the network other "
                        "addresses, or take host access from it."
                    )
        return None

    def _next_to_check(self) -> str | None:
        if not self._to_check:
            self._to_check.extend(self._names)
        return self._to_check.popleft() if self._to_check else None

    def _note(self, subject: _Subject, problem: str | None) -> None:
        if problem is None:
            if self._problems.pop(subject, None) is not None:
                log.info("host access is complete again")
        elif self._problems.get(subject) != problem:
            self._problems[subject] = problem
            log.warning("host access is not complete", reason=problem)
