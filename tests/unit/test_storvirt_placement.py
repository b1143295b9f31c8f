"""The ranking of hosts: near the first bytes, but never all on one."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from storvirt.model import PoolName
from storvirt.osdmap import ActingSet, ObjectLocation, OsdMap
from storvirt.placement import rank, spread

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


def at(primary: int | None, *replicas: int) -> ObjectLocation:
    osds = replicas if primary is None else (primary, *replicas)
    return ObjectLocation(
        pool=PoolName("vms"), pg="1.a", acting=ActingSet(osds=osds, primary=primary)
    )


def test_an_idle_cluster_is_ranked_by_who_holds_the_first_object() -> None:
    ranking = rank(cluster(), at(2, 0, 1), {})

    assert [(one.host, one.role) for one in ranking] == [
        ("h3", "primary"),
        ("h1", "replica"),
        ("h2", "replica"),
        ("h4", "none"),
    ]
    assert ranking[0].reason == "osd.2 here is the primary of pg 1.a"


def test_a_loaded_primary_gives_way_and_says_why() -> None:
    ranking = rank(cluster(), at(0, 1, 2), {"h1": 12})

    assert ranking[0].host == "h2"
    assert ranking[-1].host == "h1"
    assert "runs 12 guests where its share is 3.0" in ranking[-1].reason


def test_sixty_clones_of_one_image_do_not_pile_up_on_one_host() -> None:
    chosen = Counter(spread(cluster(1.0, 1.0, 1.0), [at(0, 1, 2)] * 60, {}))

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
