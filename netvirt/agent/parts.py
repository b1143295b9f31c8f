"""What the tasks that attach and detach containers share."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from netvirt.agent.knowledge import Knowledge
from netvirt.agent.programmer import Programmer
from netvirt.agent.topology import Topology
from netvirt.backends.link_removal import LinkRemover
from netvirt.backends.vswitch import VSwitch
from netvirt.model import NetworkId
from tenancy.backends.requests import Requests

Key = tuple[str, str]  # container, interface


class Stopwatch:
    """Milliseconds from the beginning to the first time that each step was passed."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.passed: dict[str, float] = {}

    def note(self, step: str) -> None:
        if step not in self.passed:
            self.passed[step] = round((time.monotonic() - self._begun) * 1000, 1)


@dataclass(frozen=True, slots=True)
class Parts:
    """The agent's parts that attaching needs."""

    knowledge: Knowledge
    topology: Topology
    programmer: Programmer
    vswitch: VSwitch
    requests: Requests
    remover: LinkRemover
    # Whether all rows of a network that this host holds have arrived.
    is_complete: Callable[[NetworkId], bool]
