"""Random reads, writes, zeros and trims through a host's block server, against a model of the disk.

usage: golden_mix.py SOCKET EXPORT ORIGINAL STEPS SEED [REPORT]

Four connections work at once, each on blocks of its own (in turns of 192 KiB, so that they meet in
objects). Writes REPORT after a quarter of the steps and waits until it is gone, so that others can
do something to the image meanwhile. Prints the SHA-256 of what the disk must hold.
"""

import hashlib
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbd

LANES = 4
STRIPE_BYTES = 192 << 10


class Lane:
    """One connection with the blocks that only it writes."""

    def __init__(self, socket: str, export: str, number: int, disk: bytearray, seed: int) -> None:
        self.random = random.Random(f"{seed} {number}")
        self.number = number
        self.disk = disk
        self.handle = nbd.NBD()
        self.handle.set_export_name(export)
        self.handle.connect_unix(socket)

    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        stripes = len(self.disk) // STRIPE_BYTES
        stripe = self.random.randrange(self.number, stripes, LANES)
        offset = stripe * STRIPE_BYTES
        length = self.random.choice((512, 1024, 4096, 12288, 65536, STRIPE_BYTES))
        offset += self.random.randrange(0, STRIPE_BYTES - length + 1, 512)
        what = self.random.choice(("read", "read", "write", "write", "zero", "trim", "flush"))
        there = slice(offset, offset + length)
        if what == "write":
            data = self.random.randbytes(length)
            self.handle.pwrite(data, offset, self.random.choice((0, nbd.CMD_FLAG_FUA)))
            self.disk[there] = data
        elif what == "zero":
            self.handle.zero(length, offset)
            self.disk[there] = bytes(length)
        elif what == "trim":
            self.handle.trim(length, offset)
            self.take_over(offset, length)
        elif what == "flush":
            self.handle.flush()
        found = self.handle.pread(length, offset)
        assert bytes(found) == self.disk[there], f"{what} of {length} at {offset}"

    def take_over(self, offset: int, length: int) -> None:
        """A trim may leave data or make zeros of it, sector by sector, and nothing else."""
        found = self.handle.pread(length, offset)
        for at in range(0, length, 512):
            sector = bytes(found[at : at + 512])
            kept = bytes(self.disk[offset + at : offset + at + 512])
            assert sector in (kept, bytes(512)), f"trim at {offset + at}"
            self.disk[offset + at : offset + at + 512] = sector


def main() -> None:
    socket, export, original, steps, seed, *report = sys.argv[1:]
    disk = bytearray(Path(original).read_bytes())
    lanes = [Lane(socket, export, number, disk, int(seed)) for number in range(LANES)]
    for part in range(4):
        with ThreadPoolExecutor(LANES) as pool:
            list(pool.map(lambda lane: lane.work(int(steps) // LANES // 4), lanes))
        if report and part == 0:
            Path(report[0]).write_text(hashlib.sha256(disk).hexdigest())
            while Path(report[0]).exists():
                time.sleep(0.05)
    for at in range(0, len(disk), 1 << 20):
        length = min(1 << 20, len(disk) - at)
        assert bytes(lanes[0].handle.pread(length, at)) == disk[at : at + length], at
    for lane in lanes:
        lane.handle.shutdown()
    print(json.dumps(hashlib.sha256(disk).hexdigest()))


if __name__ == "__main__":
    main()
