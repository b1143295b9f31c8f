"""What the agent has learnt from the fabric database and from its switch, as the model sees it.

Rows and interfaces go in as they change; ports with their locations come out. Pure: no socket,
no clock.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from ipaddress import IPv4Address
from typing import TypeVar
from uuid import UUID

from netvirt import rows
from netvirt.compile import Local, Location, Remote
from netvirt.model import (
    Attachment,
    Binding,
    Host,
    Network,
    NetworkId,
    Overlay,
    Port,
    PortId,
    PortKind,
    holder,
    host_port_name,
)
from netvirt.observed import Interface
from tenancy.backends.codec import Row

# What a row is kept under: the id of its network or of its port.
Key = TypeVar("Key", bound=UUID)


class Knowledge:
    """An index over the rows a host receives, and over its own interfaces."""

    def __init__(self, host_name: str) -> None:
        self.host_name = host_name
        self._own_name = host_port_name(host_name)
        self.cfg = 0
        # The change that somebody waits for this host to apply, as far as is known.
        self.asked_cfg = 0
        self._asked = False
        self.networks: dict[NetworkId, Network] = {}
        self.ports: dict[PortId, Port] = {}
        self.bindings: dict[PortId, dict[UUID, Binding]] = {}
        self.hosts: dict[str, Host] = {}
        self.own_row: Row | None = None
        # Ports that are to have an interface here: its OpenFlow port number, and, as long as
        # they are not stored, the port.
        self._announced: dict[PortId, tuple[int, Port | None]] = {}
        self.attachments: dict[tuple[str, str], Attachment] = {}
        self.interfaces: Mapping[PortId, Interface] = {}
        self.attached: frozenset[PortId] = frozenset()
        self.own_ports: dict[NetworkId, PortId] = {}
        self._rows: dict[tuple[str, UUID], Row] = {}
        self._members: dict[NetworkId, set[PortId]] = {}
        self._subnets: dict[NetworkId, set[UUID]] = {}
        self._addresses: dict[PortId, set[UUID]] = {}
        self._bound_to: dict[str, set[PortId]] = {}
        self._taken: dict[NetworkId, set[str]] = {}
        # How many bindings of a network's ports each host has.
        self._holders: dict[NetworkId, Counter[str]] = {}
        self.dirty_networks: set[NetworkId] = set()
        self.dirty_ports: set[PortId] = set()

    # What comes in

    def set_row(self, table: str, row_id: UUID, row: Row | None) -> None:
        """A row that appeared or changed; None, one that went."""
        old = self._rows.pop((table, row_id), None)
        if row is not None:
            self._rows[table, row_id] = row
        match table:
            case "Fabric":
                self.cfg = row["cfg"] if row else self.cfg
            case "Network":
                self.dirty_networks.add(NetworkId(row_id))
                self._asked |= row is not None and (old is None or old["cfg"] != row["cfg"])
            case "Subnet":
                _move(self._subnets, "network", old, row, self.dirty_networks)
            case "Port":
                self.dirty_ports.add(PortId(row_id))
            case "Address":
                _move(self._addresses, "port", old, row, self.dirty_ports)
                self._set_taken(old, row)
            case "Binding":
                self._set_binding(row_id, old, row)
            case "Attachment":
                self._set_attachment(old, row)
            case "Host":
                self._set_host(old, row)

    def set_interfaces(self, interfaces: Mapping[str, Interface]) -> None:
        """All interfaces of the bridge. Of two that claim one port the first opened one counts.

        One that the switch says it can't open is no attachment: its device has gone.
        """
        found: dict[PortId, Interface] = {}
        for interface in interfaces.values():
            if interface.iface_id is None or interface.ofport is None:
                continue
            port = PortId(interface.iface_id)
            rival = found.get(port)
            if rival is None or (rival.ofport or 0) > interface.ofport:
                found[port] = interface
        attached = frozenset(
            PortId(interface.iface_id)
            for interface in interfaces.values()
            if interface.iface_id is not None and interface.error is None
        )
        for port in found.keys() | self.interfaces.keys():
            if found.get(port) != self.interfaces.get(port):
                self.dirty_ports.add(port)
        self.dirty_ports |= attached ^ self.attached
        self.interfaces = found
        self.attached = attached

    def announce(self, port_id: PortId, ofport: int, port: Port | None = None) -> None:
        """A port is about to get an interface here with this OpenFlow port number.

        With `port`, what follows from that is wanted before it is stored: only for one whose
        addresses nobody else can be choosing at the same time.
        """
        self._announced[port_id] = (ofport, port)
        self.dirty_ports.add(port_id)

    def withdraw(self, port_id: PortId) -> None:
        """A port that was announced has its interface, or is not to have it any more."""
        self._announced.pop(port_id, None)
        self.dirty_ports.add(port_id)

    def is_stored(self, port_id: PortId) -> bool:
        """Whether the port is in the database, not only announced."""
        return ("Port", port_id) in self._rows

    def refresh(self) -> tuple[set[NetworkId], set[PortId]]:
        """Bring the model up to date; the networks and ports that may have changed."""
        if self._asked:
            # `Fabric.cfg` is changed together with the network's, and so is known by now.
            self._asked, self.asked_cfg = False, self.cfg
        networks, self.dirty_networks = self.dirty_networks, set()
        ports, self.dirty_ports = self.dirty_ports, set()
        for network in networks:
            row = self._rows.get(("Network", network))
            if row is None:
                self.networks.pop(network, None)
            else:
                subnets = [self._rows["Subnet", i] for i in self._subnets.get(network, ())]
                before = self.networks.get(network)
                self.networks[network] = after = rows.network(row, subnets)
                if before is None or before.overlay is not after.overlay:
                    # Whether a port has a location depends on its network's overlay.
                    ports |= self._members.get(network, set())
        for port in ports:
            row = self._rows.get(("Port", port))
            _, announced = self._announced.get(port, (0, None))
            if row is None and announced is not None:
                self._set_port(port, announced)
            elif row is None:
                gone = self.ports.get(port)
                if gone is not None and self.own_ports.get(gone.network) == port:
                    del self.own_ports[gone.network]
                self._set_port(port, None)
            else:
                addresses = [self._rows["Address", i] for i in self._addresses.get(port, ())]
                found = rows.port(row, addresses)
                self._set_port(port, found)
                if found.kind is PortKind.HOST and found.name == self._own_name:
                    self.own_ports[found.network] = port
        return networks, ports

    # What follows

    def location(self, port_id: PortId) -> Location | None:
        """Where to send what is for this port; None while nobody holds it.

        An interface here, or one that is announced, counts unless another host has made a later
        claim.
        """
        port = self.ports.get(port_id)
        only = port.host if port else None
        held_by = holder(self.bindings.get(port_id, {}).values(), only)
        interface = self.interfaces.get(port_id)
        announced, _ = self._announced.get(port_id, (None, None))
        ofport = interface.ofport if interface is not None else announced
        if only not in (None, self.host_name):
            ofport = None
        if ofport is not None and (held_by is None or held_by.host == self.host_name):
            return Local(ofport)
        if held_by is None or held_by.host == self.host_name:
            return None
        host = self.hosts.get(held_by.host)
        network = self.networks.get(port.network) if port else None
        if host is None or host.tunnel_ip is None or network is None:
            return None
        return Remote(host.tunnel_ip) if network.overlay in host.overlays else None

    def held_networks(self) -> frozenset[NetworkId]:
        """Networks of which a port has an interface here, or the host is to have one."""
        here = {self.ports[port].network for port in self.interfaces if port in self.ports}
        return frozenset(here.union(network.id for network in self.networks_with_host_access()))

    def networks_with_host_access(self) -> list[Network]:
        return [network for network in self.networks.values() if network.host_access]

    def own_port(self, network: NetworkId) -> Port | None:
        """This host's own port in a network."""
        port = self.own_ports.get(network)
        return None if port is None else self.ports.get(port)

    def taken(self, network: NetworkId) -> Collection[str]:
        """Addresses that ports of the network have; all of them if a port of it is held here."""
        return self._taken.get(network, frozenset())

    def hosts_of(self, network: NetworkId) -> frozenset[str]:
        """Other hosts that hold ports of this network."""
        return frozenset(self._holders.get(network, ())) - {self.host_name}

    def remote_hosts(self) -> frozenset[str]:
        """Other hosts that hold ports of the networks held here."""
        return frozenset(host for host, ports in self._bound_to.items() if ports)

    def endpoints(self) -> frozenset[IPv4Address]:
        """Tunnel endpoints of those hosts, as far as known."""
        hosts = (self.hosts.get(name) for name in self.remote_hosts() - {self.host_name})
        return frozenset(host.tunnel_ip for host in hosts if host and host.tunnel_ip)

    # Indexes

    def _set_port(self, port_id: PortId, port: Port | None) -> None:
        """Keep a port, among those of its network; a port's network never changes."""
        before = self.ports.pop(port_id, None)
        if port is not None:
            self.ports[port_id] = port
            self._members.setdefault(port.network, set()).add(port_id)
        elif before is not None:
            members = self._members[before.network]
            members.discard(port_id)
            if not members:
                del self._members[before.network]

    def _set_binding(self, row_id: UUID, old: Row | None, row: Row | None) -> None:
        if old is not None:
            port = PortId(old["port"])
            of_port = self.bindings.get(port, {})
            of_port.pop(row_id, None)
            if not of_port:
                self.bindings.pop(port, None)
            self._bound_to.get(old["host"], set()).discard(port)
            holders = self._holders[old["network"]]
            holders[old["host"]] -= 1
            if not holders[old["host"]]:
                del holders[old["host"]]
            self.dirty_ports.add(port)
        if row is not None:
            binding = rows.binding(row)
            self.bindings.setdefault(binding.port, {})[row_id] = binding
            self._bound_to.setdefault(binding.host, set()).add(binding.port)
            self._holders.setdefault(binding.network, Counter())[binding.host] += 1
            self.dirty_ports.add(binding.port)

    def _set_attachment(self, old: Row | None, row: Row | None) -> None:
        if old is not None:
            self.attachments.pop((old["container"], old["interface"]), None)
        if row is not None:
            attachment = rows.attachment(row)
            self.attachments[attachment.container, attachment.interface] = attachment

    def _set_taken(self, old: Row | None, row: Row | None) -> None:
        if old is not None:
            self._taken.get(old["network"], set()).discard(old["ip"])
        if row is not None:
            self._taken.setdefault(row["network"], set()).add(row["ip"])

    def _set_host(self, old: Row | None, row: Row | None) -> None:
        before = rows.host(old) if old else None
        after = rows.host(row) if row else None
        if before is not None:
            self.hosts.pop(before.name, None)
        if after is not None:
            self.hosts[after.name] = after
        if self.host_name in {host.name for host in (before, after) if host}:
            self.own_row = row
        if _reachability(before) != _reachability(after):
            for host in (before, after):
                self.dirty_ports |= self._bound_to.get(host.name, set()) if host else set()


def _move(
    index: dict[Key, set[UUID]], column: str, old: Row | None, row: Row | None, dirty: set[Key]
) -> None:
    """Keep a row under the object that its column refers to, and mark that object."""
    if old is not None:
        members = index.get(old[column], set())
        members.discard(old.id)
        if not members:
            index.pop(old[column], None)
        dirty.add(old[column])
    if row is not None:
        index.setdefault(row[column], set()).add(row.id)
        dirty.add(row[column])


def _reachability(host: Host | None) -> tuple[object, frozenset[Overlay]] | None:
    return (host.tunnel_ip, host.overlays) if host else None
