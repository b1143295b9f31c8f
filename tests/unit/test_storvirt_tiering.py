"""The order in which tiers come and go, played against a model of what Ceph does to the bytes."""

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from storvirt.tiering import Step, Tier, next_setup, next_teardown

NONE = Tier(
    base="slow", cache="fast", related=False, mode="none", overlay=False, objects=0, closed=False
)


@dataclass
class Ceph:
    """As careless as the real one: every step is obeyed, and bytes go where they go."""

    tier: Tier = NONE
    limited: bool = False
    base: set[int] = field(default_factory=set)
    cache: set[int] = field(default_factory=set)

    def write(self, number: int) -> bool:
        """Whether the write was acknowledged."""
        if self.tier.closed:
            return False
        cached = self.tier.overlay and self.tier.mode == "writeback"
        (self.cache if cached else self.base).add(number)
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
            case Step.LAY:
                self._set(overlay=True)
            case Step.PROXY:
                self._set(mode="proxy")
            case Step.DRAIN:
                self.base |= self.cache
                self.cache.clear()
            case Step.CLOSE:
                self._set(closed=True)
            case Step.OPEN:
                self._set(closed=False)
            case Step.UNLAY:
                self._set(overlay=False)
            case Step.REMOVE:
                # What is still in the cache is dropped, and nothing is said.
                self.cache.clear()
                self._set(related=False, mode="none")
        self._count()

    def _set(self, **changes: object) -> None:
        self.tier = replace(self.tier, **changes)  # type: ignore[arg-type]

    def _count(self) -> None:
        self.tier = replace(self.tier, objects=len(self.cache))


def step_up(ceph: Ceph) -> bool:
    step = next_setup(ceph.tier, limited=ceph.limited)
    if step:
        ceph.obey(step)
    return step is not None


def step_down(ceph: Ceph) -> bool:
    step = next_teardown(ceph.tier)
    if step:
        ceph.obey(step)
    return step is not None


def test_a_tier_is_limited_before_clients_are_led_to_it() -> None:
    ceph = Ceph()
    steps = []
    while step := next_setup(ceph.tier, limited=ceph.limited):
        steps.append(step)
        ceph.obey(step)

    assert steps == [Step.ADD, Step.LIMIT, Step.WRITEBACK, Step.LAY]


def test_a_tier_with_bytes_is_drained_before_it_is_parted() -> None:
    ceph = Ceph()
    while step_up(ceph):
        pass
    ceph.write(1)
    steps = []
    while step := next_teardown(ceph.tier):
        steps.append(step)
        ceph.obey(step)

    assert steps == [
        Step.PROXY,
        Step.DRAIN,
        Step.CLOSE,
        Step.UNLAY,
        Step.REMOVE,
        Step.OPEN,
    ]
    assert ceph.base == {1}


@given(st.lists(st.sampled_from(["up", "down", "write"]), max_size=60))
def test_however_set_up_and_teardown_are_interrupted_nothing_written_is_lost(
    acts: list[str],
) -> None:
    ceph = Ceph()
    acknowledged = set()
    for number, act in enumerate(acts):
        if act == "up":
            step_up(ceph)
        elif act == "down":
            step_down(ceph)
        elif ceph.write(number):
            acknowledged.add(number)
    while step_down(ceph):
        pass

    assert ceph.base == acknowledged
    assert ceph.tier == NONE
