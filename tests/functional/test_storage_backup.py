"""Backup chains: what they restore, how they end when killed, and what is refused."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl
from tests.functional.test_storage_import import MIB, content_in_ceph, make_raw

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

WRITE = """
import sys, random, rados, rbd
namespace, image, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
noise = random.Random(seed)
with rados.Rados(conffile="/etc/ceph/ceph.conf", name="client.admin") as cluster:
    with cluster.open_ioctx("vms") as context:
        context.set_namespace(namespace)
        with rbd.Image(context, image) as disk:
            for _ in range(12):
                at = noise.randrange(disk.size() - 70_000)
                disk.write(noise.randbytes(noise.choice([1, 512, 70_000])), at)
            disk.discard(noise.randrange(disk.size() // 2), 5 << 20)
"""


def change(svctl: Svctl, tenant: str, image: str, seed: int) -> None:
    svctl.host.run(["python3", "-c", WRITE, tenant, image, str(seed)])


def imported(svctl: Svctl, tenant: str, name: str, directory: Path, size_mib: int = 96) -> None:
    raw = make_raw(directory / f"{name}.raw", size_mib * MIB, 12)
    svctl("image", "import", name, "--tenant", tenant, "--from", str(raw))


def backed_up(svctl: Svctl, tenant: str, name: str, directory: Path) -> str:
    """Take a backup and return the digest of what the image holds."""
    svctl("backup", "create", name, "--tenant", tenant, "--to", str(directory / "chain"))
    return content_in_ceph(svctl, tenant, name, directory)


def test_each_backup_of_a_chain_restores_what_the_image_held(
    svctl: Svctl, red: str, tmp_path: Path
) -> None:
    imported(svctl, red, "kept", tmp_path)
    chain = tmp_path / "chain"
    held = [backed_up(svctl, red, "kept", tmp_path)]
    change(svctl, red, "kept", 1)
    held.append(backed_up(svctl, red, "kept", tmp_path))
    svctl("image", "resize", "kept", "--tenant", red, "--size", "70MiB", "--shrink", "--yes")
    svctl("image", "resize", "kept", "--tenant", red, "--size", "130MiB")
    change(svctl, red, "kept", 2)
    held.append(backed_up(svctl, red, "kept", tmp_path))
    (snapshot,) = svctl("snapshot", "list", "kept", "--tenant", red)
    sentence = svctl.refused(
        "snapshot", "delete", snapshot["snapshot"], "--tenant", red, "--yes"
    ).sentence
    assert "backup chain" in sentence and str(chain) in sentence

    svctl("backup", "verify", str(chain))
    for number, digest in enumerate(held, 1):
        name = f"kept-{number}"
        svctl("backup", "restore", str(chain), name, "-t", red, "--number", str(number))
        assert content_in_ceph(svctl, red, name, tmp_path) == digest

    # Stock tools restore the chain too.
    where = f"vms/{red}/stock"
    svctl.host.run(["rbd", "--rbd_validate_pool=false", "create", "--size", "96M", where])
    for piece in sorted(chain.glob("0*")):
        svctl.host.run(["rbd", "import-diff", "--no-progress", str(piece), where])
    assert content_in_ceph(svctl, red, "stock", tmp_path) == held[-1]
    svctl.host.run(["rbd", "snap", "purge", "--no-progress", where])
    svctl.host.run(["rbd", "rm", "--no-progress", where])

    svctl("backup", "prune", str(chain), "--keep", "2", "--yes")
    assert [piece["number"] for piece in svctl("backup", "list", str(chain))] == [2, 3]
    assert sorted(path.name for path in chain.glob("0*")) == ["000002.full", "000003.diff"]
    svctl("backup", "restore", str(chain), "pruned", "--tenant", red)
    assert content_in_ceph(svctl, red, "pruned", tmp_path) == held[-1]
    change(svctl, red, "kept", 3)
    backed_up(svctl, red, "kept", tmp_path)
    svctl("backup", "verify", str(chain))


def test_a_damaged_chain_is_refused_by_name_before_anything_is_written(
    svctl: Svctl, red: str, tmp_path: Path
) -> None:
    imported(svctl, red, "hurt", tmp_path, 32)
    whole = tmp_path / "chain"
    for seed in range(3):
        change(svctl, red, "hurt", seed)
        backed_up(svctl, red, "hurt", tmp_path)
    bad = tmp_path / "bad"
    before = svctl.used(red)

    def corrupt(name: str) -> None:
        data = bytearray((bad / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bad / name).write_bytes(data)

    def swap() -> None:
        (bad / "000002.diff").rename(bad / "x")
        (bad / "000003.diff").rename(bad / "000002.diff")
        (bad / "x").rename(bad / "000003.diff")

    hurts = {
        "000001.full": lambda: corrupt("000001.full"),
        "000002.diff": lambda: corrupt("000002.diff"),
        "000002.diff is": swap,
        "000002.diff has": lambda: (bad / "000002.diff").write_bytes(b"rbd diff v1\n"),
        "000002.diff is missing": lambda: (bad / "000002.diff").unlink(),
        "seal": lambda: (bad / "manifest.json").write_text(
            (bad / "manifest.json").read_text().replace('"next": 4', '"next": 5')
        ),
        "no backup chain": lambda: (bad / "manifest.json").unlink(),
    }
    for why, hurt in hurts.items():
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(whole, bad)
        hurt()
        for command in (
            ("restore", str(bad), "lost", "--tenant", red),
            ("verify", str(bad)),
            ("create", "hurt", "--tenant", red, "--to", str(bad)),
        ):
            if why == "no backup chain" and command[0] == "create":
                continue
            assert why.split()[0] in svctl.refused("backup", *command).sentence, (why, command)
    assert "lost" not in svctl.images(red) and svctl.used(red) == before
    svctl("backup", "verify", str(whole))


def test_what_a_chain_cannot_do_is_refused(svctl: Svctl, red: str, tmp_path: Path) -> None:
    imported(svctl, red, "one", tmp_path, 16)
    imported(svctl, red, "two", tmp_path, 16)
    chain = tmp_path / "chain"
    backed_up(svctl, red, "one", tmp_path)
    cases = {
        ("create", "two", "-t", red, "--to", str(chain)): "another image",
        ("create", "none", "-t", red, "--to", str(tmp_path / "x")): "no image",
        ("create", "one", "-t", red, "--to", "/proc/x"): "written",
        ("restore", str(chain), "two", "-t", red): "already",
        ("restore", str(chain), "a@b", "-t", red): "not usable",
        ("restore", str(chain), "new", "-t", red, "--number", "7"): "has no backup 7",
        ("verify", str(tmp_path)): "no backup chain",
        ("prune", str(chain), "--keep", "0", "--yes"): "at least 1",
        ("release", "one@none", "-t", red, "--yes"): "no snapshot",
    }
    for command, why in cases.items():
        assert why in svctl.refused("backup", *command).sentence, command

    (snapshot,) = svctl("snapshot", "list", "one", "--tenant", red)
    done = svctl.run("backup", "release", snapshot["snapshot"], "--tenant", red, "--yes")
    assert done.returncode == 0, done.stderr
    sentence = svctl.refused("backup", "create", "one", "-t", red, "--to", str(chain)).sentence
    assert "is gone" in sentence
    svctl("tenant", "set", red, "--quota", f"bytes={svctl.used(red)['bytes'] + MIB}")
    refused = svctl.refused("backup", "restore", str(chain), "new", "--tenant", red)
    assert "quota" in refused.sentence and "new" not in svctl.images(red)
    svctl("tenant", "set", red, "--quota", "bytes=100TiB")


def test_backups_and_restores_killed_anywhere_end_as_if_they_had_not_been(
    svctl: Svctl, red: str, ceph_lab: Lab, tmp_path: Path
) -> None:
    imported(svctl, red, "often", tmp_path, 200)
    chain = tmp_path / "chain"
    create = ("backup", "create", "often", "--tenant", red, "--to", str(chain))
    noise = random.Random(5)
    for _ in range(3):
        _killed(ceph_lab, create, noise.uniform(0.3, 3))
        if (chain / "manifest.json").exists() and svctl("backup", "list", str(chain)):
            svctl("backup", "verify", str(chain))
    svctl(*create)
    svctl("backup", "verify", str(chain))
    change(svctl, red, "often", 1)
    _killed(ceph_lab, create, noise.uniform(0.5, 2))
    digest = backed_up(svctl, red, "often", tmp_path)
    svctl("backup", "verify", str(chain))
    assert len(svctl("snapshot", "list", "often", "--tenant", red)) == 1

    restore = ("backup", "restore", str(chain), "again", "--tenant", red)
    _killed(ceph_lab, restore, 4)
    if "again" in svctl.images(red):
        assert svctl("image", "get", "again", "--tenant", red)["state"] in ("creating", "ready")
    svctl(*restore)

    assert content_in_ceph(svctl, red, "again", tmp_path) == digest


def _killed(lab: Lab, command: tuple[str, ...], after_s: float) -> None:
    process = lab.ctl.popen(["svctl", *command], stdout=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
