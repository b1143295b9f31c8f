"""Runs inside a host: calls CNI plugins as a runtime does, and says how long each call took.

Started by `benchmarks.cni`, which gives the work as JSON on stdin and reads the times from
stdout. Calls are made by posix_spawn from a small process, so that the caller's own weight is
not measured.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple


class Plugin(NamedTuple):
    path: str
    configuration: str


class Outcome(NamedTuple):
    seconds: float
    status: int
    output: str


def start(plugin: Plugin, verb: str, container: str, netns: str, output: int) -> int:
    """Start one call; its process id."""
    read, write = os.pipe()
    os.write(write, plugin.configuration.encode())
    os.close(write)
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": f"/run/netns/{netns}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(Path(plugin.path).parent),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    actions = [(os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_DUP2, output, 1)]
    process = os.posix_spawn(plugin.path, [plugin.path], environment, file_actions=actions)
    os.close(read)
    return process


def call(plugin: Plugin, verb: str, container: str, netns: str) -> Outcome:
    """One call, alone."""
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        process = start(plugin, verb, container, netns, output.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        seconds = time.perf_counter() - begun
        output.seek(0)
        return Outcome(seconds, status, output.read().decode())


def at_once(plugin: Plugin, verb: str, names: list[str]) -> tuple[float, list[float], list[str]]:
    """All calls started together: how long until the last was done, each, and what failed."""
    outputs = {name: os.memfd_create(name) for name in names}
    begun = time.perf_counter()
    processes = {start(plugin, verb, name, name, outputs[name]): name for name in names}
    times, failed = [], []
    for _ in names:
        process, status = os.wait()
        times.append(time.perf_counter() - begun)
        if status != 0:
            failed.append(os.pread(outputs[processes[process]], 65536, 0).decode())
    for output in outputs.values():
        os.close(output)
    return max(times), times, failed


def main() -> None:
    work = json.loads(sys.stdin.readline())
    plugins = {name: Plugin(*fields) for name, fields in work["plugins"].items()}
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        plugin = plugins[order["plugin"]]
        if "names" in order:
            answer: Any = at_once(plugin, order["verb"], order["names"])
        else:
            answer = call(plugin, order["verb"], order["name"], order["name"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
