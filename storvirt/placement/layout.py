"""How an image's bytes are spread over its objects, and which generation's object serves them.

A clone reads what it has not written from its parent, object by object, and its parent from its
own. So what serves a byte is decided anew for each piece of each generation's striping. Pure; the
generations are read by `backends.layers`. Striping: "File Striping" in Ceph's architecture.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storvirt.model import ImagePath, PoolName


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An image's striping; without any, `stripe_unit` is `object_bytes` and the count is 1."""

    object_bytes: int
    stripe_unit: int
    stripe_count: int

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """`(object number, offset, length)` of the parts of a range of the image, in order."""
        end = offset + length
        step = self.object_bytes if self.stripe_count == 1 else self.stripe_unit
        while offset < end:
            part = min(end, (offset // step + 1) * step) - offset
            yield self.object_at(offset), offset, part
            offset += part

    def object_at(self, offset: int) -> int:
        """The number of the object that holds the byte at `offset`."""
        if self.stripe_count == 1:
            return offset // self.object_bytes
        unit = offset // self.stripe_unit
        units_per_set = self.object_bytes // self.stripe_unit * self.stripe_count
        return unit // units_per_set * self.stripe_count + unit % self.stripe_count

    def ranges(self, number: int) -> Iterator[tuple[int, int]]:
        """`(offset, length)` of the image's ranges that the object `number` holds."""
        if self.stripe_count == 1:
            yield number * self.object_bytes, self.object_bytes
            return
        units = self.object_bytes // self.stripe_unit
        first, column = divmod(number, self.stripe_count)
        for row in range(first * units, (first + 1) * units):
            yield (row * self.stripe_count + column) * self.stripe_unit, self.stripe_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One generation of an image: what it holds itself.

    `reach_bytes` is how much of it the generation above can see (its own size for the first);
    `objects` are the numbers of those that exist; `heat` is the text in its metadata that
    `storvirt.placement.heat` reads.
    """

    path: ImagePath
    snapshot: str | None
    id: str
    pool: PoolName
    namespace: str
    prefix: str
    layout: Layout
    reach_bytes: int
    objects: frozenset[int]
    heat: str | None = None

    @property
    def image(self) -> str:
        """Which image it is, to people."""
        return f"{self.path}@{self.snapshot}" if self.snapshot else str(self.path)

    def object_name(self, number: int) -> str:
        """Ceph's name of one of its objects."""
        return f"{self.prefix}.{number:016x}"


@dataclass(frozen=True, slots=True)
class Served:
    """A piece of an image and the object that answers reads of it."""

    layer: int
    number: int
    length: int


def serving(layers: Sequence[Layer], offset: int, length: int, depth: int = 0) -> Iterator[Served]:
    """What serves a range of the image whose generations are `layers`, youngest first.

    What no generation has is not served at all: it reads as zeros.
    """
    if depth == len(layers):
        return
    layer = layers[depth]
    for number, at, part in layer.layout.pieces(
        offset, max(0, min(length, layer.reach_bytes - offset))
    ):
        if number in layer.objects:
            yield Served(depth, number, part)
        else:
            yield from serving(layers, at, part, depth + 1)


def first_served(layers: Sequence[Layer]) -> tuple[int, int]:
    """Layer and number of the object with the image's first byte; its own, if none has it yet."""
    for piece in serving(layers, 0, 1):
        return piece.layer, piece.number
    return 0, 0


def held(layers: Sequence[Layer]) -> dict[tuple[int, int], int]:
    """`(layer, object number)` of all that reads of the image can reach, with their bytes.

    An object counts whole, if it exists, less what a younger generation hides.
    """
    found: dict[tuple[int, int], int] = {}
    for depth, layer in enumerate(layers):
        reach = min(above.reach_bytes for above in layers[: depth + 1])
        for number in layer.objects:
            for offset, length in layer.layout.ranges(number):
                for piece in serving(layers, offset, max(0, min(length, reach - offset))):
                    if piece.layer == depth:
                        key = (depth, piece.number)
                        found[key] = found.get(key, 0) + piece.length
    return found
