"""OPTIONS (JSON): a random history of a tenant's disks behind a tier that comes and goes, in which
`svctl` and OSDs are killed; and the comparison of every byte with what was acknowledged.

`svctl` runs in children of a process that has loaded it once and has no connection of its own, so
a command costs a fork; a child kills itself at a step's line, or after some milliseconds, as
`kill -9` would. OSDs are on other hosts: whoever started this is asked, by a line of JSON, to
kill or start one, and answers with a line. Ends with a line of JSON, `{"result": ...}`.
"""

import contextlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import rados
import rbd
from cluster import connected

from tests.functional.loss_model import BLOCK, ZERO, Disk, pattern, wrong

MIB_BLOCKS = (1 << 20) // BLOCK


class Svctl:
    """`svctl` in children of a small process; at most one at a time."""

    def __init__(self, settle_s: float) -> None:
        self._socket, other = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            self._socket.close()
            _zygote(other, settle_s)
        other.close()
        self._reader = self._socket.makefile("r")

    def begin(self, arguments: list[str], kill: dict[str, float] | None = None) -> None:
        request = json.dumps({"arguments": arguments, "kill": kill or {}})
        self._socket.sendall(request.encode() + b"\n")

    def runs(self) -> bool:
        return not select.select([self._socket], [], [], 0)[0]

    def end(self) -> tuple[int, str]:
        """The exit code (negative: killed) and the last line of talk."""
        answer = json.loads(self._reader.readline())
        return answer["code"], answer["talk"]

    def __call__(self, *arguments: str, kill: dict[str, float] | None = None) -> tuple[int, str]:
        self.begin(list(arguments), kill)
        return self.end()

    def close(self) -> None:
        self._reader.close()
        self._socket.close()
        os.waitpid(self._pid, 0)


class _Talk:
    """Standard error of a child, which dies at the line that it is told to die at."""

    def __init__(self, talk: int, line: int | None) -> None:
        self._talk, self._left = talk, line

    def write(self, text: str) -> int:
        os.write(self._talk, text.encode())
        if self._left is not None and "\n" in text:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""

    def isatty(self) -> bool:
        return False


def _zygote(requests: socket.socket, settle_s: float) -> None:
    from storvirt import cli
    from storvirt.backends import cluster, images, librbd_caches
    from storvirt.service import image_tiers, snapshots, tiers
    from storvirt.service import images as image_service

    assert cluster and images and librbd_caches and image_tiers and snapshots and image_service
    # Clients of this lab hear of a new map five times as fast (see conftest.py).
    tiers.remove.__kwdefaults__["settle_s"] = settle_s
    for line in requests.makefile("r"):
        request = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            kill = request["kill"]
            sys.argv = ["svctl", *request["arguments"]]
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
            sys.stderr = _Talk(writing, int(kill["line"]) if "line" in kill else None)  # type: ignore[assignment]
            if "after_s" in kill:
                die = threading.Timer(kill["after_s"], os.kill, (os.getpid(), signal.SIGKILL))
                die.daemon = True
                die.start()
            code = 99
            try:
                cli.main()
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
        os.close(writing)
        with open(reading) as talk:  # noqa: PTH123
            said = talk.read().strip().splitlines()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answer = {"code": status, "talk": said[-1] if said else ""}
        with contextlib.suppress(BrokenPipeError):
            requests.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)


class History:
    """The random walk: what there is, what it must hold, and what went wrong."""

    def __init__(self, options: dict[str, Any], svctl: Svctl, context: Any) -> None:
        self.rng = random.Random(options["seed"])
        self.base, self.cache, self.tenant = options["base"], options["cache"], options["tenant"]
        self.hosts, self.user, self.key = options["hosts"], options["user"], options["key"]
        self.svctl, self.context = svctl, context
        self.disks: dict[str, Disk] = {}
        self.guests: dict[str, rbd.Image] = {}
        self.tier = False
        self.numbers = iter(range(1, 1 << 30))
        self.counts: dict[str, int] = {}
        self.spent_s: dict[str, float] = {}
        self.kills = 0
        self.faults: list[str] = []
        self.log: list[str] = []

    # What a tenant does

    def write(self) -> None:
        """Some writes, overwrites and discards through one disk, and a flush."""
        disk = self._any_disk()
        with self._open(disk.name) as image:
            done = []
            for _ in range(self.rng.randint(1, 6)):
                block, label = self.rng.randrange(disk.blocks), f"{disk.name}-{next(self.numbers)}"
                if self.rng.random() < 0.15:
                    label = ZERO
                disk.begin(block, label)
                if label == ZERO:
                    image.discard(block * BLOCK, BLOCK)
                else:
                    image.write(pattern(label), block * BLOCK)
                done.append((block, label))
            image.flush()
            for block, label in done:
                disk.acknowledge(block, label)

    def start_guest(self) -> None:
        """A disk that stays open, as a running guest's does."""
        free = [name for name in self.disks if name not in self.guests]
        if free and len(self.guests) < 4:
            name = self.rng.choice(sorted(free))
            self.guests[name] = rbd.Image(self.context, name)

    def stop_guest(self) -> None:
        if self.guests:
            self.guests.pop(self.rng.choice(sorted(self.guests))).close()

    def stop_guests(self) -> None:
        while self.guests:
            self.guests.popitem()[1].close()

    # What the operator does with images

    def create(self) -> None:
        if len(self.disks) < 6:
            name, size = f"disk-{next(self.numbers)}", self.rng.choice((4, 8, 12))
            self._finish("image", "create", name, "--pool", self.base, "--size", f"{size}MiB")
            self.disks[name] = Disk(name=name, blocks=size * MIB_BLOCKS)

    def resize(self) -> None:
        disk = self._any_disk()
        size = self.rng.choice((4, 8, 12, 16))
        if size * MIB_BLOCKS < disk.blocks and disk.name in self.guests:
            self.guests.pop(disk.name).close()
        self._finish("image", "resize", disk.name, "--size", f"{size}MiB", "--shrink", "--yes")
        disk.resize(size * MIB_BLOCKS)

    def snapshot(self) -> None:
        disk = self._any_disk()
        if len(disk.snapshots) < 3:
            name = f"s{next(self.numbers)}"
            self._finish("snapshot", "create", f"{disk.name}@{name}", "--protect")
            disk.snapshot(name)

    def drop_snapshot(self) -> None:
        disk = self._any_disk()
        free = [name for name, kept in disk.snapshots.items() if not kept.clones]
        if free:
            name = self.rng.choice(sorted(free))
            self._finish("snapshot", "unprotect", f"{disk.name}@{name}")
            self._finish("snapshot", "delete", f"{disk.name}@{name}", "--yes")
            del disk.snapshots[name]

    def clone(self) -> None:
        disk = self._any_disk()
        if disk.snapshots and len(self.disks) < 8:
            snapshot, name = self.rng.choice(sorted(disk.snapshots)), f"clone-{next(self.numbers)}"
            ref = f"{disk.name}@{snapshot}"
            self._finish("image", "clone", ref, name, "--pool", self.base)
            self.disks[name] = disk.clone(snapshot, name)

    def flatten(self) -> None:
        clones = sorted(name for name, disk in self.disks.items() if disk.parent)
        if clones and _has_command("image", "flatten"):
            disk = self.disks[self.rng.choice(clones)]
            self._finish("image", "flatten", disk.name)
            self._orphan(disk)

    def roll_back(self) -> None:
        disk = self._any_disk()
        if disk.snapshots and _has_command("snapshot", "rollback"):
            if disk.name in self.guests:
                self.guests.pop(disk.name).close()
            name = self.rng.choice(sorted(disk.snapshots))
            self._finish("snapshot", "rollback", f"{disk.name}@{name}", "--yes")
            disk.roll_back(name)

    def delete(self) -> None:
        free = sorted(name for name, disk in self.disks.items() if not disk.snapshots)
        if len(self.disks) > 2 and free:
            disk = self.disks.pop(self.rng.choice(free))
            if disk.name in self.guests:
                self.guests.pop(disk.name).close()
            # Disks of the loss test are not to come back from the trash.
            self._finish("image", "delete", disk.name, "--yes")
            self._orphan(disk)

    # What the operator does with the tier

    def lay(self) -> None:
        words = ["tier", "create", self.base, "--cache", self.cache, "--size", "256MiB"]
        if self.rng.random() < 0.3:
            words += ["--hit-set", "bloom"]
        self._finish_tier(words)
        self.tier = True

    def change(self) -> None:
        if self.tier:
            kinds = (
                ["--mode", "proxy"],
                ["--mode", "writeback"],
                ["dirty-ratio=0.01", "dirty-high-ratio=0.02", "full-ratio=0.03"],
                ["dirty-ratio=0.4", "dirty-high-ratio=0.6", "full-ratio=0.8"],
                ["hit-set=bloom"],
                ["hit-set=none"],
            )
            self._finish_tier(["tier", "set", self.base, *self.rng.choice(kinds)])

    def seal(self) -> None:
        """A read-only cache for a while: refused while anybody writes, else nobody can."""
        if not self.tier:
            return
        words = ("tier", "set", self.base, "hit-set=none", "--mode", "readonly")
        code, talk = self._svctl(*words)
        if code == 0:
            disk = self._any_disk()
            try:
                with rbd.Image(self.context, disk.name) as image:
                    image.write(pattern("never"), 0)
                self._fault(f"{disk.name} could be written behind a read-only cache")
            except rbd.PermissionError:
                pass
            self.check()
            self._finish_tier(["tier", "set", self.base, "--mode", "writeback"], writing=False)
        elif "can't have a read-only cache" not in talk:
            self._fault(f"tier set --mode readonly: {talk}")

    def take_away(self) -> None:
        if not self.tier:
            return
        if self.guests and self.rng.random() < 0.3:
            code, talk = self._svctl("tier", "remove", self.base, "--yes")
            if code == 0 or "cannot be evicted" not in talk:
                self._fault(f"tier remove with guests: {code} {talk}")
        self.stop_guests()
        self._finish_tier(["tier", "remove", self.base, "--yes", "--wait", "60"])
        self.tier = False

    def crash_osd(self) -> None:
        host = self.rng.choice(self.hosts)
        _ask("kill", host)
        for _ in range(3):
            self.write()
        _ask("start", host)

    # The comparison

    def check(self) -> None:
        """Every disk and snapshot, read by a client that has seen nothing before."""
        for image in self.guests.values():
            image.flush()
        with connected(self.user, self.key) as fresh, fresh.open_ioctx(self.base) as context:
            context.set_namespace(self.tenant)
            for disk in self.disks.values():
                self._compare(context, disk.name, None, disk.blocks, disk.contents)
                for name, kept in disk.snapshots.items():
                    self._compare(context, disk.name, name, kept.blocks, kept.contents)

    def _compare(
        self, context: Any, name: str, snapshot: str | None, blocks: int, contents: Any
    ) -> None:
        what = f"{name}@{snapshot}" if snapshot else name
        with rbd.Image(context, name, snapshot, read_only=True) as image:
            if image.size() != blocks * BLOCK:
                self._fault(f"{what} has {image.size()} bytes, not {blocks * BLOCK}")
                return
            everything = image.read(0, blocks * BLOCK)

        def read(block: int) -> bytes:
            return bytes(everything[block * BLOCK : (block + 1) * BLOCK])

        for block, may in wrong(contents, blocks, read):
            found = "zeros" if not any(read(block)) else "other bytes"
            self._fault(f"{what} block {block}: {found} instead of {sorted(may)}")

    # Helpers

    def step(self, name: str) -> None:
        self.log.append(name)
        self.counts[name] = self.counts.get(name, 0) + 1
        began = time.monotonic()
        getattr(self, name)()
        self.spent_s[name] = round(self.spent_s.get(name, 0) + time.monotonic() - began, 1)

    def _any_disk(self) -> Disk:
        return self.disks[self.rng.choice(sorted(self.disks))]

    def _orphan(self, disk: Disk) -> None:
        if disk.parent:
            parent, snapshot = disk.parent
            self.disks[parent].snapshots[snapshot].clones.discard(disk.name)
            disk.parent = None

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[rbd.Image]:
        if name in self.guests:
            yield self.guests[name]
            return
        with rbd.Image(self.context, name) as image:
            yield image

    def _svctl(self, *words: str, kill: dict[str, float] | None = None) -> tuple[int, str]:
        tenant = () if words[0] == "tier" else ("--tenant", self.tenant)
        return self.svctl(*words, *tenant, kill=kill)

    def _finish(self, *words: str) -> None:
        """Run a command to its end, sometimes killed on the way and begun again.

        Not while a guest has the disk: its lock would be held by a dead client, and the tenant's
        key can't fence.
        """
        name = words[2].partition("@")[0]
        if self.rng.random() < 0.15 and name not in self.guests:
            code, _ = self._svctl(*words, kill={"after_s": self.rng.uniform(0.02, 0.5)})
            if code == 0:
                return
            self.kills += 1
        give_up = time.monotonic() + 60
        while True:
            code, talk = self._svctl(*words)
            if code == 0 or "already" in talk or "is not protected" in talk:
                return
            if words[1] in ("delete", "unprotect") and ("has no " in talk or "not exist" in talk):
                return
            if time.monotonic() > give_up:
                self._fault(f"svctl {' '.join(words)}: {talk}")
                return
            # Ceph remembers who was killed for some seconds.
            time.sleep(1)

    def _finish_tier(self, words: list[str], *, writing: bool = True) -> None:
        """Run a command of the tier to its end while tenants write, killed on the way or not."""
        run = self._under_writes if writing else lambda words, kill: self._svctl(*words, kill=kill)
        for _ in range(self.rng.choice((0, 0, 1, 1, 2))):
            kill = (
                {"line": float(self.rng.randint(1, 9))}
                if self.rng.random() < 0.6
                else {"after_s": self.rng.uniform(0.05, 3)}
            )
            code, talk = run(words, kill)
            self.kills += code < 0
            if code == 0:
                return
        code, talk = run(words, {})
        gone = words[1] == "remove" and "has no cache tier" in talk
        if code and not gone:
            self._fault(f"svctl {' '.join(words)}: {talk}")

    def _under_writes(self, words: list[str], kill: dict[str, float]) -> tuple[int, str]:
        self.svctl.begin(words, kill)
        began = time.monotonic()
        while self.svctl.runs():
            self.write()
            # A cache whose disks are opened again and again is never found empty, so the pauses
            # grow until the command finds one that is long enough, however slow the machine.
            patience = 0.3 + (time.monotonic() - began) / 4
            give_up = time.monotonic() + self.rng.uniform(0.1, 1) * patience
            while self.svctl.runs() and time.monotonic() < give_up:
                time.sleep(0.05)
        return self.svctl.end()

    def _fault(self, sentence: str) -> None:
        self.faults.append(sentence)


WEIGHTS = {
    "write": 780,
    "start_guest": 40,
    "stop_guest": 20,
    "create": 25,
    "resize": 25,
    "snapshot": 25,
    "drop_snapshot": 15,
    "clone": 20,
    "flatten": 8,
    "roll_back": 8,
    "delete": 12,
    "change": 10,
    "seal": 4,
    "tier": 20,
    "crash_osd": 3,
}


def walk(history: History, steps: int) -> None:
    """The whole walk, with a comparison now and then, and at the end without the tier."""
    for _ in range(3):
        history.step("create")
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    for number in range(steps):
        (name,) = history.rng.choices(names, weights)
        if name == "tier":
            name = "take_away" if history.tier else "lay"
        history.step(name)
        if name == "take_away" or number % 150 == 149:
            history.step("check")
        if history.faults:
            break
    history.stop_guests()
    history.step("take_away")
    history.step("check")


def naive(history: History, admin: Any) -> None:
    """Take a dirty tier away as Ceph lets one: every command returns 0."""
    history.step("create")
    history.step("write")
    history.step("lay")
    for _ in range(10):
        history.step("write")
    history.check()
    if not history.faults:
        for prefix, words in (
            ("osd tier remove-overlay", {"pool": history.base}),
            ("osd tier remove", {"pool": history.base, "tierpool": history.cache}),
        ):
            code, _, said = admin.mon_command(json.dumps({"prefix": prefix, **words}), b"")
            assert code == 0, said
        with contextlib.suppress(rbd.Error, rbd.OSError):
            history.check()
            return
        history.faults.append("a disk can't be opened any more")


def _has_command(noun: str, verb: str) -> bool:
    from storvirt.cli import app

    (group,) = (one.typer_instance for one in app.registered_groups if one.name == noun)
    return any(one.name == verb for one in group.registered_commands)


def _ask(what: str, host: str) -> None:
    print(json.dumps({what: host}), flush=True)
    sys.stdin.readline()


def main(options: dict[str, Any], then: Callable[[History], None]) -> None:
    svctl = Svctl(options["settle_s"])
    with (
        connected(options["user"], options["key"]) as cluster,
        cluster.open_ioctx(options["base"]) as context,
    ):
        context.set_namespace(options["tenant"])
        history = History(options, svctl, context)
        try:
            then(history)
        except (rados.Error, rbd.Error, rbd.OSError) as error:
            code = getattr(error, "errno", None)
            history.faults.append(f"after {history.log[-3:]}: {error!r}, errno {code}")
        finally:
            with contextlib.suppress(rbd.Error, rbd.OSError):
                history.stop_guests()
    svctl.close()
    print(
        json.dumps(
            {
                "result": {
                    "faults": history.faults[:10],
                    "last": history.log[-10:],
                    "counts": history.counts,
                    "spent_s": history.spent_s,
                    "kills": history.kills,
                    "disks": sorted(history.disks),
                }
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    if chosen["naive"]:

        def careless(history: History) -> None:
            with connected() as admin:
                naive(history, admin)

        main(chosen, careless)
    else:
        main(chosen, lambda history: walk(history, chosen["steps"]))
