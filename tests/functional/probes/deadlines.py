"""TIMEOUT COMMANDS: runs each of COMMANDS, a JSON list of lists of `svctl`'s arguments, with this
--timeout, some at once; prints how each ended, and after how many seconds.

They are children of a process that has Python and all modules loaded, so that the times are those
of the commands, not of starting sixty interpreters on a busy machine.
"""

import importlib
import json
import os
import pkgutil
import signal
import sys
import time

import storvirt
from storvirt import cli

# Loaded once, for all children.
for module in pkgutil.walk_packages(storvirt.__path__, "storvirt."):
    importlib.import_module(module.name)

timeout_s, commands = float(sys.argv[1]), json.loads(sys.argv[2])
# After this long, a command hangs.
LIMIT_S = timeout_s + 30
# More would wait for the processor, and not for Ceph.
AT_ONCE = 12


def start(arguments: list[str]) -> tuple[int, float, int, list[str]]:
    talk = os.memfd_create("talk")
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(talk, 2)
        sys.argv = ["svctl", "--timeout", f"{timeout_s:g}", *arguments]
        cli.main()
    return child, began, talk, arguments


waiting: dict[int, tuple[float, int, list[str]]] = {}
ended = []
while commands or waiting:
    while commands and len(waiting) < AT_ONCE:
        number, began, talk, arguments = start(commands.pop(0))
        waiting[number] = began, talk, arguments
    child, status = os.waitpid(-1, os.WNOHANG)
    if child:
        began, talk, arguments = waiting.pop(child)
        os.lseek(talk, 0, os.SEEK_SET)
        ended.append(
            {
                "arguments": arguments,
                "seconds": time.monotonic() - began,
                "code": os.waitstatus_to_exitcode(status),
                "stderr": os.read(talk, 1 << 20).decode(errors="replace"),
            }
        )
        continue
    for child, (began, _, _) in waiting.items():
        if time.monotonic() - began > LIMIT_S:
            os.kill(child, signal.SIGKILL)
    time.sleep(0.01)
print(json.dumps(ended))
