"""`make bench BENCH=cni`: ADD and DEL beside the reference plugins `bridge` and `host-local`.

Both on one host of a lab of two, where one container is already, call by call in turn, then fifty
at once. Ours also joins the
container to a network that the other host holds a port of: every container of the sequential runs
is pinged from there when ADD has returned; that is not part of the time. How many first pings were
answered is said, for Open vSwitch's userspace datapath loses some when links come and go
(docs/cni.md).
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, percentile, publish
from lab.host import Host
from lab.lab import Lab

PROGRAM = Path("build/virtkit-cni").resolve()
REFERENCE = "/usr/lib/cni/bridge"
ROUNDS = 60
WARM_UP = 5
BURSTS = 5
BURST = 50

OURS = {
    "cniVersion": "1.0.0",
    "name": "virtkit",
    "type": "virtkit",
    "tenant": "bench",
    "network": "front",
}
PEER = {
    "cniVersion": "1.0.0",
    "name": "reference",
    "type": "bridge",
    "bridge": "cni0",
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/16"}]]},
}


class Driver:
    """The process in the host that calls the plugins."""

    def __init__(self, host: Host) -> None:
        self._process = host.popen(
            [sys.executable, "-S", str(Path(__file__).with_name("cni_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        plugins = {
            "ours": (str(PROGRAM), json.dumps(OURS)),
            "peer": (REFERENCE, json.dumps(PEER)),
        }
        self._say({"plugins": plugins})

    def do(self, **order: Any) -> Any:
        self._say(order)
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _say(self, document: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(document) + "\n")
        self._process.stdin.flush()


def main() -> None:
    with Lab.up(f"bench-cni-{os.getpid()}", hosts=2, ceph=False) as lab:
        lab.ctl.run(["nvctl", "tenant", "create", "bench"])
        lab.ctl.run(["nvctl", "network", "create", "front", "-t", "bench", "--cidr", "10.1.0.0/16"])
        here, there = lab.host("h1"), lab.host("h2")
        for host, names in ((here, range(BURST)), (there, range(1))):
            for number in names:
                for side in ("ours", "peer"):
                    host.add_netns(f"{side}-{number}")
        far, driver = Driver(there), Driver(here)
        for side in ("ours", "peer"):
            here.add_netns(f"{side}-resident")
        residents = (
            far.do(plugin="ours", verb="ADD", name="ours-0"),
            driver.do(plugin="ours", verb="ADD", name="ours-resident"),
            driver.do(plugin="peer", verb="ADD", name="peer-resident"),
        )
        assert all(status == 0 for _, status, _ in residents), residents
        figures = [*sequential(driver, there), *bursts(driver)]
        driver.close()
        far.close()
        agent_log = here.path("/var/log/virtkit/agent.log").read_text()
    publish("cni", figures)
    show_steps(agent_log)


def sequential(driver: Driver, there: Host) -> list[Figure]:
    """One call after the other, the two sides in turn."""
    times: dict[tuple[str, str], list[float]] = {}
    answered = 0
    for round_number in range(WARM_UP + ROUNDS):
        for verb in ("ADD", "DEL"):
            for side in ("ours", "peer"):
                seconds, status, output = driver.do(plugin=side, verb=verb, name=f"{side}-0")
                assert status == 0, (side, verb, output)
                if round_number >= WARM_UP:
                    times.setdefault((verb, side), []).append(seconds * 1000)
                if (side, verb) == ("ours", "ADD"):
                    answered += first_ping_is_answered(there, json.loads(output))
    print(f"first pings from the other host answered: {answered} of {WARM_UP + ROUNDS}\n")
    figures = []
    for verb, goal in (("ADD", 1.0), ("DEL", 0.5)):
        for percent in (50, 99):
            ours, peer = (percentile(times[verb, side], percent) for side in ("ours", "peer"))
            figures.append(
                Figure(
                    metric=f"{verb}, one at a time, p{percent}, ms",
                    ours=ours,
                    peer=peer,
                    runs=ROUNDS,
                    goal=goal if percent == 50 else None,
                )
            )
    return figures


def first_ping_is_answered(there: Host, result: dict[str, Any]) -> bool:
    """Whether the other host's first ping is answered; the second one must be."""
    address = result["ips"][0]["address"].partition("/")[0]
    for attempt in range(2):
        ping = there.run(["ping", "-c", "1", "-W", "1", address], netns="ours-0", check=False)
        if ping.returncode == 0:
            return attempt == 0
    raise AssertionError(f"{address} does not answer:\n{ping.stdout}")


def bursts(driver: Driver) -> list[Figure]:
    """Fifty calls at once."""
    totals: dict[tuple[str, str], list[float]] = {}
    singles: dict[tuple[str, str], list[float]] = {}
    for _ in range(BURSTS):
        for side in ("ours", "peer"):
            names = [f"{side}-{number}" for number in range(BURST)]
            for verb in ("ADD", "DEL"):
                total, each, failed = driver.do(plugin=side, verb=verb, names=names)
                assert not failed, (side, verb, failed[:3])
                totals.setdefault((verb, side), []).append(total * 1000)
                singles.setdefault((verb, side), []).extend(one * 1000 for one in each)
    figures = []
    for verb in ("ADD", "DEL"):
        figures.append(
            Figure(
                metric=f"{verb}, {BURST} at once, all done, ms",
                ours=percentile(totals[verb, "ours"], 50),
                peer=percentile(totals[verb, "peer"], 50),
                runs=BURSTS,
                goal=1.0 if verb == "ADD" else None,
            )
        )
        figures += [
            Figure(
                metric=f"{verb}, {BURST} at once, p{percent}, ms",
                ours=percentile(singles[verb, "ours"], percent),
                peer=percentile(singles[verb, "peer"], percent),
                runs=BURSTS * BURST,
            )
            for percent in (50, 99)
        ]
    return figures


def show_steps(agent_log: str) -> None:
    """Where the time of an ADD goes, from what the agent notes of each."""
    steps: dict[str, list[float]] = {}
    for line in agent_log.splitlines()[: 2 * ROUNDS * 4]:
        if " attached " in line and "ms={" in line:
            passed = line.partition("ms=")[2].partition("}")[0] + "}"
            for step, value in json.loads(passed.replace("'", '"')).items():
                steps.setdefault(step, []).append(value)
    print("\nin the agent, ms from the beginning of an ADD until (p50):")
    for step, values in steps.items():
        print(f"  {step:12} {percentile(values[:ROUNDS], 50):7.1f}")


if __name__ == "__main__":
    main()
