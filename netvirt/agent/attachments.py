"""Attaching containers to tenant networks, and detaching them: what the CNI's verbs do.

Each verb is a task (see `tasks`) that reads from top to bottom. ADD writes its intent first: the
port with its addresses, its binding and the attachment are one transaction, sent while the
interface is being made. So whatever is interrupted is on record, and DEL or GC take it away. It
answers when the container can be reached: this host's switch and the other hosts of the network
have all that follows.
"""

import random
import time
from collections import Counter
from collections.abc import Collection, Generator
from hashlib import blake2b
from typing import Any

import structlog

from netvirt import rows as decode
from netvirt.agent import detaching
from netvirt.agent.allocation import Allocator, PortOrder, PortPlan
from netvirt.agent.parts import Key, Parts, Stopwatch
from netvirt.agent.tasks import Work
from netvirt.backends import container_links, links
from netvirt.backends.vswitch_rows import ATTACHMENT_KEY, attachment_id
from netvirt.cni import result
from netvirt.cni.call import Call
from netvirt.cni.errors import CniError, Code
from netvirt.compile import Local
from netvirt.model import Network, NetworkId, Port, PortId, PortKind
from netvirt.service.hosts import ALIVE_S
from tenancy.errors import BackendUnavailable, NotFound, VerificationFailed, VirtkitError

log = structlog.get_logger()

# How long an attachment waits for the other hosts of its network.
OTHER_HOSTS_WAIT_S = 2.0
# How long a switch may report an error about an interface before it is believed.
ERROR_GRACE_S = 1.0

# Numbers that a switch does not come to by itself until it has had as many ports.
OFPORTS = range(32_768, 65_000)
# What our links say of who made them.
MAKER = "cni"


class NotUndone(BackendUnavailable):
    """An attachment could not be made, and what was done could not be taken back."""


class Attachments:
    """The attachments of this host: made, compared, taken away, collected.

    `expected` are ports whose interface is being made: that none is seen yet is no reason to give
    them up. `networks` are those of which rows are needed although no port is held yet.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._knowledge = parts.knowledge
        self._allocator = Allocator(parts.knowledge)
        self._network_ids: dict[tuple[str, str], NetworkId] = {}
        # Hosts that did not follow in time, with the change that they were waited for.
        self._lagging: dict[str, int] = {}
        self._complete: set[NetworkId] = set()
        # OpenFlow port numbers of interfaces that are being made. Beginning anywhere keeps an
        # agent that has been restarted from giving out those of a moment ago.
        self._announced: dict[PortId, int] = {}
        self._next_ofport = random.choice(OFPORTS)
        self.expected: Counter[PortId] = Counter()
        self.networks: Counter[NetworkId] = Counter()

    # The verbs

    def add(self, call: Call) -> Generator[None, None, dict[str, Any]]:
        """Attach; returns the result to print. Whatever fails, nothing stays."""
        if call.key in self._knowledge.attachments:
            raise CniError(
                Code.TAKEN, f"{call.subject} is attached already. Detach it (DEL) before."
            )
        watch = Stopwatch()
        has_default_route = self._look_into(call)
        network = yield from self._find_network(call.tenant, call.network)
        watch.note("found")
        self._check_addresses(call, network)
        is_new_here = not self._holds(network.id)
        order = PortOrder(
            self._parts.requests,
            self._allocator,
            PortPlan(
                tenant_name=call.tenant,
                network=network,
                name=_port_name(call, self._knowledge.host_name),
                kind=PortKind.CONTAINER,
                host=self._knowledge.host_name,
                mac=call.mac,
                addresses=call.addresses,
                labels=call.labels,
                acknowledged=is_new_here or bool(self._knowledge.hosts_of(network.id)),
                attachment={
                    "conflist": call.conflist,
                    "container": call.container,
                    "interface": call.interface,
                    "netns": call.netns,
                },
            ),
        )
        port_id = order.port.id
        self.expected[port_id] += 1
        self._announce(call, order)
        self.networks[network.id] += 1
        try:
            wanted = yield from self._store_and_plug(call, network, order, has_default_route, watch)
            yield from self._until_connected(call, order, watch)
            if is_new_here:
                yield from self._until_complete(network.id)
                watch.note("complete")
            yield from self._until_others_follow(network.id, order.cfg)
            watch.note("followed")
        except GeneratorExit:
            raise
        except BaseException:
            log.info("undoing", attachment=call.subject, port=str(port_id))
            try:
                yield from detaching.detach(self._parts, port_id)
                yield from detaching.forget(self._parts, order.port, call.key)
            except VirtkitError as error:
                raise NotUndone(str(error)) from error
            raise
        finally:
            self._knowledge.withdraw(port_id)
            del self._announced[port_id]
            _release(self.expected, port_id)
            _release(self.networks, network.id)
        log.info("attached", attachment=call.subject, port=str(port_id), ms=watch.passed)
        link, link_mac = links.link_name(port_id), links.host_mac(str(order.port.mac))
        return result.render(call, network, order.port, wanted, link, link_mac)

    def delete(self, key: Key) -> Work:
        """Detach, whatever there is of it; nothing to do if there is nothing."""
        attachment = self._knowledge.attachments.get(key)
        yield from detaching.detach_all(self._parts, key)
        if attachment is not None:
            yield from detaching.detach(self._parts, attachment.port)
            port = yield from detaching.find_port(self._parts, attachment.port)
            if port is not None:
                yield from detaching.forget(self._parts, port, key)

    def detach_only(self, key: Key) -> Work:
        """Take the container off the switch, its rows being out of reach."""
        yield from detaching.detach_all(self._parts, key)

    def check(self, call: Call) -> Work:
        """Raise `VerificationFailed` unless everything is as ADD left it."""
        attachment = self._knowledge.attachments.get(call.key)
        if attachment is None:
            raise CniError(
                Code.UNKNOWN_CONTAINER, f"{call.subject} is not attached. Attach it (ADD) first."
            )
        port = self._knowledge.ports.get(attachment.port)
        if port is None:
            port = yield from detaching.find_port(self._parts, attachment.port)
        network = yield from self._find_network(call.tenant, call.network)
        wrong: list[str] = []
        if port is None or port.network != network.id:
            wrong.append(f"its port is not in network {call.network}")
        else:
            try:
                found = container_links.inspect(call.netns, call.interface)
            except NotFound as error:
                raise CniError(Code.UNKNOWN_CONTAINER, str(error)) from error
            wrong += result.differences(call, port, network, found)
            if found is not None and found.peer != links.index(port.id):
                wrong.append(f"it is not the other end of {links.link_name(port.id)}")
            wrong += yield from self._check_switch(port)
        if wrong:
            raise VerificationFailed(
                f"{call.subject}: {'; '.join(wrong)}. Detach it (DEL) and attach it again (ADD)."
            )

    def stale(self, conflist: str, valid: Collection[Key]) -> list[Key]:
        """Attachments made for this network configuration that are not in use any more."""
        return [
            key
            for key, attachment in self._knowledge.attachments.items()
            if attachment.conflist == conflist and key not in valid
        ]

    # Steps of ADD

    def _announce(self, call: Call, order: PortOrder) -> None:
        """Choose the number of the port's interface on the switch, so that its flows can be made
        before the switch opens it. A switch that gives it another number has them made again.

        What a call has chosen itself may be somebody else's: such flows wait for the database.
        """
        port_id = order.port.id
        if port_id not in self._announced:
            used = {one.ofport for one in self._parts.vswitch.interfaces().values()}
            used |= set(self._announced.values())
            while self._next_ofport in used or self._next_ofport not in OFPORTS:
                self._next_ofport += 1
                if self._next_ofport not in OFPORTS:
                    self._next_ofport = OFPORTS.start
            self._announced[port_id] = self._next_ofport
            self._next_ofport += 1
        is_ours = not call.addresses and call.mac is None
        port = order.port if is_ours else None
        self._knowledge.announce(port_id, self._announced[port_id], port)

    def _look_into(self, call: Call) -> bool:
        """Whether the container has a default route already. Raises for a namespace not to use."""
        try:
            namespace = container_links.look_into(call.netns)
            if namespace.is_our_own:
                raise CniError(
                    Code.INVALID_ENVIRONMENT,
                    f"CNI_NETNS {call.netns} is the host's own network namespace. The runtime must "
                    "give the container's.",
                )
            return namespace.has_default_route
        except NotFound as error:
            raise CniError(Code.UNKNOWN_CONTAINER, str(error)) from error

    def _find_network(self, tenant: str, name: str) -> Generator[None, None, Network]:
        """The tenant's network: from what is known, or from the database."""
        network_id = self._network_ids.get((tenant, name))
        if network_id is not None and network_id in self._knowledge.networks:
            return self._knowledge.networks[network_id]
        pending = self._parts.requests.select([("Tenant", {"name": tenant})])
        [tenants] = yield from detaching.answered(pending, ["Tenant"])
        if not tenants:
            raise NotFound(f"tenant {tenant} does not exist. See `nvctl tenant list`.")
        pending = self._parts.requests.select(
            [("Network", {"tenant": tenants[0].id, "name": name})]
        )
        [networks] = yield from detaching.answered(pending, ["Network"])
        if not networks:
            raise NotFound(
                f"network {name} of tenant {tenant} does not exist. "
                f"See `nvctl network list --tenant {tenant}`."
            )
        pending = self._parts.requests.select([("Subnet", {"network": networks[0].id})])
        [subnets] = yield from detaching.answered(pending, ["Subnet"])
        found = decode.network(networks[0], subnets)
        self._network_ids[tenant, name] = found.id
        return found

    def _check_addresses(self, call: Call, network: Network) -> None:
        for address in call.addresses:
            inside = [subnet for subnet in network.subnets if address in subnet.cidr]
            if not inside:
                cidrs = ", ".join(str(subnet.cidr) for subnet in network.subnets)
                raise NotFound(
                    f"{call.subject}: address {address} is outside network {network.name} "
                    f"({cidrs}). Choose an address inside it, or omit it and one is allocated."
                )
            first, last = inside[0].cidr.network_address, inside[0].cidr.broadcast_address
            if address in (first, last, inside[0].gateway):
                raise NotFound(
                    f"{call.subject}: address {address} is network {network.name}'s own. "
                    "Choose another, or omit it and one is allocated."
                )

    def _store_and_plug(
        self,
        call: Call,
        network: Network,
        order: PortOrder,
        has_default_route: bool,
        watch: Stopwatch,
    ) -> Generator[None, None, result.Plan]:
        """Write the port, and make its interface meanwhile; again if another port comes of it."""
        plugged: Port | None = None
        while True:
            stored = order.stored()
            if plugged != order.port:
                if plugged is not None:
                    self._announce(call, order)
                plugged = order.port
                wanted = result.plan(call, network, plugged, has_default_route=has_default_route)
                links.plug_veth(
                    plugged.id,
                    netns=call.netns,
                    name=call.interface,
                    mac=str(plugged.mac),
                    mtu=wanted.mtu_bytes,
                    addresses=wanted.addresses,
                    routes=[
                        links.Route(destination=route.destination, via=route.via)
                        for route in wanted.routes
                    ],
                    maker=MAKER,
                )
                watch.note("plugged")
            self._is_opened(call, plugged)
            if stored:
                watch.note("stored")
                return wanted
            yield

    def _is_opened(self, call: Call, port: Port) -> bool:
        """Have the port's link on the switch; whether the switch has opened it."""
        name = links.link_name(port.id)
        interface = self._parts.vswitch.interfaces().get(name)
        if interface is None:
            ids = {
                "iface-id": str(port.id),
                "attached-mac": str(port.mac),
                "iface-status": "active",
                ATTACHMENT_KEY: attachment_id(*call.key),
            }
            self._parts.vswitch.ensure_port(name, ids, ofport=self._announced[port.id])
            return False
        return interface.ofport is not None

    def _until_connected(self, call: Call, order: PortOrder, watch: Stopwatch) -> Work:
        """Wait until this host's switch has the interface and all flows that follow from it."""
        port, failing_since = order.port, None
        name = links.link_name(port.id)
        while not self._is_opened(call, port):
            found = self._parts.vswitch.interfaces().get(name)
            if found is None or found.error is None:
                failing_since = None
            else:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > ERROR_GRACE_S:
                    raise BackendUnavailable(
                        f"Open vSwitch does not open interface {name} ({found.error}). See the log "
                        "of ovs-vswitchd."
                    )
            yield
        watch.note("opened")
        while not self._is_programmed(port.id):
            yield
        watch.note("programmed")

    def _is_programmed(self, port_id: PortId) -> bool:
        if not isinstance(self._knowledge.location(port_id), Local):
            return False
        port = self._knowledge.ports.get(port_id)
        own = self._parts.topology.cookies_of(port_id)
        shared = self._parts.topology.cookies_of_network(port.network) if port else None
        if not own or not shared:
            return False
        return self._parts.programmer.has(own) and self._parts.programmer.has(shared)

    def _holds(self, network: NetworkId) -> bool:
        """Whether this host had a port of the network already, with everything that follows."""
        if network not in self._knowledge.held_networks():
            self._complete.discard(network)
        return network in self._complete

    def _until_complete(self, network: NetworkId) -> Work:
        """Wait until this host knows all of a network that is new to it, and its switch does."""
        while not self._parts.is_complete(network) or not self._parts.programmer.idle:
            yield
        self._complete.add(network)

    def _until_others_follow(self, network: NetworkId, cfg: int) -> Work:
        """Wait a moment for the hosts that hold the network, so that the first packet passes.

        One that is down, or did not follow an earlier change in time, keeps nobody waiting.
        """
        hosts = self._knowledge.hosts

        def behind(names: Collection[str]) -> set[str]:
            return {name for name in names if name in hosts and hosts[name].cfg < cfg}

        now = time.time()
        waiting = {
            name
            for name in behind(self._knowledge.hosts_of(network))
            if now - hosts[name].heartbeat_s < ALIVE_S
            and hosts[name].cfg >= self._lagging.get(name, 0)
        }
        deadline = time.monotonic() + OTHER_HOSTS_WAIT_S
        while waiting and time.monotonic() < deadline:
            yield
            waiting = behind(waiting)
        for name in waiting:
            log.warning("host does not follow", host=name, cfg=cfg)
            self._lagging[name] = cfg

    # Steps of CHECK

    def _check_switch(self, port: Port) -> Generator[None, None, list[str]]:
        interface = self._parts.vswitch.interfaces().get(links.link_name(port.id))
        if interface is None or interface.iface_id != port.id:
            return [f"interface {links.link_name(port.id)} is not on {self._parts.vswitch.bridge}"]
        if interface.ofport is None:
            return [f"the switch can't open {interface.name} ({interface.error or 'no reason'})"]
        wanted = self._parts.topology.cookies_of(port.id)
        if not wanted or not isinstance(self._knowledge.location(port.id), Local):
            return [f"port {port.name} is not bound to this host"]
        seen = self._parts.programmer.audits
        self._parts.programmer.audit()
        while self._parts.programmer.audits == seen:
            yield
        missing = len(wanted & self._parts.programmer.missing)
        return [f"{missing} of its {len(wanted)} flows are not in the switch"] if missing else []


def _port_name(call: Call, host: str) -> str:
    """The pod's or container's name as far as it fits, and what makes it one of its kind."""
    digest = blake2b(f"{host}/{call.container}/{call.interface}".encode(), digest_size=5)
    shown = call.labels.get("pod") or call.container[:12]
    readable = "".join(
        letter
        for letter in shown.lower().replace("_", "-").replace(".", "-")
        if letter.isascii() and (letter.isalnum() or letter == "-")
    )[:50].strip("-")
    return f"{readable or 'container'}-{digest.hexdigest()}"


def _release(counter: Counter[Any], key: Any) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
