"""What a plan says, for each mode."""

from storvirt.tiers.plan import Plan, plan
from storvirt.tiers.settings import Settings, changed, parse
from storvirt.tiers.steps import Mode


def planned(mode: Mode, *words: str, can_hold: bool = True) -> Plan:
    settings = changed(Settings(size=10 << 30), parse(list(words)))
    return plan(settings, mode, base="slow", cache="fast", replicas=3, can_hold=can_hold)


def test_write_back_without_hit_sets_says_that_the_cache_alone_has_acknowledged_writes() -> None:
    found = planned(Mode.WRITEBACK)

    assert found.first_write == "to the cache"
    assert found.acknowledged_bytes == (
        "in pool fast alone, in 3 copies, until they are flushed to slow"
    )
    assert "up to 10GiB" in found.cost_of_loss and found.dirty_limit_bytes == 10 << 30


def test_write_back_with_hit_sets_says_that_first_writes_go_through() -> None:
    found = planned(Mode.WRITEBACK, "hit-set=bloom", "write-recency=2")

    assert found.first_write.startswith("through the cache to pool slow, until the object is in 2")


def test_read_only_says_that_tenants_cannot_write_and_nothing_is_lost_with_the_cache() -> None:
    found = planned(Mode.READONLY)

    assert "refused by Ceph" in found.first_write
    assert found.cost_of_loss.startswith("no tenant's byte") and found.dirty_limit_bytes == 0
    assert "guests may go on reading" in found.teardown


def test_the_teardown_says_who_notices_it() -> None:
    assert "requests wait a moment" in planned(Mode.WRITEBACK).teardown
    assert "can't open disks" in planned(Mode.WRITEBACK, can_hold=False).teardown
