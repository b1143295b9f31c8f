"""What can be wrong with what the fabric database says of networks, ports and hosts. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from netvirt.checks.paths import clock
from netvirt.model import (
    Attachment,
    Binding,
    Host,
    IPAddress,
    IPNetwork,
    Network,
    NetworkId,
    Port,
    PortId,
    PortKind,
)
from tenancy.diagnosis import Finding

# An agent reports every 15 s in whole seconds: a report from further in the future than this is
# that of a clock which is ahead.
AHEAD_S = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A row of table Address with what it refers to; `subnet` is its network's, or None."""

    id: UUID
    ip: IPAddress
    port: PortId
    network: NetworkId
    host: str | None
    subnet: IPNetwork | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One tenant's use of one resource: what the ledger says, and what is counted."""

    quota_id: UUID
    tenant: str
    resource: str
    limit: int
    booked: int
    counted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricFacts:
    """The database at one moment. `cfg` is what every agent should have applied by now."""

    now_s: int
    cfg: int
    version: str
    hosts: tuple[Host, ...]
    networks: Mapping[NetworkId, Network]
    ports: Mapping[PortId, Port]
    leases: tuple[Lease, ...]
    bindings: tuple[Binding, ...]
    attachments: tuple[Attachment, ...]
    accounts: tuple[Account, ...]
    alive: frozenset[str]


# What is done about findings; the rows are known by their ids.


@dataclass(frozen=True, slots=True)
class DeleteBinding:
    id: UUID


@dataclass(frozen=True, slots=True)
class DeleteLease:
    id: UUID


@dataclass(frozen=True, slots=True)
class ForgetAttachments:
    """The ports of containers that a host had."""

    host: str


@dataclass(frozen=True, slots=True)
class DeleteHostPort:
    name: str
    network: NetworkId


@dataclass(frozen=True, slots=True)
class Recount:
    quota_id: UUID


def check(facts: FabricFacts) -> list[Finding]:
    """All findings that the rows show by themselves."""
    return [
        *agents(facts),
        *endpoints(facts.hosts),
        *bindings(facts),
        *attachments(facts),
        *leases(facts),
        *host_ports(facts),
        *underlays(facts),
        *accounts(facts.accounts),
    ]


def agents(facts: FabricFacts) -> list[Finding]:
    """Hosts that don't report, don't follow, have problems, or run another version."""
    findings = []
    for host in facts.hosts:
        subject = f"host {host.name}"
        if host.heartbeat_s - facts.now_s > AHEAD_S:
            findings.append(clock(host.name, host.heartbeat_s - facts.now_s, "this machine's"))
        elif host.name not in facts.alive:
            age = "never" if not host.heartbeat_s else f"{facts.now_s - host.heartbeat_s} s ago"
            findings.append(
                Finding(
                    kind="agent-silent",
                    object=subject,
                    found=f"its agent last reported {age} (or its clock is behind by that)",
                    remedy="start it there (`nvctl agent run`) and see its log; if the host is "
                    f"gone for good: nvctl host delete {host.name} --force",
                )
            )
            continue
        elif host.cfg < facts.cfg:
            findings.append(
                Finding(
                    kind="agent-behind",
                    object=subject,
                    found=f"its agent reports, but has applied change {host.cfg} of {facts.cfg}",
                    remedy="see its log; starting it anew leaves traffic as it is",
                )
            )
        for problem in sorted(host.problems):
            findings.append(
                Finding(
                    kind="agent-problem",
                    object=f"{subject}: {problem[:60]}",
                    found=problem,
                    remedy="see the agent's log there",
                )
            )
        if host.version and host.version != facts.version:
            findings.append(
                Finding(
                    kind="version-differs",
                    object=subject,
                    found=f"its agent is virtkit {host.version}, this command {facts.version}",
                    remedy="upgrade the older one; traffic passes while an agent is replaced",
                )
            )
    return findings


def endpoints(hosts: Iterable[Host]) -> list[Finding]:
    """Two hosts that want the same tunnel endpoint: each gets the other's packets."""
    of_address: dict[object, list[str]] = {}
    for host in hosts:
        if host.tunnel_ip is not None:
            of_address.setdefault(host.tunnel_ip, []).append(host.name)
    return [
        Finding(
            kind="endpoint-shared",
            object=f"tunnel endpoint {address}",
            found=f"hosts {', '.join(sorted(names))} all say that it is theirs",
            remedy="give each its own: tunnel_ip under [host] in virtkit.toml there, and start its "
            "agent anew; a host that is gone for good: nvctl host delete NAME --force",
        )
        for address, names in of_address.items()
        if len(names) > 1
    ]


def bindings(facts: FabricFacts) -> list[Finding]:
    """Ports that are said to be on a host that nobody knows."""
    known = {host.name for host in facts.hosts}
    return [
        Finding(
            kind="binding-without-host",
            object=f"port {_name(facts, one.port)} on host {one.host}",
            found=f"it is bound there, and there is no host {one.host}",
            remedy="the binding is deleted; the port and its addresses stay",
            mend=DeleteBinding(one.id),
        )
        for one in facts.bindings
        if one.host not in known
    ]


def attachments(facts: FabricFacts) -> list[Finding]:
    """Containers on hosts that nobody knows, whose ports and addresses nobody will give back."""
    known = {host.name for host in facts.hosts}
    lost = Counter(one.host for one in facts.attachments if one.host not in known)
    return [
        Finding(
            kind="attachment-without-host",
            object=f"containers of host {host}",
            found=f"{count} of their ports are on record, and there is no host {host}",
            remedy="their ports are deleted, and their addresses and quota given back",
            mend=ForgetAttachments(host),
        )
        for host, count in lost.items()
    ]


def leases(facts: FabricFacts) -> list[Finding]:
    """Addresses that no port has, although a row keeps them from being given to another."""
    findings = []
    for lease in facts.leases:
        port = facts.ports.get(lease.port)
        if port is None:
            reason = "the port it names does not exist"
        elif lease.host != port.host:
            reason = (
                f"it was written by host {lease.host or 'none'} for port {port.name}, which is "
                f"host {port.host or 'none'}'s, so nobody goes by it"
            )
        elif lease.network != port.network:
            reason = f"port {port.name} is in another network"
        elif lease.subnet is None or lease.ip not in lease.subnet:
            reason = f"port {port.name}'s network has no subnet with it"
        else:
            continue
        network = facts.networks.get(lease.network)
        findings.append(
            Finding(
                kind="address-of-nobody",
                object=f"address {lease.ip} of network {network.name if network else '?'}",
                found=reason,
                remedy="the row is deleted and the address free again",
                mend=DeleteLease(lease.id),
            )
        )
    return findings


def host_ports(facts: FabricFacts) -> list[Finding]:
    """Hosts' own ports that their host, or its access to the network, has not outlived."""
    names = {f"host-{host.name}" for host in facts.hosts}
    findings = []
    for port in facts.ports.values():
        network = facts.networks.get(port.network)
        if port.kind is not PortKind.HOST or network is None:
            continue
        if port.name in names and network.host_access:
            continue
        reason = (
            "its host is not known" if network.host_access else "the network has no host access"
        )
        findings.append(
            Finding(
                kind="host-port-left",
                object=f"port {port.name} of network {network.name}",
                found=f"a host's own port is left: {reason}",
                remedy="it is deleted, and its address free again",
                mend=DeleteHostPort(port.name, network.id),
            )
        )
    return findings


def underlays(facts: FabricFacts) -> list[Finding]:
    """Networks whose packets, with the overlay around them, exceed a host's own underlay link."""
    hosts = {host.name: host for host in facts.hosts}
    needed: dict[str, Network] = {}
    for one in facts.bindings:
        network = facts.networks.get(one.network)
        if network is None or one.host not in hosts:
            continue
        largest = needed.get(one.host)
        if largest is None or _size(network) > _size(largest):
            needed[one.host] = network
    findings = []
    for name, network in needed.items():
        mtu = hosts[name].underlay_mtu_bytes
        if mtu is not None and _size(network) > mtu:
            findings.append(
                Finding(
                    kind="underlay-mtu-too-small",
                    object=f"host {name}",
                    found=f"its tunnel endpoint's link has MTU {mtu}, and network {network.name} "
                    f"needs {_size(network)}",
                    remedy=f"raise the link's MTU, or: nvctl network set {network.name} --mtu "
                    f"{mtu - network.overlay.overhead_bytes}",
                )
            )
    return findings


def accounts(found: Iterable[Account]) -> list[Finding]:
    """Quotas of which more or less is booked as used than there is."""
    return [
        Finding(
            kind="quota-miscounted",
            object=f"tenant {one.tenant}, quota of {one.resource}",
            found=f"{one.booked} are booked as used, and {one.counted} are there",
            remedy="what is left is set to what it should be",
            mend=Recount(one.quota_id) if one.counted <= one.limit else None,
        )
        for one in found
        if one.booked != one.counted
    ]


def _size(network: Network) -> int:
    return network.mtu_bytes + network.overlay.overhead_bytes


def _name(facts: FabricFacts, port: PortId) -> str:
    found = facts.ports.get(port)
    return found.name if found else str(port)
