"""Work that takes several turns of the agent's loop, written as one generator from top to bottom.

A task yields whenever it has to wait, and is resumed at every turn: it looks again whether what
it waits for is there. Tasks with one key run one after the other, those with different keys side
by side. A task whose time is over is told so by an exception where it waits, and may then undo
what it did; a second limit ends one that can't even do that.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field

from tenancy.errors import BackendUnavailable, VirtkitError

Work = Generator[None, None, None]

# How long a task may take to undo what it did when its time is over.
UNDO_S = 8.0


class TimedOut(BackendUnavailable):
    """A task did not come to its end in time."""


@dataclass(slots=True)
class Task:
    """One task; `cancel` makes it undo what it did, at the next turn."""

    work: Work
    what: str
    timeout_s: float
    deadline: float | None = None
    told: bool = False
    cancelled: VirtkitError | None = None

    def cancel(self, reason: VirtkitError) -> None:
        self.cancelled = reason


@dataclass(slots=True)
class Tasks:
    """The tasks under way. `on_error` hears of errors that a task let out."""

    on_error: Callable[[str, VirtkitError], None]
    _queues: dict[Hashable, deque[Task]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def start(self, key: Hashable, what: str, work: Work, timeout_s: float) -> Task:
        """Run `work` behind everything with the same key. Its time counts from its own start."""
        task = Task(work, what, timeout_s)
        self._queues.setdefault(key, deque()).append(task)
        return task

    def busy(self, key: Hashable) -> bool:
        return key in self._queues

    def step(self) -> bool:
        """Resume every task that is at the head of its queue; True if one has ended."""
        ended = False
        for key in list(self._queues):
            queue = self._queues[key]
            while queue and self._resume(queue[0]):
                queue.popleft()
                ended = True
            if not queue:
                del self._queues[key]
        return ended

    def close(self) -> None:
        """End all tasks where they are; they can't wait for anything any more."""
        for queue in self._queues.values():
            for task in queue:
                task.work.close()
        self._queues.clear()

    def _resume(self, task: Task) -> bool:
        """Go on with a task as far as it gets; True when it has ended."""
        now = time.monotonic()
        if task.deadline is None:
            task.deadline = now + task.timeout_s
        try:
            reason = None if task.told else task.cancelled
            if reason is None and now < task.deadline:
                next(task.work)
                return False
            if task.told:
                task.work.close()
                raise TimedOut(f"{task.what}: not undone within {UNDO_S:g} s.")
            task.told, task.deadline = True, now + UNDO_S
            task.work.throw(
                reason or TimedOut(f"{task.what}: not done within {task.timeout_s:g} s.")
            )
        except StopIteration:
            return True
        except VirtkitError as error:
            self.on_error(task.what, error)
            return True
        return False
