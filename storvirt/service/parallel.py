"""Doing the same to many objects at once: Ceph's part in threads, the database's in one.

Ceph answers each request in milliseconds and many at a time, so the work is spread over threads.
The connection to the fabric database is one thread's, and one transaction for many rows costs
little more than for one: what has finished meanwhile is recorded together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, PriorityQueue, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from tenancy.errors import BackendUnavailable, VirtkitError

T = TypeVar("T")

# Beyond this, three OSDs answer no more per second, only later.
THREADS = 32
# Snapshot ids come from the monitors, who agree on all that are asked for about once a second.
SNAPSHOT_THREADS = 96

Progress = Callable[[int, int], None]


def no_progress(_done: int, _total: int) -> None:
    """For callers that don't watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure(Generic[T]):
    """An item that could not be done, and why."""

    item: T
    error: VirtkitError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[T]):
    """One step of every item: `work` runs in some thread, and `record` in the caller's, with what
    `work` returned for each item that has finished meanwhile. `record` returns what it refused.
    """

    work: Callable[[T], Any]
    record: Callable[[Sequence[tuple[T, Any]]], Sequence[Failure[T]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request for many objects, by name. `present` were as asked before."""

    done: tuple[str, ...]
    present: tuple[str, ...] = ()
    failed: tuple[tuple[str, VirtkitError], ...] = ()


def outcome(
    items: Sequence[T],
    failures: Sequence[Failure[T]],
    name: Callable[[T], str],
    present: Sequence[str] = (),
) -> Outcome:
    """What `run` came to, in the order of `items`."""
    lost = {id(failure.item) for failure in failures}
    return Outcome(
        done=tuple(name(item) for item in items if id(item) not in lost),
        present=tuple(present),
        failed=tuple((name(failure.item), failure.error) for failure in failures),
    )


def run(
    items: Sequence[T],
    steps: Sequence[Step[T]],
    *,
    threads: int = THREADS,
    progress: Progress = no_progress,
) -> list[Failure[T]]:
    """Take every item through all steps and return those that failed.

    A failure of one item does not stop the others, unless Ceph or the database is out of reach
    or the program is at fault: then nothing new is begun, what is under way is recorded, and the
    error is raised.
    """
    crew = _Crew(steps, min(threads, len(items)))
    try:
        return _drive(crew, items, steps, progress)
    finally:
        crew.dismiss()


def _drive(
    crew: "_Crew[T]", items: Sequence[T], steps: Sequence[Step[T]], progress: Progress
) -> list[Failure[T]]:
    failures: list[Failure[T]] = []
    fatal: BaseException | None = None
    under_way = ended = 0
    waiting = list(reversed(items))
    while under_way or (waiting and not fatal):
        # No more than is worked on: what is not begun can still be left undone.
        while waiting and not fatal and under_way < crew.size:
            crew.begin(0, waiting.pop())
            under_way += 1
        finished: dict[int, list[tuple[T, Any]]] = {}
        for step, item, outcome in crew.finished():
            under_way -= 1
            if isinstance(outcome, VirtkitError) and not isinstance(outcome, BackendUnavailable):
                failures.append(Failure(item=item, error=outcome))
                ended += 1
            elif isinstance(outcome, BaseException):
                fatal = fatal or outcome
            else:
                finished.setdefault(step, []).append((item, outcome))
        for step, outcomes in finished.items():
            refused = steps[step].record(outcomes)
            failures += refused
            lost = {id(failure.item) for failure in refused}
            passed = [item for item, _ in outcomes if id(item) not in lost]
            ended += len(refused)
            if step + 1 == len(steps):
                ended += len(passed)
            elif not fatal:
                for item in passed:
                    crew.begin(step + 1, item)
                    under_way += 1
        progress(ended, len(items))
    if fatal:
        raise fatal
    return failures


class _Crew(Generic[T]):
    """Threads that take the work that is furthest along first."""

    def __init__(self, steps: Sequence[Step[T]], size: int) -> None:
        self.size = size
        self._steps = steps
        self._jobs: PriorityQueue[tuple[int, int, Any]] = PriorityQueue()
        self._ended: SimpleQueue[tuple[int, T, Any]] = SimpleQueue()
        self._count = 0
        self._threads = [Thread(target=self._work) for _ in range(size)]
        for thread in self._threads:
            thread.start()

    def begin(self, step: int, item: T) -> None:
        self._count += 1
        self._jobs.put((-step, self._count, item))

    def finished(self) -> list[tuple[int, T, Any]]:
        """What has finished since it was asked last; waits for one."""
        found = [self._ended.get()]
        while True:
            try:
                found.append(self._ended.get_nowait())
            except Empty:
                return found

    def dismiss(self) -> None:
        """End the threads, each after what it is at: librados can't be left in mid-call."""
        for _ in self._threads:
            self._jobs.put((-len(self._steps), 0, None))
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            step, _, item = self._jobs.get()
            if -step == len(self._steps):
                return
            outcome: Any
            try:
                outcome = self._steps[-step].work(item)
            except BaseException as error:  # noqa: BLE001 - handed to the calling thread
                outcome = error
            self._ended.put((-step, item, outcome))
