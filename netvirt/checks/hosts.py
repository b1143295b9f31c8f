"""What can be wrong on a host itself: its switch, its links, its agent. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from netvirt.model import Attachment, BindingId, Port, PortId
from netvirt.observed import Interface
from tenancy.diagnosis import Finding

# Types of interfaces that are tunnels; ovs-vswitchd.conf.db(5).
_TUNNEL_TYPES = frozenset(
    {"vxlan", "gre", "geneve", "ip6gre", "erspan", "ip6erspan", "stt", "gtpu"}
)
# The least that the userspace tunnels and OpenFlow 1.5 bundles were proven on.
_OLDEST_SWITCH = (2, 17)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link of the host's kernel that says by its alias whose port it is, and who made it."""

    name: str
    port: PortId
    maker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """A host at one moment. `ports` are those of the fabric that anything here refers to.

    `bound` are this host's bindings, `own_names` what virtkit itself calls a port's
    interface here. `lost` are attachments whose namespace does not exist any more.
    """

    host: str
    agent_runs: bool
    tunnels: Mapping[str, str]
    interfaces: Mapping[str, Interface]
    links: tuple[Link, ...]
    half_made: frozenset[str]
    ports: Mapping[PortId, Port]
    bound: Mapping[PortId, BindingId]
    attachments: tuple[Attachment, ...]
    lost: frozenset[PortId]
    own_names: Mapping[PortId, frozenset[str]]
    switch_version: str | None = None


# What is done about findings.


@dataclass(frozen=True, slots=True)
class RemoveInterface:
    """Off the bridge, and with it the link, if the port had one of ours."""

    name: str
    port: PortId


@dataclass(frozen=True, slots=True)
class AddInterface:
    """A link that is there, back on the bridge."""

    name: str
    port: PortId
    mac: str
    attachment: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class RemoveHalfMade:
    name: str


@dataclass(frozen=True, slots=True)
class ForgetAttachment:
    id: UUID


@dataclass(frozen=True, slots=True)
class WithdrawBinding:
    id: UUID


@dataclass(frozen=True, slots=True)
class EnsureTunnels:
    pass


def check(facts: HostFacts) -> list[Finding]:
    """All findings that the host's own state shows, but for flows and paths."""
    return [
        *switch(facts.host, facts.switch_version),
        *agent(facts.host, facts.agent_runs),
        *version(facts),
        *tunnels(facts.host, facts.tunnels, facts.interfaces),
        *interfaces(facts),
        *links(facts),
        *bindings(facts),
        *containers(facts),
    ]


def agent(host: str, runs: bool) -> list[Finding]:
    """Nobody listens where the agent should."""
    if runs:
        return []
    return [
        Finding(
            kind="agent-not-running",
            object=f"host {host}",
            found="no agent answers on this host: what exists stays, and nothing follows changes",
            remedy="start it: `nvctl agent run`, or its service",
        )
    ]


def switch(host: str, version: str | None) -> list[Finding]:
    """The switch does not say what it is."""
    if version is not None:
        return []
    return [
        Finding(
            kind="switch-silent",
            object=f"host {host}, ovs-vswitchd",
            found="it does not answer: it is not running, or hangs",
            remedy="see its log, and start it anew: `systemctl restart openvswitch-switch`; its "
            "flows come back with the agent",
        )
    ]


def version(facts: HostFacts) -> list[Finding]:
    """A switch that is older than what virtkit was proven on."""
    text = facts.switch_version
    numbers = tuple(int(part) for part in (text or "").split(".")[:2] if part.isdecimal())
    if len(numbers) < 2 or numbers >= _OLDEST_SWITCH:
        return []
    return [
        Finding(
            kind="version-differs",
            object=f"host {facts.host}, Open vSwitch",
            found=f"it is {text}, and virtkit needs 2.17 or later",
            remedy="upgrade openvswitch-switch",
        )
    ]


def tunnels(
    host: str, wanted: Mapping[str, str], interfaces: Mapping[str, Interface]
) -> list[Finding]:
    """Tunnel ports that are missing or don't work, and others on our bridge."""
    findings = []
    for name, type_ in wanted.items():
        found = interfaces.get(name)
        if found is not None and found.type == type_ and found.ofport is not None:
            continue
        reason = (
            "it is not on br-int"
            if found is None
            else f"its type is {found.type}, not {type_}"
            if found.type != type_
            else f"the switch can't open it ({found.error or 'no port number'})"
        )
        findings.append(
            Finding(
                kind="tunnel-missing",
                object=f"host {host}, tunnel {name}",
                found=reason,
                remedy="it is made anew",
                mend=EnsureTunnels(),
            )
        )
    findings += [
        Finding(
            kind="tunnel-foreign",
            object=f"host {host}, tunnel {one.name}",
            found=f"a tunnel port of type {one.type} is on br-int that virtkit did not make",
            remedy=f"if nobody needs it: ovs-vsctl del-port br-int {one.name}",
        )
        for one in interfaces.values()
        if one.type in _TUNNEL_TYPES and one.name not in wanted
    ]
    return findings


def interfaces(facts: HostFacts) -> list[Finding]:
    """Interfaces on the bridge of ports or devices that are gone."""
    findings = []
    there = {link.name for link in facts.links}
    for one in facts.interfaces.values():
        if one.iface_id is None:
            continue
        port = PortId(one.iface_id)
        subject = f"host {facts.host}, interface {one.name}"
        is_ours = one.name in facts.own_names.get(port, ())
        if port not in facts.ports:
            found = f"it is on br-int for port {port}, which does not exist"
        elif one.error is not None and is_ours and one.name not in there:
            found = (
                f"it is on br-int for port {facts.ports[port].name}, and its device is gone "
                f"({one.error})"
            )
        else:
            continue
        findings.append(
            Finding(
                kind="interface-orphaned",
                object=subject,
                found=found,
                remedy="it is taken off br-int, with its link"
                if is_ours
                else f"virtkit did not make it; if nobody needs it: ovs-vsctl del-port {one.name}",
                mend=RemoveInterface(one.name, port) if is_ours else None,
            )
        )
    return findings


def links(facts: HostFacts) -> list[Finding]:
    """Links that were left half-made, are of no port, or are not on the bridge."""
    findings = [
        Finding(
            kind="link-half-made",
            object=f"host {facts.host}, link {name}",
            found="it has the name of a port's link and says of no port that it is its",
            remedy="it is deleted",
            mend=RemoveHalfMade(name),
        )
        for name in sorted(facts.half_made)
        if name not in facts.interfaces
    ]
    attachments = {one.port: one for one in facts.attachments}
    for link in facts.links:
        if link.name in facts.interfaces:
            continue
        subject = f"host {facts.host}, link {link.name}"
        port = facts.ports.get(link.port)
        attachment = attachments.get(link.port)
        if port is None:
            findings.append(
                Finding(
                    kind="link-orphaned",
                    object=subject,
                    found=f"it was made for port {link.port}, which does not exist",
                    remedy="it is deleted",
                    mend=RemoveInterface(link.name, link.port),
                )
            )
        elif port.host in (None, facts.host):
            key = (attachment.container, attachment.interface) if attachment else None
            findings.append(
                Finding(
                    kind="interface-missing",
                    object=subject,
                    found=f"port {port.name} has its link, and br-int does not have that",
                    remedy="it is put on br-int again",
                    mend=AddInterface(link.name, port.id, str(port.mac), key),
                )
            )
    return findings


def bindings(facts: HostFacts) -> list[Finding]:
    """Ports that this host says it holds, without an interface. A running agent sees to that."""
    present = {one.iface_id for one in facts.interfaces.values() if one.error is None}
    linked = {link.port for link in facts.links}
    return [
        Finding(
            kind="binding-without-interface",
            object=f"port {facts.ports[port].name if port in facts.ports else port} "
            f"on host {facts.host}",
            found="the database says that it is here, and it has no interface here",
            remedy="see the agent's log" if facts.agent_runs else "the binding is deleted",
            mend=None if facts.agent_runs else WithdrawBinding(binding),
        )
        for port, binding in facts.bound.items()
        if port not in present and port not in linked
    ]


def containers(facts: HostFacts) -> list[Finding]:
    """Attachments of containers that have gone without their runtime's saying so."""
    linked = {link.port for link in facts.links}
    return [
        Finding(
            kind="attachment-lost",
            object=f"port {_port_name(facts, one.port)} on host {facts.host}",
            found=f"container {one.container} is gone with its namespace ({one.netns or 'none'}), "
            "and its port is not",
            remedy="the port is deleted, and its addresses and quota given back",
            mend=ForgetAttachment(one.id),
        )
        for one in facts.attachments
        if one.port in facts.lost and one.port not in linked
    ]


def _port_name(facts: HostFacts, port: PortId) -> str:
    found = facts.ports.get(port)
    return found.name if found else str(port)
