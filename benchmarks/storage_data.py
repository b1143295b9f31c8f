"""Disks in and out beside the `rbd` command: seconds for the same work, in the same run.

Ours does more in that time: it takes a snapshot, hashes, and reads back what it wrote. Each figure
is the median of some runs, ours and the peer's in turn, on an image of which a part is filled.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from benchmarks.report import Figure, publish
from lab.host import Host
from lab.lab import Lab

IMAGE_MIB = 2048
FILLED_MIB = 256
CHANGES = 64
RUNS = 3
MIB = 1 << 20


def figures() -> list[Figure]:
    """The figures, on a lab of their own."""
    with (
        Lab.up("bench-storage-data", hosts=3, ceph=True, agents=False) as lab,
        TemporaryDirectory(prefix="bench-storage-data") as directory,
    ):
        return _measured(lab.ctl, Path(directory))


def _measured(ctl: Host, directory: Path) -> list[Figure]:
    for line in (
        "pool create vms --pg-num 32",
        "tenant create bench",
        "namespace create bench --pool vms",
    ):
        _svctl(ctl, *line.split())
    raw = directory / "disk.raw"
    noise = Random(1)
    with raw.open("wb") as file:
        for at in range(0, IMAGE_MIB, IMAGE_MIB // FILLED_MIB):
            file.seek(at * MIB)
            file.write(noise.randbytes(MIB))
        file.truncate(IMAGE_MIB * MIB)
    _svctl(ctl, "image", "import", "disk", "-t", "bench", "--from", str(raw))
    out, stock = directory / "ours.raw", directory / "stock.raw"

    def export() -> None:
        _svctl(ctl, "image", "export", "disk", "-t", "bench", "--to", str(out), "--force")

    def export_stock() -> None:
        stock.unlink(missing_ok=True)
        _run(ctl, "rbd", "export", "--no-progress", "vms/bench/disk", str(stock))

    chain = directory / "chain"
    names = iter(range(1000))

    def backup() -> None:
        _svctl(ctl, "backup", "create", "disk", "-t", "bench", "--to", str(chain))

    def back_up_whole() -> None:
        nonlocal chain
        chain = directory / f"chain-{next(names)}"
        backup()

    peers: list[str] = []

    def diff(since: str | None) -> None:
        name = f"peer-{next(names)}"
        where = f"vms/bench/disk@{name}"
        _run(ctl, "rbd", "snap", "create", "--no-progress", where)
        begin = () if since is None else ("--from-snap", since)
        _run(ctl, "rbd", "export-diff", "--no-progress", *begin, where, str(directory / name))
        peers.append(name)

    def change() -> None:
        kind = ("--io-type", "write", "--io-pattern", "rand", "--io-size", "4K")
        total = ("--io-total", f"{CHANGES * 4}K")
        _run(ctl, "rbd", "bench", *kind, *total, "vms/bench/disk")

    return [
        _both("seconds_export_raw", export, export_stock),
        _both("seconds_full_backup", back_up_whole, lambda: diff(None)),
        _both("seconds_increment", backup, lambda: diff(peers[-1]), before=change),
    ]


def _both(
    metric: str,
    ours: Callable[[], None],
    peer: Callable[[], None],
    before: Callable[[], None] = lambda: None,
) -> Figure:
    took = []
    for _ in range(RUNS):
        before()
        took.append((_timed(ours), _timed(peer)))
    return Figure(
        metric=metric,
        ours=statistics.median(one for one, _ in took),
        peer=statistics.median(other for _, other in took),
        runs=RUNS,
    )


def _timed(work: Callable[[], None]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _svctl(ctl: Host, *arguments: str) -> None:
    _run(ctl, "svctl", *arguments)


def _run(ctl: Host, *command: str) -> None:
    ctl.run(list(command), timeout_s=600)


if __name__ == "__main__":
    publish("storage_data", figures())
