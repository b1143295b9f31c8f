"""A runtime of containers on one host that is careless, and kills the CNI program now and then.

Started in a host by tests/functional/test_cni_faults.py, with what to do as JSON on stdin. What
came of each call is one line of JSON on stdout, times by the machine's monotonic clock.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
# How long a container that does not answer the first ping may take to.
REACHABLE_S = 30.0


class Storm:
    """Workers that make containers one after the other, each its own."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self._program: str = orders["program"]
        self._configurations: list[dict[str, Any]] = orders["configurations"]
        self._host: str = orders["host"]
        self._far: int = orders["far"]
        self._seed: int = orders["seed"]
        self._left: int = orders["containers"]
        self._workers: int = orders["workers"]
        self._lock = threading.Lock()
        self._number = 0

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._work, args=(worker,)) for worker in range(self._workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, worker: int) -> None:
        chance = random.Random(f"{self._seed} {self._host} {worker}")
        while (number := self._next()) is not None:
            self._live(f"{self._host}-{number}", chance)

    def _next(self) -> int | None:
        with self._lock:
            if self._number == self._left:
                return None
            self._number += 1
            return self._number

    def _live(self, name: str, chance: random.Random) -> None:
        """The life of one container; some live twice under one name, as pods' do not and those
        of podman do."""
        spawn(["ip", "netns", "add", name])
        self._attach(name, chance)
        if chance.random() < 0.08:
            return  # Nobody takes it away: the runtime has forgotten it.
        if chance.random() < 0.15:
            spawn(["ip", "netns", "delete", name])
            self._detach(name, chance)
            return
        self._detach(name, chance)
        if chance.random() < 0.15:
            begun = time.monotonic()
            added = self._call("ADD", name)
            if added["status"] == 0:
                # Long enough for whatever was asked for before to be made up for.
                time.sleep(1.5)
                self._call("CHECK", name, result=added["output"], begun=begun)
            self._detach(name, chance)
        spawn(["ip", "netns", "delete", name])

    def _attach(self, name: str, chance: random.Random) -> None:
        begun = time.monotonic()
        added = self._call("ADD", name, kill=chance.random() < 0.05, chance=chance)
        if added["status"] == 0 and chance.random() < 0.25:
            self._ping(name, added["output"], begun, chance)
        if chance.random() < 0.05:
            self._call("ADD", name, again=True)

    def _detach(self, name: str, chance: random.Random) -> None:
        """As runtimes do: again, until it has worked."""
        while True:
            netns = "" if chance.random() < 0.1 else None
            kill = chance.random() < 0.05
            if self._call("DEL", name, kill=kill, chance=chance, netns=netns)["status"] == 0:
                break
            time.sleep(0.1)
        if chance.random() < 0.1:
            self._call("DEL", name, again=True)

    def _call(
        self,
        verb: str,
        name: str,
        *,
        kill: bool = False,
        chance: random.Random | None = None,
        netns: str | None = None,
        result: str | None = None,
        **notes: Any,
    ) -> dict[str, Any]:
        """One call of the program, which may not live to its end."""
        environment = {
            **ENVIRONMENT,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": f"/run/netns/{name}" if netns is None else netns,
            "CNI_PATH": "/opt/cni/bin",
        }
        # A container's own for as long as it lives.
        document = self._configurations[sum(name.encode()) % len(self._configurations)]
        if result is not None:
            document = {**document, "prevResult": json.loads(result)}
        read, write = os.pipe()
        os.write(write, json.dumps(document).encode())
        os.close(write)
        output = os.memfd_create(name)
        actions = [(os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_DUP2, output, 1)]
        begun = time.monotonic()
        process = os.posix_spawn(self._program, [self._program], environment, file_actions=actions)
        os.close(read)
        if kill and chance is not None:
            time.sleep(chance.choice((0.0, 0.002, 0.01, 0.02, 0.05, 0.1)) * chance.random())
            os.kill(process, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        told = {
            "verb": verb,
            "container": name,
            "begun": begun,
            "ended": time.monotonic(),
            "status": status,
            "output": os.pread(output, 1 << 20, 0).decode(),
            **notes,
        }
        os.close(output)
        tell(told)
        return told

    def _ping(self, name: str, result: str, begun: float, chance: random.Random) -> None:
        """Pings from a container on the other host, at once, and again if none is answered."""
        address = chance.choice(json.loads(result)["ips"])["address"].partition("/")[0]
        inside = f"--net=/proc/self/fd/{self._far}"
        ping = ["nsenter", inside, "ping", "-q", address]
        asked = time.monotonic()
        # Open vSwitch's own datapath reads the routes anew whenever a link of the host changes, and
        # for that moment does not take tunnels for its own: of three packets some may be lost.
        at_once = spawn([*ping, "-c3", "-i0.2", "-W10"]) == 0
        ended = time.monotonic()
        answered = at_once
        while not answered and time.monotonic() < ended + REACHABLE_S:
            answered = spawn([*ping, "-c1", "-W1"]) == 0
        tell(
            {
                "verb": "ping",
                "container": name,
                "address": address,
                "begun": begun,
                "took_s": round(ended - asked, 3),
                "ended": ended,
                "at_once": at_once,
                "answered": answered,
                "after_s": round(time.monotonic() - ended, 1),
            }
        )


def spawn(argv: list[str]) -> int:
    """The exit status of a command that says nothing."""
    program = next(
        str(path)
        for folder in ENVIRONMENT["PATH"].split(":")
        if (path := Path(folder, argv[0])).exists()
    )
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    process = os.posix_spawn(program, argv, ENVIRONMENT, file_actions=null)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def tell(event: dict[str, Any]) -> None:
    # One write a line, so that those of several workers do not mix.
    os.write(1, json.dumps(event).encode() + b"\n")


if __name__ == "__main__":
    Storm(json.loads(sys.stdin.readline())).run()
