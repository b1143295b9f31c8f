"""What a switch tells its controller: the events that `Switch.run` returns."""

from dataclasses import dataclass

from netvirt.observed import InstalledFlow


@dataclass(frozen=True, slots=True)
class Connected:
    """The switch greeted us. Whatever was asked on an earlier connection is forgotten."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, or could not be made; `Switch` goes on trying."""

    reason: str


@dataclass(frozen=True, slots=True)
class FlowsListed:
    """The answer to `request_flows`; in no order."""

    flows: tuple[InstalledFlow, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """The changes are in the switch, all of them."""

    id: int


@dataclass(frozen=True, slots=True)
class ApplyFailed:
    """None of the changes is in the switch. The reason names the flow that it refused."""

    id: int
    reason: str


@dataclass(frozen=True, slots=True)
class MetersEnsured:
    """All meters asked for exist; `changed` of them had to be written."""

    changed: int


@dataclass(frozen=True, slots=True)
class MetersFailed:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIn:
    """A frame that a flow punted, whole, and what the switch knew of it at that point."""

    cookie: int
    table: int
    in_port: int
    metadata: int
    tunnel_id: int | None
    tunnel_source: str | None
    frame: bytes


Event = (
    Connected
    | Disconnected
    | FlowsListed
    | Applied
    | ApplyFailed
    | MetersEnsured
    | MetersFailed
    | PacketIn
)
