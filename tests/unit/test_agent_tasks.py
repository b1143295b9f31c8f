"""Tasks of the agent: one after the other or side by side, and how they end."""

import time
from collections.abc import Callable

import pytest

from netvirt.agent import tasks as agent_tasks
from netvirt.agent.tasks import Task, Tasks, TimedOut, Work
from tenancy.errors import BackendUnavailable, Conflict, VirtkitError

PATIENCE_S = 10.0
SHORT_S = 0.05


class World:
    """Tasks, what they noted, and the errors that they let out."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.errors: list[tuple[str, VirtkitError]] = []
        self.tasks = Tasks(on_error=lambda what, error: self.errors.append((what, error)))

    def work(self, name: str, steps: int) -> Work:
        """Work that ends in its own good time."""
        for number in range(steps):
            self.noted.append(f"{name}{number}")
            yield
        self.noted.append(f"{name} done")

    def start(self, key: object, work: Work, timeout_s: float = PATIENCE_S) -> Task:
        return self.tasks.start(key, str(key), work, timeout_s)

    def run(self) -> None:
        """To the end of all that has begun."""
        until(lambda: not self.tasks, self.tasks)

    @property
    def error_types(self) -> list[type[VirtkitError]]:
        return [type(error) for _, error in self.errors]


def until(holds: Callable[[], bool], tasks: Tasks) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it does not come to its end"
        tasks.step()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(agent_tasks, "UNDO_S", SHORT_S)
    return World()


def test_tasks_of_one_key_run_one_after_the_other(world: World) -> None:
    world.start("k", world.work("a", 2))
    world.start("k", world.work("b", 2))

    world.run()

    assert world.noted == ["a0", "a1", "a done", "b0", "b1", "b done"]


def test_tasks_of_different_keys_run_side_by_side(world: World) -> None:
    for key in "ab":
        world.start(key, world.work(key, 2))

    world.run()

    assert world.noted == ["a0", "b0", "a1", "b1", "a done", "b done"]


def test_nothing_runs_before_it_is_its_turn(world: World) -> None:
    world.start("k", world.work("a", 1))
    assert (len(world.tasks), world.noted) == (1, [])
    assert world.tasks.busy("k")
    assert not world.tasks.busy("other")

    assert world.tasks.step() is False
    assert world.tasks.step() is True

    assert not world.tasks.busy("k")
    assert not world.tasks
    assert world.tasks.step() is False


def test_a_task_that_ends_lets_the_next_begin_in_the_same_turn(world: World) -> None:
    world.start("k", world.work("a", 0))
    world.start("k", world.work("b", 1))

    world.tasks.step()

    assert world.noted == ["a done", "b0"]


def test_a_task_may_start_others(world: World) -> None:
    def parent() -> Work:
        for key in ("k", "other"):
            world.start(key, world.work(key, 1))
        world.noted.append("parent")
        yield

    world.start("k", parent())
    world.run()

    assert world.noted == ["parent", "k0", "other0", "k done", "other done"]


def test_an_error_ends_one_task_and_no_other(world: World) -> None:
    def failing() -> Work:
        yield
        raise Conflict("it is taken.")

    world.start("a", failing())
    world.start("a", world.work("a", 1))
    world.start("b", world.work("b", 2))
    world.run()

    assert [(what, str(error)) for what, error in world.errors] == [("a", "it is taken.")]
    assert {"a done", "b done"} <= set(world.noted)


def test_a_fault_is_not_hidden(world: World) -> None:
    def faulty() -> Work:
        yield
        raise AssertionError("a fault")

    world.start("k", faulty())
    world.tasks.step()

    with pytest.raises(AssertionError):
        world.tasks.step()


# Time


def for_ever(world: World, undo: Callable[[], Work] | None = None) -> Work:
    """Work that waits for what never comes, and may undo what it did."""
    try:
        while True:
            yield
    except VirtkitError as error:
        world.noted.append(f"told: {type(error).__name__}")
        if undo is not None:
            yield from undo()
            world.noted.append("undone")
        raise
    finally:
        world.noted.append("over")


def test_a_task_whose_time_is_over_is_told_where_it_waits(world: World) -> None:
    world.start("k", for_ever(world), timeout_s=SHORT_S)
    world.run()

    assert world.noted == ["told: TimedOut", "over"]
    assert world.error_types == [TimedOut]
    assert "k: not done within 0.05 s" in str(world.errors[0][1])


def test_a_task_whose_time_is_over_may_take_some_turns_to_undo_what_it_did(world: World) -> None:
    world.start("k", for_ever(world, lambda: world.work("undo", 3)), timeout_s=SHORT_S)
    world.start("k", world.work("next", 0))
    world.run()

    undone = ["undo0", "undo1", "undo2", "undo done", "undone"]
    assert world.noted == ["told: TimedOut", *undone, "over", "next done"]


def test_an_undo_that_hangs_is_ended(world: World) -> None:
    def hang() -> Work:
        while True:
            yield

    world.start("k", for_ever(world, hang), timeout_s=SHORT_S)
    world.start("k", world.work("next", 0))
    world.run()

    assert world.noted == ["told: TimedOut", "over", "next done"]
    assert world.error_types == [TimedOut]
    assert "not undone" in str(world.errors[0][1])


def test_who_is_told_may_end_well_all_the_same(world: World) -> None:
    def forgiving() -> Work:
        try:
            while True:
                yield
        except TimedOut:
            world.noted.append("told")

    world.start("k", forgiving(), timeout_s=SHORT_S)
    world.run()

    assert (world.noted, world.errors) == (["told"], [])


def test_the_time_counts_from_a_tasks_own_beginning(world: World) -> None:
    def slow() -> Work:
        end = time.monotonic() + 3 * SHORT_S
        while time.monotonic() < end:
            yield

    world.start("k", slow())
    world.start("k", world.work("quick", 0), timeout_s=SHORT_S)
    world.run()

    assert (world.noted, world.errors) == (["quick done"], [])


# Cancelling

GONE = BackendUnavailable("the runtime went away.")


def test_a_cancelled_task_undoes_what_it_did(world: World) -> None:
    task = world.start("k", for_ever(world, lambda: world.work("undo", 1)))
    world.tasks.step()

    task.cancel(GONE)
    world.run()

    assert world.noted == ["told: BackendUnavailable", "undo0", "undo done", "undone", "over"]
    assert world.errors == [("k", GONE)]


def test_cancelling_twice_does_not_disturb_the_undoing(world: World) -> None:
    task = world.start("k", for_ever(world, lambda: world.work("undo", 2)))
    world.tasks.step()
    task.cancel(GONE)
    world.tasks.step()

    task.cancel(Conflict("again."))
    world.run()

    assert world.noted[-3:] == ["undo done", "undone", "over"]
    assert world.errors == [("k", GONE)]


def test_a_cancelled_undo_that_hangs_is_ended(world: World) -> None:
    def hang() -> Work:
        while True:
            yield

    task = world.start("k", for_ever(world, hang))
    world.tasks.step()
    task.cancel(GONE)
    world.run()

    assert world.error_types == [TimedOut]


def test_a_task_that_is_cancelled_before_its_turn_does_nothing(world: World) -> None:
    task = world.start("k", for_ever(world))
    task.cancel(GONE)
    waiting = world.start("j", world.work("first", 2))
    behind = world.start("j", world.work("never", 1))
    behind.cancel(GONE)
    world.run()

    assert waiting.cancelled is None
    assert world.noted == ["first0", "first1", "first done"]
    assert world.errors == [("k", GONE), ("j", GONE)]


def test_a_task_that_has_ended_can_be_cancelled_in_vain(world: World) -> None:
    task = world.start("k", world.work("a", 0))
    world.run()

    task.cancel(GONE)
    world.tasks.step()

    assert world.errors == []


def test_closing_ends_all_tasks_where_they_are(world: World) -> None:
    world.start("a", for_ever(world))
    world.start("a", world.work("never", 1))
    world.start("b", for_ever(world))
    world.tasks.step()

    world.tasks.close()

    assert world.noted == ["over", "over"]
    assert (len(world.tasks), world.errors) == (0, [])
