"""Giving a port its interface on this host, and taking it away.

A plug is complete when the agent has bound the port and applied all that follows. Each step is
idempotent; what a failed step left is taken away by `unplug`, or completed by plugging again.
"""

from collections.abc import Sequence
from ipaddress import ip_interface

from netvirt.backends import attach, container_links, links
from netvirt.service import host_ports
from netvirt.service.acknowledge import wait_for_hosts
from netvirt.service.attachments import check_not_attached
from netvirt.service.ports import PortState
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.errors import BackendUnavailable, Refused

# How long plugging in waits for the other hosts of the network.
OTHER_HOSTS_WAIT_S = 2.0


def plug_netns(fabric: Fabric, host_name: str, state: PortState, netns: str, interface: str) -> str:
    """A veth from the switch into a network namespace, with the port's addresses on it.

    Returns the name of its end on the host.
    """
    _check_not_host_port(state, "plugged in")
    _check_host(host_name, state)
    _check_free(fabric, host_name, state)
    device = links.index(state.port.id)
    addresses = tuple(
        ip_interface((address, subnet.cidr.prefixlen))
        for address in state.port.addresses
        for subnet in state.network.subnets
        if address in subnet.cidr
    )
    link = links.plug_veth(
        state.port.id,
        netns=netns,
        name=interface,
        mac=str(state.port.mac),
        mtu=state.network.mtu_bytes,
        addresses=addresses,
        routes=_default_routes(state, netns),
    )
    _connect(link, state, device)
    return link


def plug_tap(fabric: Fabric, host_name: str, state: PortState) -> str:
    """A persistent tap on the switch for a VM; returns its name."""
    _check_not_host_port(state, "plugged in")
    _check_host(host_name, state)
    _check_free(fabric, host_name, state)
    device = links.index(state.port.id)
    link = links.plug_tap(state.port.id, mac=str(state.port.mac), mtu=state.network.mtu_bytes)
    _connect(link, state, device)
    return link


def unplug(fabric: Fabric, state: PortState) -> None:
    """Take the port's interface away; nothing to do if there is none.

    One that somebody else made, libvirt or the CNI, is theirs to take away: then `Refused`.
    """
    check_not_attached(fabric, state.port.id, state.port.name, "unplugged")
    _check_not_host_port(state, "unplugged")
    own = links.link_name(state.port.id)
    attach.remove_interface(own)
    links.unplug(state.port.id)
    others = [name for name in attach.interfaces_of(state.port.id) if name != own]
    if others:
        raise Refused(
            f"port {state.port.name}: interface {', '.join(others)} on br-int holds it, which "
            "nvctl did not make. Take it away where it was made, or with `ovs-vsctl del-port`."
        )


def wait_until_bound(
    fabric: Fabric, host_name: str, state: PortState, timeout_s: float
) -> frozenset[str]:
    """Return when this host's agent has bound the port and its switch has all that follows.

    The other hosts of the network are given a moment as well, so that traffic usually passes both
    ways at once; those that have not followed are returned. A host that is down must not keep
    ports from being plugged in elsewhere.
    """

    def is_here(rows: Sequence[Row]) -> bool:
        return any(row["host"] == host_name for row in rows)

    if not fabric.wait_until("Binding", is_here, timeout_s, port=state.port.id):
        raise BackendUnavailable(
            f"port {state.port.name}: plugged in, but host {host_name}'s agent did not bind it "
            f"within {timeout_s:g} s. See whether it runs: `nvctl host get {host_name}`."
        )
    transaction = fabric.transaction()
    transaction.request_acknowledgement(state.network.id)
    transaction.commit()
    here = frozenset({host_name})
    wait_for_hosts(fabric, f"port {state.port.name}", transaction.cfg, here, timeout_s)
    others = transaction.holders - here
    return fabric.wait_for_hosts(transaction.cfg or 0, others, min(timeout_s, OTHER_HOSTS_WAIT_S))


def wait_until_released(fabric: Fabric, host_name: str, state: PortState, timeout_s: float) -> None:
    """Return when this host's agent has given the port up."""

    def is_gone(rows: Sequence[Row]) -> bool:
        return all(row["host"] != host_name for row in rows)

    if not fabric.wait_until("Binding", is_gone, timeout_s, port=state.port.id):
        raise BackendUnavailable(
            f"port {state.port.name}: unplugged, but host {host_name}'s agent still holds it after "
            f"{timeout_s:g} s. See whether it runs: `nvctl host get {host_name}`."
        )


def _check_host(host_name: str, state: PortState) -> None:
    if state.port.host not in (None, host_name):
        raise Refused(
            f"port {state.port.name}: only host {state.port.host} may hold it, and this is "
            f"{host_name}. Plug it in there, or let it come here: nvctl port set {state.port.name} "
            f"--host {host_name}."
        )


def _check_not_host_port(state: PortState, done: str) -> None:
    host_ports.check_not_host_port(state.port.name, state.port.kind, state.network.name, done)


def _check_free(fabric: Fabric, host_name: str, state: PortState) -> None:
    """A port is in one place: plugging it in twice would send its traffic to the later one."""
    check_not_attached(fabric, state.port.id, state.port.name, "plugged in")
    elsewhere = sorted(
        row["host"]
        for row in fabric.select("Binding", port=state.port.id)
        if row["host"] != host_name
    )
    if elsewhere:
        raise Refused(
            f"port {state.port.name} is in use on {', '.join(elsewhere)}. Unplug it there first."
        )


def _default_routes(state: PortState, netns: str) -> list[links.Route]:
    """With host access there is a way out; a namespace that has one already keeps it."""
    if not state.network.host_access or container_links.look_into(netns).has_default_route:
        return []
    return [
        links.Route(destination=subnet.cidr.supernet(new_prefix=0), via=subnet.gateway)
        for subnet in state.network.subnets
    ]


def _connect(link: str, state: PortState, device_before: int | None) -> None:
    """Put the link on the switch. `device_before` is its index before it was made or found."""
    attach.add_interface(
        link,
        state.port.id,
        str(state.port.mac),
        device_is_new=links.index(state.port.id) != device_before,
    )
