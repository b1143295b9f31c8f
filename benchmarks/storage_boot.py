"""`make bench BENCH=storage_boot`: many guests boot from clones of an image, ours beside plain RBD.

Both storms are of the same guests on the same host of one lab, from as many fresh clones: ours
through the host's block server with an empty cache, the peer's with QEMU's own RBD driver as
`svctl image attach --direct` gives it. Measured are the seconds until every guest has run its boot
script, and what clients have read from the OSDs meanwhile, as those count it.

How much guests *touch* is taken from a trace of every request that arrives at the block server
(nbdkit's log filter): the union over all guests, in blocks of 1 MiB, which is what the goal counts,
and of 4 KiB, which is what they really read.

`VIRTKIT_STORM=60` says how many guests; the machine's processors emulate them all.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Figure, publish
from lab import waiting
from lab.guest import Guest, build
from lab.host import Host
from lab.lab import Lab
from lab.machine import Machine
from lab.vm import VirtualMachine

GUESTS = int(os.environ.get("VIRTKIT_STORM", "6"))
# So many are being started at once; all go on running until the last one has booted.
STARTING = int(os.environ.get("VIRTKIT_STORM_STARTING", "4"))
BOOT_TIMEOUT_S = 900.0
MEMORY_MIB = 96
TRANSLATIONS_MIB = 24
BLOCKS = {"1 MiB": 1 << 20, "4 KiB": 4096}
# What a kernel needs not do to be a guest; the same for both sides.
KERNEL_ARGUMENTS = (
    "mitigations=off lpj=4000000 cryptomgr.notests audit=0 apparmor=0 nowatchdog"
    " random.trust_cpu=on"
)

_READ = re.compile(r" Read id=\d+ offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What one storm took. CPU seconds are those of the guests' QEMU processes."""

    seconds: float
    read_bytes: int
    booted_s: tuple[float, ...]
    cpu_s: float


def main() -> None:
    publish("storage_boot", figures())


def figures() -> list[Figure]:
    """Boot storms in a lab of their own: ours, and plain RBD clones."""
    guest = build()
    with Lab.up(f"bench-boot-{os.getpid()}", hosts=3, ceph=True, agents=False) as lab:
        svctl(lab.ctl, "pool create vms --pg-num 32")
        svctl(lab.ctl, "tenant create bench")
        svctl(lab.ctl, "namespace create bench --pool vms")
        svctl(lab.ctl, f"golden create base --tenant bench --from {guest.raw}")
        host = lab.host("h1")
        svctl(lab.ctl, f"image clone base ours --count {GUESTS} --tenant bench --tier golden")
        with block_server(host) as trace:
            ours = storm(lab, host, guest, "ours")
            status = json.loads(svctl(host, "golden status -o json"))
            touched = {name: touched_bytes(trace, block) for name, block in BLOCKS.items()}
        svctl(lab.ctl, f"image clone base@golden peer --count {GUESTS} --tenant bench")
        peer = storm(lab, host, guest, "peer", "--direct")
    show(ours, peer, touched, status["servers"][0])
    reads = "bytes read from OSDs, MiB"
    return [
        Figure(
            metric=f"{GUESTS} guests, all booted, s",
            ours=ours.seconds,
            peer=peer.seconds,
            runs=1,
        ),
        Figure(
            metric=f"{GUESTS} guests, {reads}",
            ours=ours.read_bytes / 2**20,
            peer=peer.read_bytes / 2**20,
            runs=1,
        ),
        Figure(
            metric="MiB read / touched 1 MiB blocks",
            ours=ours.read_bytes / 2**20,
            peer=touched["1 MiB"] / 2**20,
            runs=1,
            goal=1.2,
        ),
        Figure(
            metric="MiB read / touched 4 KiB blocks",
            ours=ours.read_bytes / 2**20,
            peer=touched["4 KiB"] / 2**20,
            runs=1,
        ),
    ]


def svctl(host: Host, line: str) -> str:
    return host.run(["svctl", *line.split()], timeout_s=600).stdout


@contextmanager
def block_server(host: Host) -> Iterator[Path]:
    """The tenant's block server on a host, and the file of every request to it."""
    trace = "/run/virtkit/trace.log"
    process = host.popen(
        ["svctl", "golden", "serve", "--tenant", "bench", "--trace", trace],
        start_new_session=True,
    )
    try:
        waiting.until(
            lambda: host.path("/run/virtkit/golden/bench/addresses").exists(),
            what="the block server does not serve",
            timeout_s=60,
        )
        yield host.path(trace)
    finally:
        process.terminate()
        process.wait(30)


def storm(lab: Lab, host: Host, guest: Guest, name: str, *options: str) -> Storm:
    """Boot a guest from each clone, a few starting at a time, and wait for all."""
    machines = []
    for number in range(1, GUESTS + 1):
        clone = f"{name}-{number}"
        attached = json.loads(
            svctl(
                lab.ctl,
                f"image attach {clone} --tenant bench -o json "
                f"--write-dir /run/virtkit/keys {' '.join(options)}",
            )
        )
        machines.append(
            Machine(
                name=clone,
                guest=guest,
                disk=tuple(attached["qemu"]["arguments"]),
                memory_mib=MEMORY_MIB,
                kernel_arguments=KERNEL_ARGUMENTS,
                translations_mib=TRANSLATIONS_MIB,
            )
        )
    keys = Path("/run/virtkit/keys")
    if lab.ctl.path(keys).exists():
        shutil.copytree(lab.ctl.path(keys), host.path(keys), dirs_exist_ok=True)
    before = bytes_read(lab)
    began = time.monotonic()
    booted: dict[str, float] = {}
    with ExitStack() as running:
        waiting_for: list[VirtualMachine] = []
        for machine in machines:
            while len(waiting_for) >= STARTING:
                collect(waiting_for, booted, began)
            place = Path("/run/virtkit/vm") / machine.name
            vm = running.enter_context(VirtualMachine.start(machine, place, place=host))
            waiting_for.append(vm)
        while waiting_for:
            collect(waiting_for, booted, began)
        seconds = time.monotonic() - began
        read = bytes_read(lab) - before
        cpu = sum(cpu_seconds(host, machine.name) for machine in machines)
    return Storm(
        seconds=seconds, read_bytes=read, booted_s=tuple(sorted(booted.values())), cpu_s=cpu
    )


def collect(waiting_for: list[VirtualMachine], booted: dict[str, float], began: float) -> None:
    """Take the guests that have booted off the list; look again a little later if none has."""
    for vm in list(waiting_for):
        if "virtkit: booted" in vm.console:
            booted[vm.name] = time.monotonic() - began
            waiting_for.remove(vm)
        elif not vm.running or time.monotonic() - began > BOOT_TIMEOUT_S:
            # It says why, with the end of the console.
            vm.wait_for_boot(0.1)
    time.sleep(0.05)


def bytes_read(lab: Lab) -> int:
    """What clients have read from all OSDs since those were started."""
    total = 0
    for number in range(len(lab.hosts)):
        answer = lab.ctl.run(["ceph", "tell", f"osd.{number}", "perf", "dump", "osd"]).stdout
        total += json.loads(answer)["osd"]["op_r_out_bytes"]
    return total


def cpu_seconds(host: Host, machine: str) -> float:
    """What a guest's QEMU has used so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    for status in host.path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"-name\0{machine}\0".encode() in status.read_bytes():
                fields = (status.parent / "stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / ticks
        except OSError:
            continue
    return 0.0


def touched_bytes(trace: Path, block: int) -> int:
    """The union of what was read, in whole blocks."""
    touched: set[int] = set()
    for line in trace.read_text().splitlines():
        if found := _READ.search(line):
            offset, count = int(found[1], 16), int(found[2], 16)
            touched.update(range(offset // block, (offset + count - 1) // block + 1))
    return len(touched) * block


def show(ours: Storm, peer: Storm, touched: dict[str, int], server: dict[str, object]) -> None:
    for name, one in (("ours", ours), ("plain RBD", peer)):
        print(
            f"{name:10} all {len(one.booted_s)} booted after {one.seconds:6.1f} s "
            f"(first {one.booted_s[0]:.1f}), QEMU used {one.cpu_s:.1f} s of processor, "
            f"OSDs read {one.read_bytes / 2**20:.1f} MiB"
        )
    for name, size in touched.items():
        print(f"touched in blocks of {name}: {size / 2**20:.1f} MiB")
    kept: Sequence[str] = (
        *("hits", "misses", "fetched_bytes", "passed_bytes", "fallen_bytes"),
        *("read_bytes", "written_bytes", "composed_objects"),
    )
    print("block server:", {name: server[name] for name in kept}, "\n")


if __name__ == "__main__":
    main()
