"""A command that is repeated until it is told to end: each round is a process of its own.

So each has a deadline, new connections and an end of its own, and what goes wrong in one is over
with it. The command itself must be one that can be killed anywhere and run again.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from tenancy.cli import Session
from tenancy.errors import InvalidRequest

SHORTEST_S = 1


def repeat(chosen: Session, arguments: Sequence[str], every_s: int) -> NoReturn:
    """Run `svctl ARGUMENTS` now and every so many seconds after it has ended."""
    if every_s < SHORTEST_S:
        raise InvalidRequest("--every 0s would never rest. Choose a time, such as 1h.")
    settings = chosen.settings
    command = [
        # A round does not outlive who asked for it.
        *("setpriv", "--pdeathsig", "KILL", sys.executable),
        *("-c", "from storvirt.cli import main; main()"),
        *("--db", settings.db, "--timeout", str(settings.ceph.timeout_s)),
        *arguments,
    ]
    while True:
        # How it ended it has said itself, and the next round tries again.
        subprocess.run(command, check=False)
        time.sleep(every_s)
