"""A flow as data: what it matches, what it does, and what it is called.

A flow's cookie is a digest of everything it says. So two flows are the same exactly if their
cookies are, and an agent that starts beside a switch full of flows needs to read nothing but
cookies to know which to keep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from hashlib import blake2b

from netvirt.pipeline.fields import Field


class Category(IntEnum):
    """What a flow is for: the top byte of its cookie, so that a dump can be read."""

    BASE = 0x01
    LOCAL_PORT = 0x02
    REMOTE_PORT = 0x03
    NETWORK = 0x04


IN_PORT_RESERVED = 0xFFFFFFF8  # OFPP_IN_PORT: back where the packet came from


@dataclass(frozen=True, slots=True)
class Condition:
    """`field == value` under the mask; without a mask, all bits."""

    field: Field
    value: int
    mask: int | None = None

    def text(self) -> str:
        if self.mask is None or self.mask == self.field.all_ones:
            return f"{self.field.name}={self.field.text(self.value)}"
        return f"{self.field.name}={self.field.text(self.value)}/{self.field.text(self.mask)}"


@dataclass(frozen=True, slots=True)
class SetField:
    field: Field
    value: int

    def text(self) -> str:
        return f"set_field:{self.field.text(self.value)}->{self.field.name}"


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the low `bits` bits of one field to another; all of the narrower by default."""

    source: Field
    target: Field
    bits: int | None = None

    @property
    def width(self) -> int:
        return self.bits or min(self.source.bits, self.target.bits)

    def text(self) -> str:
        last = self.width - 1
        return f"move:{self.source.name}[0..{last}]->{self.target.name}[0..{last}]"


@dataclass(frozen=True, slots=True)
class Output:
    """Send to an OpenFlow port. The packet is not consumed: several outputs make a flood."""

    port: int

    def text(self) -> str:
        return "in_port" if self.port == IN_PORT_RESERVED else f"output:{self.port}"


@dataclass(frozen=True, slots=True)
class OutputTo:
    """Send to the OpenFlow port whose number is in a field."""

    field: Field

    def text(self) -> str:
        return f"output:{self.field.name}"


@dataclass(frozen=True, slots=True)
class Punt:
    """Send to the agent, whole; the flow's cookie tells it which flow did."""

    def text(self) -> str:
        return "controller"


@dataclass(frozen=True, slots=True)
class Meter:
    """Drop what exceeds the meter's rate."""

    id: int

    def text(self) -> str:
        return f"meter:{self.id}"


@dataclass(frozen=True, slots=True)
class Goto:
    """Go on in a later table. Always last."""

    table: int

    def text(self) -> str:
        return f"goto_table:{self.table}"


Action = SetField | Copy | Output | OutputTo | Punt | Meter | Goto


@dataclass(frozen=True)
class Flow:
    """One flow. No actions means that the packet is dropped."""

    table: int
    priority: int
    match: tuple[Condition, ...]
    actions: tuple[Action, ...]
    category: Category

    @property
    def match_text(self) -> str:
        return ",".join(condition.text() for condition in self.match)

    @property
    def text(self) -> str:
        """The flow as ovs-ofctl(8) writes it, without cookie."""
        match = f",{self.match_text}" if self.match else ""
        actions = ",".join(action.text() for action in self.actions) or "drop"
        return f"table={self.table},priority={self.priority}{match} actions={actions}"

    @cached_property
    def cookie(self) -> int:
        """64 bits: the category, then a digest of the text.

        It is kept and the text is not, which would take several times as much memory.
        """
        digest = blake2b(self.text.encode(), digest_size=7).digest()
        return int.from_bytes(bytes([self.category]) + digest, "big")


@dataclass(frozen=True, slots=True)
class FlowChanges:
    """What turns the observed flows into the wanted ones, to be applied as one bundle."""

    add: Sequence[Flow]
    delete: Sequence[int]

    def __bool__(self) -> bool:
        return bool(self.add or self.delete)
