"""The ranking of hosts: near the first bytes, but never all on one."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from storvirt.model import PoolName
from storvirt.placement.osdmap import ActingSet, OsdMap, PoolMap, object_hash, stable_mod
from storvirt.placement.ranking import Boot, Locality, locality, options, plan, rank, spread
from storvirt.placement.ranking import at as at_acting

HOSTS = ("h1", "h2", "h3", "h4")


def cluster(*capacity: float) -> OsdMap:
    """One OSD a host, numbered like it."""
    weights = capacity or (1.0,) * 4
    return OsdMap(
        epoch=5,
        pools={},
        host_of={number: HOSTS[number] for number in range(len(weights))},
        capacity={HOSTS[number]: weight for number, weight in enumerate(weights)},
    )


def acting(primary: int | None, *replicas: int) -> ActingSet:
    osds = replicas if primary is None else (primary, *replicas)
    return ActingSet(osds=osds, primary=primary)


def at(primary: int | None, *replicas: int) -> Locality:
    return at_acting(cluster(), acting(primary, *replicas))


def with_pool(*sets: ActingSet, hosts: int = 4) -> OsdMap:
    """Pool 2, whose placement groups have these acting sets."""
    pool = PoolMap(
        id=2,
        name=PoolName("vms"),
        pg_num=len(sets),
        object_hash=2,
        read_tier=None,
        acting=sets,
    )
    return replace(cluster(*(1.0,) * hosts), pools={2: pool})


def test_an_idle_cluster_is_ranked_by_who_holds_the_first_object() -> None:
    ranking = rank(cluster(), at(2, 0, 1), {})

    assert [(one.host, one.role) for one in ranking] == [
        ("h3", "primary"),
        ("h1", "replica"),
        ("h2", "replica"),
        ("h4", "none"),
    ]
    assert ranking[0].reason == "its OSDs are the primaries of all that is read"


def test_a_loaded_primary_gives_way_and_says_why() -> None:
    ranking = rank(cluster(), at(0, 1, 2), {"h1": 12})

    assert ranking[0].host == "h2"
    assert ranking[-1].host == "h1"
    assert "runs 12 guests where its share is 3.0" in ranking[-1].reason


def test_sixty_clones_of_one_image_do_not_pile_up_on_one_host() -> None:
    chosen = Counter(spread(cluster(1.0, 1.0, 1.0), [at(0, 1, 2)] * 60, {}, coming=60))

    assert set(chosen) == {"h1", "h2", "h3"}
    # The primary's host has most, and never more than half as much again as its share.
    assert max(chosen.values()) == chosen["h1"] <= 30


def test_a_group_without_a_primary_is_ranked_by_load_alone() -> None:
    ranking = rank(cluster(), at(None), {"h1": 3})

    assert ranking[0].host == "h2" and {one.role for one in ranking} == {"none"}


def test_a_host_whose_osds_are_down_is_said_to_be() -> None:
    ranking = rank(cluster(0.0, 1.0), at(1), {})

    assert ranking[-1].host == "h1" and "none of its OSDs is up" in ranking[-1].reason


@given(
    primary=st.integers(0, 3),
    guests=st.dictionaries(st.sampled_from(HOSTS), st.integers(0, 500)),
)
def test_every_host_is_ranked_once_and_in_order(primary: int, guests: dict[str, int]) -> None:
    ranking = rank(cluster(), at(primary, (primary + 1) % 4), guests)

    assert sorted(one.host for one in ranking) == list(HOSTS)
    scores = [one.score for one in ranking]
    assert scores == sorted(scores, reverse=True)


@given(
    choices=st.lists(st.permutations(range(4)), max_size=30),
    guests=st.dictionaries(st.sampled_from(HOSTS), st.integers(0, 40)),
    capacity=st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=4, max_size=4).filter(any),
)
def test_spreading_many_chooses_what_ranking_one_by_one_would(
    choices: list[list[int]], guests: dict[str, int], capacity: list[float]
) -> None:
    osdmap = cluster(*capacity)
    wanted = [at(*order[:3]) for order in choices]

    one_by_one, running = [], dict(guests)
    for left, local in enumerate(wanted):
        best = rank(osdmap, local, running, coming=len(wanted) - left)
        # Rounded scores hide which is better by a hair.
        ties = {one.host for one in best if best[0].score - one.score < 0.002}
        found = spread(osdmap, [local], running, coming=len(wanted) - left)[0]
        assert found in ties
        one_by_one.append(found)
        running[found] = running.get(found, 0) + 1

    assert list(spread(osdmap, wanted, guests, coming=len(wanted))) == one_by_one


def test_reads_are_shared_out_to_the_hosts_that_lead_and_hold_their_groups() -> None:
    osdmap = with_pool(acting(0, 1), acting(2, 1), acting(None))

    found = locality(osdmap, {(2, 0): 3.0, (2, 1): 1.0, (2, 2): 4.0})

    assert found.led == {"h1": 0.375, "h2": 0.0, "h3": 0.125, "h4": 0.0}
    assert found.held == {"h1": 0.375, "h2": 0.5, "h3": 0.125, "h4": 0.0}


def test_the_host_that_leads_most_of_the_bytes_comes_before_the_one_that_leads_one_object() -> None:
    osdmap = with_pool(acting(0, 1, 2), acting(1, 0, 2), acting(1, 2, 0))

    ranking = rank(osdmap, locality(osdmap, dict.fromkeys([(2, 0), (2, 1), (2, 2)], 1.0)), {})

    assert [(one.host, one.local) for one in ranking[:2]] == [("h2", 0.6667), ("h1", 0.3333)]


def test_the_options_say_what_each_would_bring_best_first() -> None:
    osdmap = with_pool(acting(0, 1), acting(1, 0), acting(1, 0), acting(1, 2))
    weights = {(2, 0): 1.0, (2, 1): 4.0, (2, 2): 3.0, (2, 3): 2.0}

    found = options(osdmap, weights, "h1", budget=1)

    assert [(one.action, one.local) for one in found] == [
        ("localize", 0.8),
        ("pin", 0.5),
        ("place", 0.1),
    ]


@given(
    names=st.lists(st.text(max_size=40), max_size=40),
    pg_num=st.integers(1, 20),
    namespace=st.sampled_from(["", "red", "ünï"]),
)
def test_planning_all_at_once_hashes_like_one_at_a_time(
    names: list[str], pg_num: int, namespace: str
) -> None:
    osdmap = with_pool(*(acting(seed % 4, (seed + 1) % 4) for seed in range(pg_num)))
    boots = [Boot(2, namespace, name) for name in names]
    sets = [
        osdmap.pools[2].acting[stable_mod(object_hash(namespace, name), pg_num)] for name in names
    ]

    singly = spread(osdmap, [at_acting(osdmap, one) for one in sets], {}, coming=len(names))

    assert plan(osdmap, boots, {}) == singly
