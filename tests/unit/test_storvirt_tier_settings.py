"""Settings of cache pools: what is taken, what is refused, and what they are to Ceph."""

import pytest

from storvirt.tiers.settings import Settings, as_ceph, as_words, changed, check, parse
from storvirt.tiers.steps import HitSet, Mode
from tenancy.errors import InvalidRequest

GIB = 1 << 30


def checked(*words: str, mode: Mode = Mode.WRITEBACK) -> Settings:
    settings = changed(Settings(size=GIB), parse(list(words)))
    check(settings, mode, pg_num=8, capacity_bytes=4 * GIB, cache="fast")
    return settings


def test_words_become_settings_and_come_back_as_words() -> None:
    settings = checked("size=2GiB", "dirty-ratio=0.2", "flush-age=60", "hit-set=bloom")

    assert settings.size == 2 * GIB and settings.dirty_ratio == 0.2 and settings.flush_age == 60
    assert as_words(settings)["hit-set"] == "bloom"
    assert parse([f"{key}={value}" for key, value in as_words(settings).items()]) == {
        key.replace("-", "_"): value if key != "hit-set" else HitSet.BLOOM
        for key, value in as_words(settings).items()
    }


def test_hit_sets_bring_what_they_need_and_take_it_with_them() -> None:
    on = checked("hit-set=bloom", "read-recency=2")
    off = changed(on, {"hit_set": HitSet.NONE})

    assert (on.hit_set_count, on.hit_set_period, on.read_recency) == (4, 1200, 2)
    assert off == Settings(size=GIB)
    assert "hit_set_fpp" not in as_ceph(off) and float(as_ceph(on)["hit_set_fpp"]) == 0.05


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["colour=red"], "is not a setting of a cache"),
        (["dirty-ratio"], "is not a setting of a cache"),
        (["size=1GiB", "size=2GiB"], "set twice"),
        (["size=lots"], "is not a size"),
        (["size=9GiB"], "can hold 4GiB"),
        (["size=0"], "less than one object"),
        (["size=16MiB"], "less than one object"),
        (["objects=4"], "less than one for each"),
        (["objects=-1"], "whole number"),
        (["dirty-ratio=0"], "share above 0"),
        (["dirty-ratio=1.5"], "share above 0"),
        (["dirty-ratio=nan"], "share above 0"),
        (["dirty-ratio=0.7"], "is below dirty-ratio"),
        (["dirty-high-ratio=0.9"], "what is dirty can't be evicted"),
        (["full-ratio=0.3"], "what is dirty can't be evicted"),
        (["flush-age=1h"], "whole number"),
        (["flush-age=999999999999"], "whole number"),
        (["read-recency=1"], "needs hit sets"),
        (["hit-set=bloom", "read-recency=9"], "nothing would ever be promoted"),
        (["hit-set=bloom", "hit-set-count=0"], "above 0"),
        (["hit-set=explicit_hash"], "neither none nor bloom"),
        (["hit-set=bloom", "hit-set-fpp=0.9"], "up to 0.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words: list[str], why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        checked(*words)


def test_a_read_only_cache_keeps_no_hit_sets() -> None:
    with pytest.raises(InvalidRequest, match="keeps no hit sets"):
        checked("hit-set=bloom", mode=Mode.READONLY)
