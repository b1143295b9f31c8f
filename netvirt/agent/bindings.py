"""Which bindings a host writes and which it takes back. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from uuid import UUID

from netvirt.model import Binding, BindingId, NetworkId, PortId


@dataclass(frozen=True, slots=True)
class Claim:
    """A binding to write: this host has the port, and knows of no later claim."""

    port: PortId
    network: NetworkId
    number: int


def decide(
    host_name: str,
    present: Mapping[PortId, NetworkId],
    attached: Collection[PortId],
    bindings: Mapping[PortId, Mapping[UUID, Binding]],
    examine: Collection[PortId],
) -> tuple[list[Claim], list[BindingId]]:
    """Claims to make and bindings to withdraw, for the ports to examine.

    `present` are the ports of the fabric whose interface on this host the switch has opened,
    `attached` all that have one. A port is claimed once, when it is present: a host that lost it
    to a later claim does not fight back. It is given up when its interface is gone, and not while
    a switch that restarts opens it again.
    """
    claims, withdrawn = [], []
    for port in examine:
        of_port = bindings.get(port, {}).values()
        own = [binding for binding in of_port if binding.host == host_name]
        if port in present and not own:
            number = max((binding.claim for binding in of_port), default=0) + 1
            claims.append(Claim(port, present[port], number))
        elif port not in attached:
            withdrawn += [binding.id for binding in own]
    return claims, withdrawn
