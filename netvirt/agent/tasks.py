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
UNDO_S = 10.0


class TimedOut(BackendUnavailable):
    """A task did not come to its end in time."""


@dataclass(slots=True)
class _Task:
    work: Work
    what: str
    timeout_s: float
    deadline: float | None = None
    told: bool = False


@dataclass(slots=True)
class Tasks:
    """The tasks under way. `on_error` hears of errors that a task let out."""

    on_error: Callable[[str, VirtkitError], None]
    _queues: dict[Hashable, deque[_Task]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def start(self, key: Hashable, what: str, work: Work, timeout_s: float) -> None:
        """Run `work` behind everything with the same key. Its time counts from its own start."""
        self._queues.setdefault(key, deque()).append(_Task(work, what, timeout_s))

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

    def next_deadline(self) -> float | None:
        """When, on the monotonic clock, the first task's time is over."""
        heads = (queue[0].deadline for queue in self._queues.values())
        return min((deadline for deadline in heads if deadline is not None), default=None)

    def _resume(self, task: _Task) -> bool:
        """Go on with a task as far as it gets; True when it has ended."""
        now = time.monotonic()
        if task.deadline is None:
            task.deadline = now + task.timeout_s
        try:
            if now < task.deadline:
                next(task.work)
                return False
            if task.told:
                task.work.close()
                raise TimedOut(f"{task.what}: not undone within {UNDO_S:g} s.")
            task.told, task.deadline = True, now + UNDO_S
            task.work.throw(TimedOut(f"{task.what}: not done within {task.timeout_s:g} s."))
        except StopIteration:
            return True
        except VirtkitError as error:
            self.on_error(task.what, error)
            return True
        return False
