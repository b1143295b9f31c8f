"""Which objects and groups count, by each objective."""

from collections.abc import Iterable

import pytest

from storvirt.model import ImagePath, PoolName, TenantName
from storvirt.placement.heat import Read, collect
from storvirt.placement.layout import Layer, Layout
from storvirt.placement.objectives import group_weights, object_weights
from storvirt.placement.osdmap import ActingSet, OsdMap, PoolMap, locate
from storvirt.placement.ranking import Objective
from tenancy.errors import Refused

FOUR = Layout(object_bytes=4, stripe_unit=4, stripe_count=1)


def layer(name: str, objects: Iterable[int], *, reach_bytes: int = 40, pool: str = "vms") -> Layer:
    return Layer(
        path=ImagePath(pool=PoolName(pool), namespace=TenantName("red"), name=name),
        snapshot=None,
        id=name,
        pool=PoolName(pool),
        namespace="red",
        prefix=f"rbd_data.{name}",
        layout=FOUR,
        reach_bytes=reach_bytes,
        objects=frozenset(objects),
    )


def pool(number: int, name: str, *, read_tier: int | None = None) -> PoolMap:
    sets = tuple(ActingSet(osds=(seed % 3,), primary=seed % 3) for seed in range(16))
    return PoolMap(
        id=number,
        name=PoolName(name),
        pg_num=16,
        object_hash=2,
        read_tier=read_tier,
        acting=sets,
    )


CLONE, PARENT = layer("clone", [1]), layer("parent", [0, 1, 2], reach_bytes=12)
BOTH = (CLONE, PARENT)


def test_the_first_object_is_the_parents_until_the_clone_has_its_own() -> None:
    assert object_weights("x", BOTH, Objective.FIRST_OBJECT, None) == {(1, 0): 1.0}
    own = (layer("clone", [0]), PARENT)
    assert object_weights("x", own, Objective.FIRST_OBJECT, None) == {(0, 0): 1.0}


def test_bytes_are_those_that_reads_can_reach() -> None:
    assert object_weights("x", BOTH, Objective.BYTES, None) == {
        (0, 1): 4.0,
        (1, 0): 4.0,
        (1, 2): 4.0,
    }
    with pytest.raises(Refused, match="holds no bytes yet"):
        object_weights("x", (layer("new", []),), Objective.BYTES, None)


def test_heat_follows_each_part_to_the_generation_that_has_it_now() -> None:
    heat = collect("parent", 4, 0, [Read(0, 4), Read(4, 2), Read(4, 1), Read(8, 1), Read(20, 4)])

    # The last is of bytes that no generation holds any more: it is answered by nobody.
    assert object_weights("x", BOTH, Objective.HEAT, heat) == {
        (1, 0): 1.0,
        (0, 1): 2.0,
        (1, 2): 1.0,
    }


def test_a_heat_map_of_larger_parts_counts_for_all_objects_in_them() -> None:
    heat = collect("parent", 8, 0, [Read(0, 4), Read(0, 4)])

    assert object_weights("x", BOTH, Objective.HEAT, heat) == {(1, 0): 1.0, (0, 1): 1.0}


def test_an_image_without_heat_is_refused_with_what_to_do() -> None:
    with pytest.raises(Refused, match="Record one: svctl heat record"):
        object_weights("x", BOTH, Objective.HEAT, None)
    with pytest.raises(Refused, match="nothing left of what its heat map says"):
        object_weights("x", BOTH, Objective.HEAT, collect("parent", 4, 0, [Read(36, 4)]))


def test_generations_in_different_pools_are_found_in_each_and_behind_its_cache() -> None:
    osdmap = OsdMap(
        epoch=1,
        pools={1: pool(1, "vms"), 2: pool(2, "slow", read_tier=3), 3: pool(3, "cache")},
        host_of={},
        capacity={},
    )
    layers = (CLONE, layer("parent", [0, 2], pool="slow"))

    found = group_weights(osdmap, layers, {(0, 1): 2.0, (1, 0): 3.0, (1, 2): 4.0})

    own = locate(osdmap.pools[1], "red", "rbd_data.clone.0000000000000001").pg
    cached = [
        locate(osdmap.pools[3], "red", f"rbd_data.parent.{number:016x}").pg for number in (0, 2)
    ]
    names = {f"{number}.{seed:x}": weight for (number, seed), weight in found.items()}
    assert cached[0] != cached[1]
    assert names == {own: 2.0, cached[0]: 3.0, cached[1]: 4.0}
