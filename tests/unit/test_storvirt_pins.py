"""Which groups are pinned, which are left alone, and what is made of pins later."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storvirt.model import PoolName
from storvirt.placement.osdmap import ActingSet, OsdMap, PoolMap, Upmap
from storvirt.placement.pins import (
    Choice,
    Method,
    Pin,
    Standing,
    choose,
    group_of,
    method_for,
    most_led,
    pg_name,
    standing,
    touched,
)

HOSTS = {0: "h1", 1: "h2", 2: "h3"}


def acting(*osds: int) -> ActingSet:
    return ActingSet(osds=osds, primary=osds[0] if osds else None)


def cluster(*sets: ActingSet, replicated: bool = True) -> OsdMap:
    pool = PoolMap(
        id=2,
        name=PoolName("vms"),
        pg_num=len(sets),
        object_hash=2,
        read_tier=None,
        acting=sets,
        replicated=replicated,
        up=sets,
    )
    return OsdMap(
        epoch=9, pools={2: pool}, host_of=HOSTS, capacity=dict.fromkeys(HOSTS.values(), 1.0)
    )


def chosen(osdmap: OsdMap, weights: dict[int, float], host: str, budget: int = 8) -> Choice:
    return choose(
        osdmap,
        {(2, seed): weight for seed, weight in weights.items()},
        host,
        budget=budget,
        taken={},
        method=Method.UPMAP,
    )


def with_upmap(osdmap: OsdMap, pin: Pin, upmap: Upmap | None, now: ActingSet) -> OsdMap:
    sets = list(osdmap.pools[2].acting)
    sets[pin.group[1]] = now
    pool = replace(osdmap.pools[2], acting=tuple(sets), up=tuple(sets))
    return replace(osdmap, pools={2: pool}, upmaps={pin.group: upmap} if upmap else {})


SIX = (
    acting(1, 0, 2),
    acting(2, 1, 0),
    acting(0, 1, 2),
    acting(1, 2, 0),
    acting(2, 0, 1),
    acting(1, 0, 2),
)


def test_the_heaviest_groups_that_the_host_follows_are_pinned_first_in_its_budget() -> None:
    found = chosen(cluster(*SIX), {0: 1.0, 1: 5.0, 2: 9.0, 3: 3.0}, "h1", budget=1)

    assert [(pin.group, pin.wanted, pin.before) for pin in found.pins] == [
        ((2, 1), (0, 2, 1), (2, 1, 0))
    ]
    assert found.left_out == dict.fromkeys([(2, 3), (2, 0)], "the budget is used up")
    assert found.shares[(2, 1)] == 5 / 18


def test_a_host_is_not_made_to_lead_much_more_than_its_share() -> None:
    osdmap = cluster(*SIX)
    assert most_led(osdmap, 2, "h1") == 3

    found = chosen(osdmap, dict.fromkeys(range(6), 1.0), "h1", budget=6)

    assert len(found.pins) == 2
    assert set(found.left_out.values()) == {"h1 would lead more than 3 of the 6 groups of vms"}


def test_what_can_not_be_pinned_is_left_out_with_the_reason() -> None:
    osdmap = cluster(acting(1, 2), acting(1, 0), acting(1, 0))
    moving = replace(osdmap.pools[2], up=(acting(1, 2), acting(1, 0), acting(2, 0)))
    osdmap = replace(osdmap, pools={2: moving})

    found = choose(
        osdmap,
        {(2, 0): 3.0, (2, 1): 2.0, (2, 2): 1.0},
        "h1",
        budget=8,
        taken={(2, 1): "it is pinned to h3"},
        method=Method.UPMAP,
    )

    assert found.pins == ()
    assert found.left_out == {
        (2, 0): "h1 has no replica of it, and data is never moved",
        (2, 1): "it is pinned to h3",
        (2, 2): "its data is moving now",
    }


def test_an_erasure_coded_group_is_never_pinned() -> None:
    found = chosen(cluster(*SIX, replicated=False), {0: 1.0}, "h1")

    assert found.pins == () and found.left_out == {(2, 0): "pool vms is erasure-coded"}


@given(
    orders=st.lists(st.permutations(range(3)), min_size=1, max_size=40),
    weights=st.dictionaries(st.integers(0, 39), st.floats(0.1, 100), min_size=1),
    host=st.sampled_from(list(HOSTS.values())),
    budget=st.integers(1, 50),
)
def test_a_choice_never_moves_data_nor_overloads_nor_exceeds_its_budget(
    orders: list[list[int]], weights: dict[int, float], host: str, budget: int
) -> None:
    osdmap = cluster(*(acting(*order) for order in orders))
    weights = {seed: w for seed, w in weights.items() if seed < len(orders)} or {0: 1.0}

    found = chosen(osdmap, weights, host, budget)

    assert len(found.pins) <= budget
    for pin in found.pins:
        assert sorted(pin.wanted) == sorted(pin.before)
        assert HOSTS[pin.wanted[0]] == host != HOSTS[pin.before[0]]
    led = sum(HOSTS[order[0]] == host for order in orders)
    assert len(found.pins) == 0 or led + len(found.pins) <= most_led(osdmap, 2, host)
    asked = {(2, seed) for seed in weights}
    there = {group for group in asked if HOSTS[orders[group[1]][0]] == host}
    assert {pin.group for pin in found.pins} | set(found.left_out) == asked - there


def test_a_pin_stands_until_its_entry_or_its_osds_are_others() -> None:
    osdmap = cluster(*SIX)
    (pin,) = chosen(osdmap, {0: 1.0}, "h1").pins
    ours, other = Upmap(osds=pin.wanted), Upmap(osds=(2, 1, 0))

    def now(upmap: Upmap | None, *osds: int) -> Standing:
        return standing(with_upmap(osdmap, pin, upmap, acting(*osds)), pin)

    assert now(ours, 0, 1, 2) is Standing.ACTIVE
    # Its OSD is down: another leads for a while, and the entry stays.
    assert now(ours, 1, 2) is Standing.ACTIVE
    assert now(other, 2, 1, 0) is Standing.CHANGED
    assert now(None, 1, 0, 2) is Standing.MISSING
    # Ceph drops the entry when one of its OSDs is out.
    assert now(None, 1, 0, 3) is Standing.STALE
    smaller = replace(osdmap.pools[2], pg_num=0, acting=(), up=())
    assert standing(replace(osdmap, pools={2: smaller}), pin) is Standing.STALE
    assert standing(replace(osdmap, pools={}), pin) is Standing.STALE


def test_what_stood_in_the_map_before_is_kept_to_be_put_back() -> None:
    osdmap = replace(cluster(*SIX), upmaps={(2, 0): Upmap(osds=(1, 0, 2))})

    (pin,) = chosen(osdmap, {0: 1.0}, "h1").pins

    assert pin.previous == (1, 0, 2)
    assert standing(osdmap, pin) is Standing.MISSING


def test_on_newer_clusters_the_primary_alone_is_written() -> None:
    osdmap = cluster(*SIX)
    (pin,) = choose(
        osdmap, {(2, 0): 1.0}, "h1", budget=1, taken={}, method=Method.UPMAP_PRIMARY
    ).pins

    written = with_upmap(osdmap, pin, Upmap(primary=0), acting(0, 1, 2))
    assert standing(written, pin) is Standing.ACTIVE
    assert standing(with_upmap(osdmap, pin, Upmap(primary=2), acting(2, 1, 0)), pin) is (
        Standing.CHANGED
    )


@pytest.mark.parametrize(
    ("release", "clients", "method"),
    [
        ("pacific", "luminous", Method.UPMAP),
        ("reef", "luminous", Method.UPMAP),
        ("reef", "reef", Method.UPMAP_PRIMARY),
        ("squid", "reef", Method.UPMAP_PRIMARY),
    ],
)
def test_the_method_follows_from_what_cluster_and_clients_understand(
    release: str, clients: str, method: Method
) -> None:
    assert method_for(release, clients) is method


def test_how_much_of_an_image_is_touched() -> None:
    weights = {(2, 0): 1.0, (2, 1): 3.0}

    assert touched({(2, 1), (2, 7)}, weights) == 0.75
    assert touched({(2, 0)}, {}) == 0.0


def test_groups_are_named_as_ceph_names_them() -> None:
    assert pg_name((2, 31)) == "2.1f" and group_of("2.1f") == (2, 31)
