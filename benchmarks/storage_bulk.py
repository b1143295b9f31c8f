"""`make bench BENCH=storage_bulk`: many images at once beside the `rbd` command, call by call.

One lab of three hosts with an OSD each. Every figure is milliseconds for one image, so that runs of
different length compare: ours is one command for COUNT images, its start included; the peer's is
the mean of some calls of `rbd`, one for each image, in the same run. The refusal by quota is
measured in one process, without its start, and stands beside the 5 ms that are promised.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import Figure, publish
from lab.host import Host
from lab.lab import Lab

COUNT = int(os.environ.get("VIRTKIT_BENCH_COUNT", "1000"))
CALLS = 100
PROMISED_MS = 5.0
TIMEOUT_S = 1200.0
DRIVER = Path(__file__).resolve().with_name("storage_bulk_driver.py")


def figures() -> list[Figure]:
    """Clone, create, snapshot and delete, ours and the peer's, and the refusal by quota."""
    with Lab.up(f"bench-storage-{os.getpid()}", hosts=3, ceph=True) as lab:
        return measure(lab.ctl)


def measure(ctl: Host) -> list[Figure]:
    """The figures, in a lab that is up and has no pool `bulk`."""

    def svctl(*arguments: str) -> None:
        ctl.run(["svctl", *arguments], timeout_s=TIMEOUT_S)

    def rbd(*arguments: str) -> None:
        ctl.run(["rbd", *arguments], timeout_s=TIMEOUT_S)

    svctl("pool", "create", "bulk", "--pg-num", "32")
    svctl("tenant", "create", "bench", "--quota", "images=5000", "--quota", "bytes=unlimited")
    svctl("namespace", "create", "bench", "--pool", "bulk")
    svctl("image", "create", "golden", "--tenant", "bench", "--size", "1GiB")
    svctl("snapshot", "create", "golden@base", "--tenant", "bench", "--protect")
    mine = ("--tenant", "bench")
    place = "bulk/bench"
    parent = f"{place}/golden@base"

    found = []

    def compare(metric: str, ours: Callable[[], None], peer: Callable[[int], None]) -> None:
        began = time.monotonic()
        ours()
        own_ms = (time.monotonic() - began) * 1000 / COUNT
        began = time.monotonic()
        for number in range(CALLS):
            peer(number)
        peer_ms = (time.monotonic() - began) * 1000 / CALLS
        found.append(Figure(metric=metric, ours=own_ms, peer=peer_ms, runs=COUNT, goal=0.25))

    compare(
        "clone_ms",
        lambda: svctl("image", "clone", "golden@base", "web", "--count", str(COUNT), *mine),
        lambda n: rbd("clone", parent, f"{place}/peer-{n}", "--rbd-default-clone-format=2"),
    )
    compare(
        "create_ms",
        lambda: svctl("image", "create", "new", "--count", str(COUNT), "--size", "1GiB", *mine),
        lambda n: rbd("create", "--size", "1G", f"{place}/empty-{n}"),
    )
    svctl("image", "delete", "new", "--count", str(COUNT), *mine, "--yes")
    compare(
        "snapshot_ms",
        lambda: svctl("snapshot", "create", "--all", "--name", "nightly", *mine),
        lambda n: rbd("snap", "create", "--no-progress", f"{place}/peer-{n}@nightly"),
    )
    compare(
        "snapshot_delete_ms",
        lambda: svctl("snapshot", "delete", "--all", "--name", "nightly", *mine, "--yes"),
        lambda n: rbd("snap", "rm", "--no-progress", f"{place}/peer-{n}@nightly"),
    )
    compare(
        "delete_ms",
        lambda: svctl("image", "delete", "web", "--count", str(COUNT), *mine, "--yes"),
        lambda n: rbd("rm", "--no-progress", f"{place}/peer-{n}"),
    )
    done = ctl.run(
        [sys.executable, str(DRIVER), "bench"],
        environment={"PYTHONPATH": str(DRIVER.parents[1])},
        timeout_s=TIMEOUT_S,
    )
    refusal = json.loads(done.stdout)
    found.append(
        Figure(
            metric="quota_refusal_p95_ms_of_5",
            ours=refusal["p95_ms"],
            peer=PROMISED_MS,
            runs=refusal["runs"],
            goal=1.0,
        )
    )
    return found


if __name__ == "__main__":
    publish("storage_bulk", figures())
