"""Doing the same to many: what is done, what failed, and what stops everything."""

from collections.abc import Sequence
from threading import get_ident

import pytest

from storvirt.service.parallel import Failure, Step, outcome, run
from tenancy.errors import BackendUnavailable, Refused


class Thing:
    def __init__(self, number: int) -> None:
        self.number = number

    @property
    def name(self) -> str:
        return f"thing-{self.number}"


def things(count: int) -> list[Thing]:
    return [Thing(number) for number in range(count)]


def accept(_done: Sequence[tuple[Thing, object]]) -> list[Failure[Thing]]:
    return []


def test_every_item_takes_every_step_and_is_recorded_by_the_caller() -> None:
    items, seen, recorders = things(50), [], set()

    def record(done: Sequence[tuple[Thing, int]]) -> list[Failure[Thing]]:
        recorders.add(get_ident())
        seen.extend(result for _, result in done)
        return []

    steps: list[Step[Thing]] = [
        Step(work=lambda item: item.number, record=record),
        Step(work=lambda item: 100 + item.number, record=record),
    ]
    ticks: list[tuple[int, int]] = []

    failures = run(items, steps, threads=7, progress=lambda *tick: ticks.append(tick))

    assert failures == [] and recorders == {get_ident()}
    assert sorted(seen) == [*range(50), *range(100, 150)]
    assert ticks[-1] == (50, 50)


def test_what_fails_does_not_keep_the_others_and_goes_no_further() -> None:
    items, named = things(20), []

    def build(item: Thing) -> None:
        if item.number % 5 == 0:
            raise Refused("odd")

    def refuse(done: Sequence[tuple[Thing, object]]) -> list[Failure[Thing]]:
        return [Failure(item=i, error=Refused("lost")) for i, _ in done if i.number == 7]

    steps: list[Step[Thing]] = [
        Step(work=build, record=refuse),
        Step(work=lambda item: named.append(item.number), record=accept),
    ]

    found = outcome(items, run(items, steps), lambda item: item.name, ["there"])

    failed = {name for name, _ in found.failed}
    assert failed == {"thing-0", "thing-5", "thing-10", "thing-15", "thing-7"}
    assert len(found.done) == 15 and set(named) == {int(n.split("-")[1]) for n in found.done}
    assert found.present == ("there",)


@pytest.mark.parametrize("error", [BackendUnavailable("silent"), ZeroDivisionError()])
def test_when_ceph_is_gone_or_we_are_wrong_nothing_new_is_begun(error: Exception) -> None:
    items, begun, kept = things(1000), [], []

    def work(item: Thing) -> int:
        begun.append(item.number)
        if item.number == 3:
            raise error
        return item.number

    def record(done: Sequence[tuple[Thing, int]]) -> list[Failure[Thing]]:
        kept.extend(result for _, result in done)
        return []

    with pytest.raises(type(error)):
        run(items, [Step(work=work, record=record)], threads=4)

    assert len(begun) < len(items)
    assert sorted(kept) == sorted(set(begun) - {3})


def test_nothing_to_do_is_done() -> None:
    assert run([], [Step(work=lambda _item: None, record=accept)]) == []
