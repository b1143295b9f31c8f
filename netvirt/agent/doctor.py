"""A check-up of this host: gather what is there, have it judged, and mend what may be mended.

It works beside the agent, whether that runs or not, and on the same things in the same way: a
bundle of flows, a port of the bridge, a link, a row. What it changes the agent takes for what it
wanted, because it is.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

import ovs.poller

from netvirt.agent import replica
from netvirt.agent.agent import TUNNEL_NAMES
from netvirt.backends import attach, flow_diff, gateway_device, host_facts, links, path_probe
from netvirt.backends.datapath import datapath_type
from netvirt.backends.openflow import DEFAULT_RUN_DIR, Switch
from netvirt.backends.openflow_events import (
    Applied,
    ApplyFailed,
    Connected,
    Disconnected,
    MetersEnsured,
    MetersFailed,
)
from netvirt.backends.vswitch import DEFAULT_REMOTE, Bridge, VSwitch
from netvirt.backends.vswitch_rows import ATTACHMENT_KEY, attachment_id
from netvirt.checks import flows as flow_checks
from netvirt.checks import hosts as host_checks
from netvirt.checks import paths as path_checks
from netvirt.checks.fabric import FabricFacts
from netvirt.checks.flows import PutFlows
from netvirt.checks.hosts import (
    AddInterface,
    EnsureTunnels,
    HostFacts,
    RemoveHalfMade,
    RemoveInterface,
)
from netvirt.model import Host, Network, PortId
from netvirt.observed import Interface
from netvirt.pipeline.flow import FlowChanges
from netvirt.pipeline.tables import METERS
from tenancy.diagnosis import Finding
from tenancy.errors import BackendUnavailable

BRIDGE = "br-int"
_CONNECT_S = 5.0
_ACT_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This host, as its settings name it, and how its database is reached."""

    db: str
    host: str
    run_dir: Path = Path("/run/virtkit")
    ovs_run_dir: Path = DEFAULT_RUN_DIR
    ovs_remote: str = DEFAULT_REMOTE


HostMend = RemoveInterface | AddInterface | RemoveHalfMade | EnsureTunnels


def look(place: Place, fabric: FabricFacts) -> list[Finding]:
    """All findings on this host's switch and links. Raises BackendUnavailable.

    While a tunnel is missing, or the switch silent, flows are not looked at: other ones would be
    right without it.
    """
    interfaces = _with_switch(place, lambda vswitch: vswitch.interfaces())
    findings = host_checks.check(_observe(place, fabric, interfaces))
    if hides_flows(findings):
        return findings
    return findings + _flows(place, interfaces)


def hides_flows(findings: Iterable[Finding]) -> bool:
    """Whether what is found keeps flows from being looked at."""
    return any(one.kind in ("tunnel-missing", "switch-silent") for one in findings)


def look_without_fabric(place: Place) -> list[Finding]:
    """Whether this host's switch and agent answer. Raises BackendUnavailable if the switch does
    not.
    """
    interfaces = _with_switch(place, lambda vswitch: vswitch.interfaces())
    answers = host_facts.agent_answers(place.run_dir)
    return [
        *host_checks.switch(place.host, host_facts.switch_version()),
        *host_checks.agent(place.host, answers),
        *host_checks.tunnels(place.host, _tunnels(), interfaces),
    ]


def look_at_way_to(place: Place, endpoint: IPv4Address, remotes: Iterable[str]) -> list[Finding]:
    """Whether full packets get through to database servers that don't answer.

    A host with a narrow uplink does not hear from its database: its answers are large.
    """
    servers = {ip for remote in remotes if (ip := _address_of(remote)) is not None}
    if not servers:
        return []
    _, mtu = links.underlay_mtu(endpoint)
    found = path_probe.probe(endpoint, dict.fromkeys(servers, mtu))
    return path_checks.ways(place.host, dict.fromkeys(servers, "its database"), found)


def _address_of(remote: str) -> IPv4Address | None:
    kind, _, rest = remote.partition(":")
    try:
        return IPv4Address(rest.rpartition(":")[0]) if kind in ("tcp", "ssl") else None
    except ValueError:
        return None


def look_at_paths(place: Place, fabric: FabricFacts) -> list[Finding]:
    """Findings on the ways from this host's tunnel endpoint to those that it sends to."""
    own = next((host for host in fabric.hosts if host.name == place.host), None)
    if own is None or own.tunnel_ip is None:
        return []
    shared: dict[str, list[Network]] = {}
    held = {one.network for one in fabric.bindings if one.host == place.host}
    for one in fabric.bindings:
        network = fabric.networks.get(one.network)
        if one.host != place.host and one.network in held and network is not None:
            shared.setdefault(one.host, []).append(network)
    others: dict[IPv4Address, Host] = {}
    needed: dict[IPv4Address, int] = {}
    for host in fabric.hosts:
        size = path_checks.needed_bytes(shared.get(host.name, ()))
        if host.tunnel_ip in (None, own.tunnel_ip) or size is None or host.name not in fabric.alive:
            continue
        assert host.tunnel_ip is not None
        others[host.tunnel_ip], needed[host.tunnel_ip] = host, size
    if not needed:
        return []
    return path_checks.paths(place.host, others, path_probe.probe(own.tunnel_ip, needed))


def put_flows(place: Place, what: Iterable[PutFlows]) -> None:
    """Have all these flows put and deleted in one bundle. Raises a VirtkitError."""
    add = {flow.cookie: flow for one in what for flow in one.add}
    delete = {cookie for one in what for cookie in one.delete}
    _put(place, FlowChanges(add=list(add.values()), delete=sorted(delete)))


def mend(place: Place, fabric: FabricFacts | None, what: HostMend) -> None:
    """Do what a finding calls for. Raises a VirtkitError."""
    match what:
        case RemoveInterface(name, port):
            attach.remove_interface(name, remote=place.ovs_remote)
            links.unplug(port)
        case AddInterface(name, port, mac, attachment):
            attach.add_interface(name, port, mac, remote=place.ovs_remote)
            if attachment is not None:
                ids = {ATTACHMENT_KEY: attachment_id(*attachment)}
                _with_switch(place, lambda vswitch: vswitch.ensure_external_ids(name, ids) or None)
        case RemoveHalfMade(name):
            links.remove_nameless(name)
        case EnsureTunnels():
            _ensure_tunnels(place, fabric)


def _observe(place: Place, fabric: FabricFacts, interfaces: Mapping[str, Interface]) -> HostFacts:
    found = host_facts.own_links()
    attachments = tuple(one for one in fabric.attachments if one.host == place.host)
    mentioned = {PortId(one.iface_id) for one in interfaces.values() if one.iface_id is not None}
    bound = {one.port: one.id for one in fabric.bindings if one.host == place.host}
    mentioned |= {link.port for link in found} | bound.keys()
    mentioned |= {one.port for one in attachments}
    return HostFacts(
        host=place.host,
        agent_runs=host_facts.agent_answers(place.run_dir),
        tunnels=_tunnels(),
        interfaces=interfaces,
        links=found,
        half_made=links.nameless(),
        ports={port: fabric.ports[port] for port in mentioned if port in fabric.ports},
        bound=bound,
        attachments=attachments,
        lost=frozenset(
            one.port for one in attachments if not host_facts.namespace_exists(one.netns)
        ),
        own_names={
            port: frozenset({links.link_name(port), gateway_device.name(port)})
            for port in mentioned
        },
        switch_version=host_facts.switch_version(),
    )


def _flows(place: Place, interfaces: Mapping[str, Interface]) -> list[Finding]:
    wanted = replica.wanted(place.db, place.host, interfaces, TUNNEL_NAMES).flows
    lines = flow_diff.lines(BRIDGE, wanted.values(), place.ovs_run_dir)
    return flow_checks.flows(place.host, lines, wanted)


def _tunnels() -> dict[str, str]:
    return {name: str(overlay) for overlay, name in TUNNEL_NAMES.items()}


def _ensure_tunnels(place: Place, fabric: FabricFacts | None) -> None:
    own = [host for host in fabric.hosts if host.name == place.host] if fabric else []
    with_ip = own[0].tunnel_ip if own else None
    found = _with_switch(place, lambda vswitch: vswitch.datapath_type() or "")
    bridge = Bridge(
        name=BRIDGE,
        datapath_type=found or datapath_type(),
        tunnels=tuple((TUNNEL_NAMES[overlay], str(overlay)) for overlay in TUNNEL_NAMES),
        tunnel_ip=with_ip,
    )
    _with_switch(place, lambda vswitch: vswitch.ensure_bridge(bridge) or None)


def _with_switch(place: Place, ready: Callable[[VSwitch], T | None]) -> T:
    """What `ready` returns once that is something, of the switch's database."""
    vswitch = VSwitch(place.ovs_remote, BRIDGE)
    give_up = time.monotonic() + _CONNECT_S
    try:
        while True:
            vswitch.run()
            found = ready(vswitch) if vswitch.connected else None
            if found is not None:
                return found
            left_ms = int((give_up - time.monotonic()) * 1000)
            if left_ms <= 0:
                raise BackendUnavailable(
                    f"Open vSwitch's database does not answer at {place.ovs_remote} within "
                    f"{_CONNECT_S:g} s{f' ({vswitch.failure})' if vswitch.failure else ''}. "
                    "Start it: `systemctl start openvswitch-switch`."
                )
            poller = ovs.poller.Poller()
            vswitch.wait(poller)
            poller.timer_wait(min(left_ms, 200))
            poller.block()
    finally:
        vswitch.close()


def _put(place: Place, changes: FlowChanges) -> None:
    """One bundle, with the meters that flows may use there before."""
    switch = Switch(BRIDGE, place.ovs_run_dir)
    give_up = time.monotonic() + _ACT_S
    try:
        while True:
            for event in switch.run():
                match event:
                    case Connected():
                        switch.ensure_meters(METERS)
                    case MetersEnsured():
                        switch.apply(changes)
                    case MetersFailed(reason) | ApplyFailed(_, reason) | Disconnected(reason):
                        raise BackendUnavailable(f"the switch refuses: {reason}.")
                    case Applied():
                        return
                    case _:
                        pass
            left_ms = int((give_up - time.monotonic()) * 1000)
            if left_ms <= 0:
                raise BackendUnavailable(f"the switch did not answer within {_ACT_S:g} s.")
            poller = ovs.poller.Poller()
            switch.wait(poller)
            poller.timer_wait(left_ms)
            poller.block()
    finally:
        switch.close()
