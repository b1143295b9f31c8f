"""What can be wrong with the way between two tunnel endpoints. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address

from netvirt.model import Host, Network
from tenancy.diagnosis import Finding

# Below that, asking takes as long as what is asked for.
CLOCK_SKEW_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFacts:
    """What probing one endpoint showed, in bytes of whole IP packets.

    `passed_bytes` is the largest tried size that was answered, None if none was. `back_bytes` is
    the size of the fragments in which answers came; None, whole. `clock_offset_s` is how far its
    clock is ahead of ours, if it told.
    """

    needed_bytes: int
    passed_bytes: int | None
    back_bytes: int | None = None
    clock_offset_s: float | None = None


def needed_bytes(networks: Iterable[Network]) -> int | None:
    """How large the overlay's largest packets are on the underlay; None without a network."""
    return max((one.mtu_bytes + one.overlay.overhead_bytes for one in networks), default=None)


def paths(
    host: str, others: Mapping[IPv4Address, Host], found: Mapping[IPv4Address, PathFacts]
) -> list[Finding]:
    """Findings on the ways from `host` to the others' endpoints."""
    names = {endpoint: other.name for endpoint, other in others.items()}
    findings = ways(host, names, found)
    for endpoint, facts in found.items():
        offset = facts.clock_offset_s
        if offset is not None and abs(offset) > CLOCK_SKEW_S:
            findings.append(clock(names[endpoint], offset, f"host {host}'s"))
    return findings


def ways(
    host: str, names: Mapping[IPv4Address, str], found: Mapping[IPv4Address, PathFacts]
) -> list[Finding]:
    """What fits through from `host` to those that have these names."""
    return [
        finding
        for endpoint, facts in found.items()
        for finding in _size(
            f"path {host} - {names[endpoint]} ({endpoint})", host, names[endpoint], facts
        )
    ]


def clock(host: str, offset_s: float, than: str) -> Finding:
    """A host whose clock is so far ahead (or behind, if negative) of another."""
    order = "ahead of" if offset_s > 0 else "behind"
    return Finding(
        kind="clock-skew",
        object=f"host {host}",
        found=f"its clock is about {abs(offset_s):.0f} s {order} {than}",
        remedy="have both set by NTP (`chronyc tracking`, `timedatectl`)",
    )


def _size(way: str, host: str, other: str, facts: PathFacts) -> list[Finding]:
    if facts.passed_bytes is None:
        return [
            Finding(
                kind="path-silent",
                object=way,
                found="no ICMP echo request is answered, not even a small one",
                remedy=f"see whether {other} is up and the underlay between them; if ICMP is "
                "filtered, allow it: without it nothing can be said of the MTU",
            )
        ]
    findings = []
    if facts.passed_bytes < facts.needed_bytes:
        findings.append(
            Finding(
                kind="mtu-too-small",
                object=way,
                found=f"packets of {facts.needed_bytes} bytes, which the overlay needs, don't get "
                f"through with don't-fragment set; {facts.passed_bytes} do",
                remedy=_raise_mtu(facts.needed_bytes),
            )
        )
    if facts.back_bytes is not None and facts.back_bytes < facts.needed_bytes:
        findings.append(
            Finding(
                kind="mtu-too-small-back",
                object=way,
                found=f"answers of {facts.needed_bytes} bytes come in fragments of "
                f"{facts.back_bytes}: the way from {other} to {host} is narrower",
                remedy=_raise_mtu(facts.needed_bytes),
            )
        )
    return findings


def _raise_mtu(needed: int) -> str:
    return (
        f"raise the MTU of the uplinks and what is between them to {needed} (`ip link`, "
        "`ovs-vsctl set interface ... mtu_request`), or lower the networks': nvctl network set "
        "NAME --mtu N"
    )
