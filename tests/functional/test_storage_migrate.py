"""Moving images between pools: at rest, killed half-way, undone, and under a writing guest."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, until
from tests.functional.test_storage_import import MIB, make_raw, sha256

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

OTHER = "migrate-to"


@pytest.fixture(scope="module")
def green(svctl: Svctl, red: str) -> Iterator[str]:
    """The tenant, with a namespace in another pool too."""
    if not any(pool["name"] == OTHER for pool in svctl("pool", "list")):
        svctl("pool", "create", OTHER, "--pg-num", "8")
    svctl("namespace", "create", red, "--pool", OTHER)
    yield red
    svctl.remove_tenant(red)
    svctl("pool", "delete", OTHER, "--yes")
    svctl("tenant", "create", red)


def imported(svctl: Svctl, tenant: str, name: str, directory: Path, size_mib: int = 64) -> str:
    raw = make_raw(directory / f"{name}.raw", size_mib * MIB, min(16, size_mib // 4))
    svctl(
        *("image", "import", name, "--tenant", tenant, "--pool", "vms", "--from", str(raw)),
    )
    return sha256(raw)


def content(svctl: Svctl, pool: str, tenant: str, image: str, directory: Path) -> str:
    exported = directory / "exported"
    exported.unlink(missing_ok=True)
    svctl.host.run(["rbd", "export", "--no-progress", f"{pool}/{tenant}/{image}", str(exported)])
    return sha256(exported)


def in_ceph(svctl: Svctl, pool: str, tenant: str) -> list[str]:
    return list(svctl.host.run(["rbd", "ls", f"{pool}/{tenant}"]).stdout.split())


def pool_of(svctl: Svctl, tenant: str, image: str) -> str:
    return str(svctl("image", "get", image, "--tenant", tenant)["pool"])


def test_an_image_at_rest_moves_with_its_snapshots_and_clones(
    svctl: Svctl, green: str, tmp_path: Path
) -> None:
    digest = imported(svctl, green, "still", tmp_path)
    svctl("snapshot", "create", "still@one", "--tenant", green, "--protect")
    svctl("image", "clone", "still@one", "child", "--tenant", green)
    before = svctl.used(green)

    moved = svctl("migrate", "still", "--tenant", green, "--to-pool", OTHER)

    assert moved["pool"] == OTHER and svctl.used(green) == before
    assert content(svctl, OTHER, green, "still", tmp_path) == digest
    assert content(svctl, "vms", green, "child", tmp_path) == digest
    assert in_ceph(svctl, "vms", green) == ["child"]
    svctl("image", "delete", "child", "--tenant", green, "--yes")
    svctl("snapshot", "unprotect", "still@one", "--tenant", green)
    svctl("snapshot", "delete", "still@one", "--tenant", green, "--yes")
    svctl("migrate", "still", "--tenant", green, "--to-pool", "vms")
    assert content(svctl, "vms", green, "still", tmp_path) == digest
    svctl("image", "delete", "still", "--tenant", green, "--yes")


KILLED = """
import os, sys
from storvirt.backends import migration
from storvirt.service import migrating
from storvirt import cli
at, *arguments = sys.argv[1:]
module, name, when = at.split(":")
place = {"migration": migration, "migrating": migrating}[module]
real = getattr(place, name)
def dying(*args, **kwargs):
    if when == "after":
        real(*args, **kwargs)
    os._exit(9)
setattr(place, name, dying)
sys.argv = ["svctl", *arguments]
cli.main()
"""


@pytest.mark.parametrize(
    ("at", "undo"),
    [
        ("migration:prepare:after", False),
        ("migration:prepare:after", True),
        ("migrating:step:after", True),
        ("migration:execute:after", True),
        ("migration:commit:after", True),
    ],
)
def test_a_move_killed_at_a_step_is_finished_or_undone(
    svctl: Svctl, green: str, ceph_lab: Lab, tmp_path: Path, at: str, undo: bool
) -> None:
    name = "killed"
    digest = imported(svctl, green, name, tmp_path, 16)
    move = ("migrate", name, "--tenant", green, "--to-pool", OTHER)
    python = sys.executable
    done = ceph_lab.ctl.run([python, "-c", KILLED, at, *move], check=False, timeout_s=120)
    assert done.returncode == 9, done.stderr
    refused = svctl.refused("snapshot", "create", f"{name}@s", "--tenant", green)
    assert "being moved" in refused.sentence

    if undo and at != "migration:commit:after":
        svctl("migrate", name, "--tenant", green, "--abort")
        pool, empty = "vms", OTHER
    else:
        if undo:
            refused = svctl.refused("migrate", name, "--tenant", green, "--abort")
            assert "for good" in refused.sentence
        svctl(*move)
        pool, empty = OTHER, "vms"

    assert pool_of(svctl, green, name) == pool
    assert content(svctl, pool, green, name, tmp_path) == digest
    assert in_ceph(svctl, empty, green) == []
    svctl("image", "delete", name, "--tenant", green, "--yes")


@contextmanager
def guest(lab: Lab, svctl: Svctl, tenant: str, image: str, directory: Path) -> Iterator[Path]:
    """A QEMU that has the image, gives it by NBD, and listens to QMP; yields the QMP socket."""
    attached = svctl("image", "attach", image, "-t", tenant, "--write-dir", str(directory))["qemu"]
    qmp, nbd = directory / "qmp.sock", directory / "nbd.sock"
    node = attached["blockdev"]["node-name"]
    process = lab.ctl.popen(
        [
            *("qemu-storage-daemon", "--object", json.dumps(attached["object"])),
            *("--blockdev", json.dumps(attached["blockdev"])),
            *("--nbd-server", f"addr.type=unix,addr.path={nbd}"),
            *("--export", f"type=nbd,id=disk,node-name={node},name=disk,writable=on"),
            *("--chardev", f"socket,path={qmp},server=on,wait=off,id=qmp"),
            *("--monitor", "chardev=qmp"),
        ]
    )
    try:
        until(nbd.exists)
        yield qmp
    finally:
        process.terminate()
        process.wait()


class Writer:
    """A guest's program: writes 4 KiB here and there, and remembers what was acknowledged."""

    def __init__(self, lab: Lab, directory: Path, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.acknowledged: dict[int, int] = {}
        self.noise = random.Random(3)
        self.process = lab.ctl.popen(
            ["qemu-io", "-f", "raw", f"nbd+unix:///disk?socket={directory}/nbd.sock"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self) -> None:
        at = self.noise.randrange(self.size_bytes // 4096) * 4096
        value = self.noise.randrange(1, 255)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"write -P {value} {at} 4096\n")
        self.process.stdin.flush()
        while "wrote 4096" not in (line := self.process.stdout.readline()):
            assert line and "failed" not in line, line
        self.acknowledged[at] = value

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("flush\nquit\n")
        self.process.stdin.close()
        self.process.wait()


def insist(writer: Writer, raw: Path) -> None:
    data = raw.read_bytes()
    lost = [
        at
        for at, value in writer.acknowledged.items()
        if data[at : at + 4096] != bytes([value]) * 4096
    ]
    assert lost == [] and len(writer.acknowledged) > 20


@pytest.mark.parametrize("killed_after_s", [None, 1.0])
def test_an_image_moves_under_a_writing_guest_and_no_acknowledged_byte_is_lost(
    svctl: Svctl, green: str, ceph_lab: Lab, tmp_path: Path, killed_after_s: float | None
) -> None:
    name = "busy"
    imported(svctl, green, name, tmp_path, 128)
    layout = ("--no-feature", "fast-diff", "--write-iops-limit", "90000")
    svctl("image", "set", name, "--tenant", green, *layout)
    was = svctl("image", "get", name, "--tenant", green)
    with guest(ceph_lab, svctl, green, name, tmp_path) as qmp:
        assert "--qmp" in svctl.refused("migrate", name, "-t", green, "--to-pool", OTHER).sentence
        writer = Writer(ceph_lab, tmp_path, 128 * MIB)
        move = ("migrate", name, "--tenant", green, "--to-pool", OTHER, "--qmp", str(qmp))
        for _ in range(5):
            writer.write()
        if killed_after_s is not None:
            dying = ceph_lab.ctl.popen(["svctl", *move])
            killed_at = time.monotonic() + killed_after_s
            while time.monotonic() < killed_at:
                writer.write()
            dying.kill()
            dying.wait()
        process = ceph_lab.ctl.popen(
            ["svctl", *move], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        while process.poll() is None:
            writer.write()
        assert process.returncode == 0, process.stderr and process.stderr.read()
        for _ in range(20):
            writer.write()
        assert in_ceph(svctl, "vms", green) == []
        pool = OTHER
        if killed_after_s is None:
            # And back, under the same guest.
            back = ("migrate", name, "--tenant", green, "--to-pool", "vms", "--qmp", str(qmp))
            process = ceph_lab.ctl.popen(["svctl", *back], stdout=subprocess.DEVNULL)
            while process.poll() is None:
                writer.write()
            assert process.returncode == 0
            pool = "vms"
        writer.close()

    assert pool_of(svctl, green, name) == pool
    content(svctl, pool, green, name, tmp_path)
    insist(writer, tmp_path / "exported")
    is_now = svctl("image", "get", name, "--tenant", green)
    assert "fast-diff" not in is_now["features"]
    for what in ("features", "limits", "object_size", "stripes"):
        assert is_now[what] == was[what], what
    svctl("image", "attach", name, "--tenant", green)
    deadline = time.monotonic() + 40
    while svctl.run("image", "delete", name, "--tenant", green, "--yes").returncode:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert svctl.used(green)["images"] == 0


def test_a_move_under_a_guest_can_be_given_up(
    svctl: Svctl, green: str, ceph_lab: Lab, tmp_path: Path
) -> None:
    imported(svctl, green, "stay", tmp_path, 400)
    with guest(ceph_lab, svctl, green, "stay", tmp_path) as qmp:
        move = ("migrate", "stay", "--tenant", green, "--to-pool", OTHER, "--qmp", str(qmp))
        process = ceph_lab.ctl.popen(["svctl", *move], stderr=subprocess.PIPE, text=True)
        until(lambda: ".virtkit" in str(in_ceph(svctl, OTHER, green)))
        process.kill()
        process.wait()

        svctl("migrate", "stay", "--tenant", green, "--abort", "--qmp", str(qmp))

        writer = Writer(ceph_lab, tmp_path, 400 * MIB)
        for _ in range(25):
            writer.write()
        writer.close()
    assert pool_of(svctl, green, "stay") == "vms" and in_ceph(svctl, OTHER, green) == []
    content(svctl, "vms", green, "stay", tmp_path)
    insist(writer, tmp_path / "exported")


def test_what_cannot_be_moved_is_refused_and_nothing_changes(
    svctl: Svctl, green: str, tmp_path: Path
) -> None:
    imported(svctl, green, "fixed", tmp_path, 16)
    taken = ["rbd", "--rbd_validate_pool=false", "create", "--size", "8M"]
    cases = {
        ("fixed", "--to-pool", "vms"): "already",
        ("fixed", "--to-pool", "nowhere"): "no namespace",
        ("fixed", "--to-pool", "a/b"): "not usable",
        ("none", "--to-pool", OTHER): "no image",
        ("fixed",): "--to-pool",
        ("fixed", "--abort"): "not being moved",
        ("fixed", "--to-pool", OTHER, "--qmp", str(tmp_path / "none.sock")): "no QEMU answers",
    }
    for command, why in cases.items():
        assert why in svctl.refused("migrate", *command, "--tenant", green).sentence, command
    if svctl.run("migrate", "fixed", "--tenant", green, "--abort").returncode == 0:
        assert pool_of(svctl, green, "fixed") == "vms"
    svctl.host.run([*taken, f"{OTHER}/{green}/fixed"])
    refused = svctl.refused("migrate", "fixed", "--tenant", green, "--to-pool", OTHER)
    assert "somebody else" in refused.sentence
    svctl.host.run(["rbd", "rm", "--no-progress", f"{OTHER}/{green}/fixed"])

    assert pool_of(svctl, green, "fixed") == "vms"
    svctl("image", "delete", "fixed", "--tenant", green, "--yes")
