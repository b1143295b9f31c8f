"""Which of an image's reads placement is for, as a weight for each placement group. Pure.

`first-object`: the object that answers the image's first byte, and nothing else. `heat`: what a
recorded boot read, part by part. `bytes`: all that the image holds.
"""

from collections.abc import Mapping, Sequence

from storvirt.placement.heat import HeatMap
from storvirt.placement.layout import Layer, first_served, held, serving
from storvirt.placement.osdmap import OsdMap, seeds
from storvirt.placement.ranking import Group, Objective
from tenancy.errors import Refused

# An object of an image: which of its generations, and the object's number there.
ObjectKey = tuple[int, int]


def object_weights(
    image: str, layers: Sequence[Layer], objective: Objective, heat: HeatMap | None
) -> dict[ObjectKey, float]:
    """How much each object counts that reads of the image go to. Raises Refused."""
    if objective is Objective.FIRST_OBJECT:
        return {first_served(layers): 1.0}
    if objective is Objective.BYTES:
        weights: dict[ObjectKey, float] = dict(held(layers))
        if not weights:
            raise Refused(
                f"image {image} holds no bytes yet. Place it by --objective first-object."
            )
        return weights
    if heat is None:
        raise Refused(
            f"image {image} has no heat map, nor has the image it is a clone of. Record one: "
            "svctl heat record, or place it by --objective first-object."
        )
    return heat_weights(image, layers, heat)


def heat_weights(image: str, layers: Sequence[Layer], heat: HeatMap) -> dict[ObjectKey, float]:
    """The recorded reads, by the objects that answer them now. Raises Refused."""
    weights: dict[ObjectKey, float] = {}
    for number, part in heat.parts.items():
        # Reads within a part are not told apart, so they count evenly for all of it that exists.
        pieces = list(serving(layers, number * heat.part_bytes, heat.part_bytes))
        length = sum(piece.length for piece in pieces)
        for piece in pieces:
            key = (piece.layer, piece.number)
            weights[key] = weights.get(key, 0.0) + part.reads * piece.length / length
    if not weights:
        raise Refused(
            f"image {image} has nothing left of what its heat map says is read. "
            "Record it again: svctl heat record."
        )
    return weights


def group_weights(
    osdmap: OsdMap, layers: Sequence[Layer], weights: Mapping[ObjectKey, float]
) -> dict[Group, float]:
    """The weights of objects, summed by placement group: of the cache tier, where one answers."""
    found: dict[Group, float] = {}
    for depth, layer in enumerate(layers):
        numbers = [number for at, number in weights if at == depth]
        if not numbers:
            continue
        pool = osdmap.serving(osdmap.pool(layer.pool))
        names = [layer.object_name(number) for number in numbers]
        for number, seed in zip(numbers, seeds(pool, layer.namespace, names), strict=True):
            group = (pool.id, seed)
            found[group] = found.get(group, 0.0) + weights[depth, number]
    return found
