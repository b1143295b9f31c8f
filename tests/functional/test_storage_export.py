"""Exporting images: the same bytes whatever the format, sparse, interrupted, and refused."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command
from tests.functional.test_storage_import import MIB, make_raw, sha256

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


def imported(svctl: Svctl, tenant: str, name: str, raw: Path) -> str:
    svctl("image", "import", name, "--tenant", tenant, "--from", str(raw))
    return name


def nothing_is_left(svctl: Svctl, tenant: str, name: str, directory: Path) -> bool:
    return svctl("snapshot", "list", name, "--tenant", tenant) == [] and not [
        path for path in directory.iterdir() if path.name.startswith(".")
    ]


def test_raw_and_qcow2_hold_what_stock_rbd_exports(svctl: Svctl, red: str, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "source.raw", 192 * MIB, 8)
    imported(svctl, red, "out", raw)
    files = {
        name: svctl("image", "export", "out", "--tenant", red, "--to", str(tmp_path / name), *more)
        for name, more in {
            "whole.raw": (),
            "plain.qcow2": (),
            "small.disk": ("--format", "qcow2", "--compress"),
        }.items()
    }
    stock = tmp_path / "stock.raw"
    svctl.host.run(["rbd", "export", "--no-progress", f"vms/{red}/out", str(stock)])

    assert {one["sha256"] for one in files.values()} == {sha256(raw)}
    assert sha256(tmp_path / "whole.raw") == sha256(stock)
    assert (tmp_path / "whole.raw").stat().st_blocks * 512 <= 9 * MIB
    for name in ("plain.qcow2", "small.disk"):
        compare = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(tmp_path / name)]
        subprocess.run([*compare, str(raw)], check=True, capture_output=True)
    assert nothing_is_left(svctl, red, "out", tmp_path)


def test_an_image_in_use_is_exported_as_it_was_at_one_moment(
    svctl: Svctl, red: str, ceph_lab: Lab, tmp_path: Path
) -> None:
    raw = make_raw(tmp_path / "busy.raw", 64 * MIB, 8)
    imported(svctl, red, "busy", raw)
    attached = svctl("image", "attach", "busy", "--tenant", red)
    user, key = attached["user"], attached["key"]
    holder = ceph_lab.ctl.popen(
        probe_command("holder", user, key, "vms", red, "busy"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        target = tmp_path / "busy.out"

        done = svctl("image", "export", "busy", "--tenant", red, "--to", str(target))

        assert done["sha256"] == sha256(target)
        assert svctl("image", "get", "busy", "--tenant", red)["users"]
    finally:
        holder.kill()
        holder.wait()


def test_a_chosen_snapshot_is_exported_and_stays(svctl: Svctl, red: str, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "then.raw", 64 * MIB, 4)
    imported(svctl, red, "then", raw)
    svctl("snapshot", "create", "then@early", "--tenant", red)
    svctl.host.run(
        ["rbd", "bench", "--io-type", "write", "--io-total", "1M", f"vms/{red}/then"],
    )
    target = tmp_path / "early.raw"

    svctl("image", "export", "then@early", "--tenant", red, "--to", str(target))

    assert sha256(target) == sha256(raw)
    assert len(svctl("snapshot", "list", "then", "--tenant", red)) == 1


@pytest.mark.parametrize("ending", ["raw", "qcow2"])
def test_an_export_killed_half_way_goes_on_and_shows_no_half_file(
    svctl: Svctl, red: str, ceph_lab: Lab, tmp_path: Path, ending: str
) -> None:
    name = f"long-{ending}"
    raw = make_raw(tmp_path / "source.raw", 576 * MIB, 48)
    imported(svctl, red, name, raw)
    target = tmp_path / "out" / f"disk.{ending}"
    target.parent.mkdir()
    command = ("image", "export", name, "--tenant", red, "--to", str(target))
    process = ceph_lab.ctl.popen(["svctl", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if int(line.split()[-2]) >= 55:
            break
    process.kill()
    process.wait()
    assert not target.exists()
    (held,) = svctl("snapshot", "list", name, "--tenant", red)
    refused = svctl.refused("snapshot", "delete", held["snapshot"], "--tenant", red, "--yes")
    assert str(target) in refused.sentence

    again = svctl.run(*command, "-o", "json")

    assert again.returncode == 0, again.stderr
    assert "going on at" in again.stderr
    assert sha256(raw) in again.stdout
    if ending == "raw":
        assert sha256(target) == sha256(raw)
    assert nothing_is_left(svctl, red, name, target.parent)
    svctl("image", "delete", name, "--tenant", red, "--yes")


def test_what_cannot_be_exported_is_refused_and_nothing_is_left(
    svctl: Svctl, red: str, tmp_path: Path
) -> None:
    raw = make_raw(tmp_path / "small.raw", 8 * MIB, 8)
    imported(svctl, red, "small", raw)
    before = tmp_path / "kept"
    before.write_text("mine")
    (tmp_path / "out").mkdir()
    cases = {
        ("small", str(before)): "--force",
        ("small", str(tmp_path / "out")): "directory",
        ("small", str(tmp_path / "nowhere" / "file")): "does not exist",
        ("small@none", str(tmp_path / "out" / "file")): "no snapshot",
        ("none", str(tmp_path / "out" / "file")): "no image",
        ("a/b", str(tmp_path / "out" / "file")): "not usable",
        ("small", "/dev/null"): "exists",
        ("small", "/proc/file"): "written",
    }
    for (name, target), why in cases.items():
        refused = svctl.refused("image", "export", name, "--tenant", red, "--to", target)
        assert why in refused.sentence, (name, target, refused.sentence)
    compressed = ("--to", str(tmp_path / "x.raw"), "--compress")
    assert "qcow2" in svctl.refused("image", "export", "small", "-t", red, *compressed).sentence

    assert before.read_text() == "mine"
    assert nothing_is_left(svctl, red, "small", tmp_path)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_without_room_is_found_before_anything_is_written(
    svctl: Svctl, red: str, tmp_path: Path
) -> None:
    raw = tmp_path / "noise.raw"
    raw.write_bytes(os.urandom(40 * MIB))
    imported(svctl, red, "noise", raw)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f"mount -t tmpfs -o size=24m none {disk}"
    export = f"svctl image export noise --tenant {red} --to {disk}/noise.raw"

    done = svctl.host.run(
        ["unshare", "--mount", "sh", "-c", f"{mounted} && {export}; ls -A {disk} | grep part"],
        check=False,
    )

    assert "Make room" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == ""
    # What was begun is given up through the file that it was for.
    svctl("image", "export", "noise", "--tenant", red, "--to", str(disk / "noise.raw"))
    assert hashlib.sha256(raw.read_bytes()).hexdigest() == sha256(disk / "noise.raw")
    assert nothing_is_left(svctl, red, "noise", disk)
