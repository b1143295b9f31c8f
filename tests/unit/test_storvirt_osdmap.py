"""From an object's name to its placement group. The functional tests ask Ceph itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storvirt.model import PoolName
from storvirt.placement.hashing import hash_all
from storvirt.placement.osdmap import (
    ActingSet,
    OsdMap,
    PoolMap,
    locate,
    object_hash,
    rjenkins,
    seeds,
    stable_mod,
)
from tenancy.errors import NotFound, Refused


def pool(pg_num: int = 8, *, object_hash: int = 2, read_tier: int | None = None) -> PoolMap:
    acting = tuple(ActingSet(osds=(seed % 3,), primary=seed % 3) for seed in range(pg_num))
    return PoolMap(
        id=7,
        name=PoolName("vms"),
        pg_num=pg_num,
        object_hash=object_hash,
        read_tier=read_tier,
        acting=acting,
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # src/test/common/test_str_map.cc has none; these were asked of `ceph osd map`.
        (b"", 0xBD49D10D),
        (b"foo", 0x7FC1F406),
        (b"rbd_directory", 0x30A98C1C),
    ],
)
def test_the_hash_is_cephs_own(key: bytes, expected: int) -> None:
    assert rjenkins(key) == expected


def test_a_namespace_is_part_of_what_is_hashed() -> None:
    assert object_hash("", "x") == rjenkins(b"x")
    assert object_hash("red", "x") == rjenkins(b"red\x1fx")


@given(keys=st.lists(st.binary(max_size=100), max_size=60))
def test_hashing_many_at_once_gives_what_hashing_each_gives(keys: list[bytes]) -> None:
    assert hash_all(keys) == [rjenkins(key) for key in keys]


@pytest.mark.parametrize("word", [b"\0", b"\xff"])
def test_extreme_words_do_not_spill_into_the_neighbours_lane(word: bytes) -> None:
    keys = [word * length for length in range(70)] * 20 + [b"between"] * 2000

    assert hash_all(keys) == [rjenkins(key) for key in keys]


@given(value=st.integers(0, 2**32 - 1), count=st.integers(1, 5000))
def test_folding_stays_in_range_and_moves_nothing_needlessly(value: int, count: int) -> None:
    folded = stable_mod(value, count)

    assert 0 <= folded < count
    grown = stable_mod(value, count + 1)
    # One more group takes from exactly one other; all the rest stay.
    assert grown in (folded, count)


@given(name=st.text(max_size=60), pg_num=st.integers(1, 300))
def test_every_name_has_a_group_of_the_pool(name: str, pg_num: int) -> None:
    found = locate(pool(pg_num), "red", name)

    assert found.pg.startswith("7.") and int(found.pg[2:], 16) < pg_num
    assert found.acting == pool(pg_num).acting[int(found.pg[2:], 16)]


def test_a_pool_with_the_old_hash_is_refused_rather_than_misread() -> None:
    with pytest.raises(Refused, match="hashes object names with method 1"):
        locate(pool(object_hash=1), "", "x")
    with pytest.raises(Refused, match="hashes object names with method 1"):
        seeds(pool(object_hash=1), "", ["x"])


def test_reads_go_to_the_cache_that_lies_over_a_pool() -> None:
    cache = pool()
    base = PoolMap(
        id=3, name=PoolName("slow"), pg_num=1, object_hash=2, read_tier=7, acting=cache.acting[:1]
    )
    newest = OsdMap(epoch=1, pools={3: base, 7: cache}, host_of={}, capacity={})

    assert newest.serving(newest.pool("slow")) is cache
    assert newest.serving(cache) is cache
    with pytest.raises(NotFound):
        newest.pool("nowhere")
