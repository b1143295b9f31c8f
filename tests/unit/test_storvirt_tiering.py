"""The order in which tiers come and go, played against a model of what Ceph does to the bytes."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storvirt.tiers.steps import Access, Mode, Step, Tier, next_setup, next_teardown

NONE = Tier(
    base="slow",
    cache="fast",
    related=False,
    mode="none",
    overlay=False,
    objects=0,
    access=Access.OPEN,
    held=False,
)


@dataclass
class Ceph:
    """As careless as the real one: every step is obeyed, and bytes go where they go.

    A read-only cache is the trap it is: what lies in it is written in it. `waiting` is what
    clients have sent and is not answered.
    """

    tier: Tier = NONE
    limited: bool = False
    base: set[int] = field(default_factory=set)
    cache: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)

    def write(self, number: int) -> bool:
        """Whether the write was acknowledged."""
        if self.tier.access is not Access.OPEN or (self.tier.held and self.tier.overlay):
            return False
        cached = self.tier.overlay and self.tier.mode in ("writeback", "readonly")
        (self.cache if cached else self.base).add(number)
        self._count()
        return True

    def promote(self) -> bool:
        """A client opens an image, which brings its header into the cache, also in proxy mode."""
        if not self.tier.overlay or self.tier.held or self.tier.access is not Access.OPEN:
            return False
        self.cache.add(-1)
        self._count()
        return True

    def obey(self, step: Step) -> None:
        match step:
            case Step.ADD:
                self._set(related=True)
            case Step.LIMIT:
                self.limited = True
            case Step.WRITEBACK:
                self._set(mode="writeback")
            case Step.READONLY:
                assert self.tier.mode != "writeback", "Ceph refuses that"
                self._set(mode="readonly")
            case Step.LAY:
                self._set(overlay=True)
            case Step.PROXY:
                self._set(mode="proxy")
            case Step.DRAIN:
                assert not self.tier.held, "nothing is flushed while it is held"
                self.base |= self.cache
                self.cache.clear()
            case Step.SEAL:
                self._set(access=Access.READ_ONLY)
            case Step.OPEN:
                self._set(access=Access.OPEN)
            case Step.HOLD:
                self._set(held=True)
            case Step.RELEASE:
                self._set(held=False)
            case Step.UNLAY:
                self._set(overlay=False)
            case Step.REMOVE:
                # What is still in the cache is dropped, and nothing is said.
                self.dropped |= self.cache
                self.cache.clear()
                self._set(related=False, mode="none")
        self._count()

    def _set(self, **changes: object) -> None:
        self.tier = replace(self.tier, **changes)  # type: ignore[arg-type]

    def _count(self) -> None:
        self.tier = replace(self.tier, objects=len(self.cache))


def step_up(ceph: Ceph, wanted: Mode = Mode.WRITEBACK) -> Step | None:
    step = next_setup(ceph.tier, wanted, limited=ceph.limited)
    if step:
        ceph.obey(step)
    return step


def step_down(ceph: Ceph, *, can_hold: bool = True) -> Step | None:
    step = next_teardown(ceph.tier, can_hold=can_hold)
    if step:
        ceph.obey(step)
    return step


def all_up(ceph: Ceph, wanted: Mode = Mode.WRITEBACK) -> list[Step]:
    return list(iter(lambda: step_up(ceph, wanted), None))


def all_down(ceph: Ceph, *, can_hold: bool = True) -> list[Step]:
    return list(iter(lambda: step_down(ceph, can_hold=can_hold), None))


def test_a_tier_is_limited_before_clients_are_led_to_it() -> None:
    assert all_up(Ceph()) == [Step.ADD, Step.LIMIT, Step.WRITEBACK, Step.LAY]


def test_writers_are_kept_out_before_a_read_only_cache_is_laid_and_let_in_after_it_is_gone() -> (
    None
):
    ceph = Ceph()

    assert all_up(ceph, Mode.READONLY) == [
        Step.SEAL,
        Step.ADD,
        Step.LIMIT,
        Step.READONLY,
        Step.LAY,
    ]
    assert all_down(ceph) == [
        Step.PROXY,
        Step.HOLD,
        Step.UNLAY,
        Step.REMOVE,
        Step.RELEASE,
        Step.OPEN,
    ]


def test_a_write_back_cache_is_drained_before_it_becomes_read_only() -> None:
    ceph = Ceph()
    all_up(ceph)
    ceph.write(1)

    assert all_up(ceph, Mode.READONLY) == [Step.SEAL, Step.PROXY, Step.DRAIN, Step.READONLY]
    assert ceph.base == {1}


def test_writers_come_back_only_after_the_read_only_mode_has_ended() -> None:
    ceph = Ceph()
    all_up(ceph, Mode.READONLY)

    assert all_up(ceph, Mode.WRITEBACK) == [Step.WRITEBACK, Step.OPEN]


def test_a_tier_with_bytes_is_drained_before_requests_are_held_and_it_is_parted() -> None:
    ceph = Ceph()
    all_up(ceph)
    ceph.write(1)

    assert all_down(ceph) == [
        Step.PROXY,
        Step.DRAIN,
        Step.HOLD,
        Step.UNLAY,
        Step.REMOVE,
        Step.RELEASE,
    ]
    assert ceph.base == {1}


def test_where_requests_cannot_be_held_tenants_only_read_while_it_is_parted() -> None:
    ceph = Ceph()
    all_up(ceph)

    assert all_down(ceph, can_hold=False) == [
        Step.PROXY,
        Step.SEAL,
        Step.UNLAY,
        Step.REMOVE,
        Step.OPEN,
    ]


@pytest.mark.parametrize("can_hold", [True, False])
def test_who_came_in_before_the_door_was_shut_is_let_work(can_hold: bool) -> None:
    ceph = Ceph()
    all_up(ceph)
    ceph.obey(Step.PROXY)
    ceph.promote()
    ceph.obey(Step.HOLD if can_hold else Step.SEAL)

    step = next_teardown(ceph.tier, can_hold=can_hold, stuck=not can_hold)

    assert step is (Step.RELEASE if can_hold else Step.OPEN)


ACTS = st.sampled_from(["writeback", "readonly", "proxy", "down", "write", "open"])


@given(st.lists(ACTS, max_size=80), st.booleans())
def test_however_set_up_change_and_teardown_are_interrupted_nothing_written_is_lost(
    acts: list[str], can_hold: bool
) -> None:
    ceph = Ceph()
    acknowledged = set()
    for number, act in enumerate(acts):
        if act == "down":
            step_down(ceph, can_hold=can_hold)
        elif act == "open":
            ceph.promote()
        elif act != "write":
            step_up(ceph, Mode(act))
        elif ceph.write(number):
            acknowledged.add(number)
        assert not (ceph.tier.mode == "readonly" and ceph.tier.access is Access.OPEN)
    all_down(ceph, can_hold=can_hold)

    assert ceph.base - {-1} == acknowledged
    assert not ceph.dropped
    assert ceph.tier == NONE
