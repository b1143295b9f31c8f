"""What disks must hold after a random history. Pure: the loss test's memory.

A block holds what was last acknowledged. A write that was begun and not acknowledged (its client
or the cluster died) may have happened or not: until the block is read, several contents are right,
and what is read then is what it holds.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BLOCK = 65536
ZERO = ""

Contents = dict[int, frozenset[str]]


def pattern(label: str) -> bytes:
    """What a block with this label holds: no two labels share a sector."""
    if label == ZERO:
        return bytes(BLOCK)
    return hashlib.sha256(label.encode()).digest() * (BLOCK // 32)


@dataclass
class Snapshot:
    """A disk as it was; `clones` are names of disks made from it."""

    blocks: int
    contents: Contents
    clones: set[str] = field(default_factory=set)


@dataclass
class Disk:
    """A disk by its blocks; what is not in `contents` was never written."""

    name: str
    blocks: int
    contents: Contents = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    parent: tuple[str, str] | None = None

    def may_hold(self, block: int) -> frozenset[str]:
        return self.contents.get(block, frozenset({ZERO}))

    def begin(self, block: int, label: str) -> None:
        """A write or discard (ZERO) is on its way."""
        self.contents[block] = self.may_hold(block) | {label}

    def acknowledge(self, block: int, label: str) -> None:
        """It is done, and stays."""
        self.contents[block] = frozenset({label})

    def resize(self, blocks: int) -> None:
        """What is cut off is gone; what is added is empty."""
        self.contents = {b: held for b, held in self.contents.items() if b < blocks}
        self.blocks = blocks

    def snapshot(self, name: str) -> None:
        self.snapshots[name] = Snapshot(blocks=self.blocks, contents=dict(self.contents))

    def roll_back(self, name: str) -> None:
        kept = self.snapshots[name]
        self.blocks, self.contents = kept.blocks, dict(kept.contents)

    def clone(self, snapshot: str, name: str) -> "Disk":
        kept = self.snapshots[snapshot]
        kept.clones.add(name)
        return Disk(
            name=name,
            blocks=kept.blocks,
            contents=dict(kept.contents),
            parent=(self.name, snapshot),
        )


def wrong(
    contents: Contents, blocks: int, read: Callable[[int], bytes]
) -> Iterator[tuple[int, frozenset[str]]]:
    """The blocks whose bytes are none of those that they may hold, with what they may.

    What a block of several possible contents is found to hold is what it holds from now on.
    """
    for block in range(blocks):
        may = contents.get(block, frozenset({ZERO}))
        found = read(block)
        label = next((one for one in sorted(may) if pattern(one) == found), None)
        if label is None:
            yield block, may
        elif len(may) > 1:
            contents[block] = frozenset({label})
