"""Importing files: whole, sparse, interrupted, and what is no image at all."""

import hashlib
import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

MIB = 1 << 20


def make_raw(path: Path, size_bytes: int, data_mib: int, seed: int = 1) -> Path:
    """A sparse disk with `data_mib` MiB of noise here and there."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(data_mib):
            file.seek(rng.randrange(size_bytes // MIB) * MIB)
            file.write(rng.randbytes(MIB))
        file.truncate(size_bytes)
    return path


def make_qcow2(raw: Path, *options: str) -> Path:
    path = raw.with_suffix(".qcow2")
    command = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, str(raw), str(path)]
    subprocess.run(command, check=True)
    return path


def content_in_ceph(svctl: Svctl, tenant: str, image: str, directory: Path) -> str:
    """The SHA-256 of an image as the stock `rbd` command reads it."""
    exported = directory / f"{image}.exported"
    exported.unlink(missing_ok=True)
    svctl.host.run(["rbd", "export", "--no-progress", f"vms/{tenant}/{image}", str(exported)])
    return sha256(exported)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_the_same_import_again_finds_it_done(svctl: Svctl, red: str, tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "golden.raw", 64 * MIB, 4)
    command = ("image", "import", "golden", "--tenant", red, "--from", str(raw))
    svctl(*command)

    for _ in range(2):
        svctl(*command, "--snapshot", "base")

    (snapshot,) = svctl("snapshot", "list", "golden", "--tenant", red)
    assert snapshot["protected"] and snapshot["state"] == "ready"
    raw.write_bytes(b"x" * MIB)
    assert "already" in svctl.refused(*command).sentence
    svctl("snapshot", "unprotect", "golden@base", "--tenant", red)
    svctl("snapshot", "delete", "golden@base", "--tenant", red, "--yes")
    svctl("image", "delete", "golden", "--tenant", red, "--yes")


# The first is copied in two parts: whole GiBs are what an interrupted import goes on from.
@pytest.mark.parametrize(
    ("size_mib", "options"),
    [(1200, ()), (200, ("-c",)), (200, ("-o", "compat=0.10,cluster_size=4096"))],
)
def test_a_qcow2_file_becomes_the_same_disk_without_its_holes(
    svctl: Svctl, red: str, tmp_path: Path, size_mib: int, options: tuple[str, ...]
) -> None:
    raw = make_raw(tmp_path / "disk.raw", size_mib * MIB, 24)
    source = make_qcow2(raw, *options)

    svctl("image", "import", "disk", "--tenant", red, "--from", str(source), "--verify")

    assert content_in_ceph(svctl, red, "disk", tmp_path) == sha256(raw)
    usage = json.loads(svctl.host.run(["rbd", "du", f"vms/{red}/disk", "--format", "json"]).stdout)
    # Objects are 4 MiB, so 24 scattered MiB fill at most 24 of them.
    assert usage["images"][0]["used_size"] <= 24 * 4 * MIB
    svctl("image", "delete", "disk", "--tenant", red, "--yes")


def test_a_raw_file_of_odd_length_is_rounded_up_to_a_sector(
    svctl: Svctl, red: str, tmp_path: Path
) -> None:
    source = tmp_path / "odd.raw"
    source.write_bytes(os.urandom(1_000_001))

    image = svctl("image", "import", "odd", "--tenant", red, "--from", str(source))

    assert image["size_bytes"] == 1_000_448
    padded = hashlib.sha256(source.read_bytes() + bytes(447)).hexdigest()
    assert content_in_ceph(svctl, red, "odd", tmp_path) == padded
    svctl("image", "delete", "odd", "--tenant", red, "--yes")


def test_an_import_killed_half_way_goes_on_and_ends_the_same(
    svctl: Svctl, red: str, ceph_lab: Lab, tmp_path: Path
) -> None:
    raw = make_raw(tmp_path / "big.raw", 1792 * MIB, 168)
    command = ("image", "import", "big", "--tenant", red, "--from", str(raw))
    process = ceph_lab.ctl.popen(["svctl", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if int(line.split()[-2]) >= 60:
            break
    process.kill()
    process.wait()

    held = svctl("image", "get", "big", "--tenant", red)
    assert held["state"] == "creating" and svctl.used(red)["images"] == 1
    for refused in (
        svctl.refused("image", "attach", "big", "--tenant", red),
        svctl.refused("snapshot", "create", "big@s", "--tenant", red),
    ):
        assert "not complete" in refused.sentence
    again = svctl.run(*command, timeout_s=200)

    assert again.returncode == 0, again.stderr
    assert "going on at 1GiB" in again.stderr
    assert content_in_ceph(svctl, red, "big", tmp_path) == sha256(raw)
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == "big\n"
    svctl("image", "delete", "big", "--tenant", red, "--yes")
    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}


def test_an_interrupted_import_can_be_given_up(
    svctl: Svctl, red: str, ceph_lab: Lab, tmp_path: Path
) -> None:
    raw = make_raw(tmp_path / "gone.raw", 1024 * MIB, 200)
    command = ("image", "import", "gone", "--tenant", red, "--from", str(raw))
    process = ceph_lab.ctl.popen(["svctl", *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline()
    process.kill()
    process.wait()
    raw.write_bytes(b"another" * 4096)
    assert "begun otherwise" in svctl.refused(*command, "--format", "raw").sentence

    deadline = time.monotonic() + 60
    while svctl.run("image", "delete", "gone", "--tenant", red, "--yes").returncode:
        assert time.monotonic() < deadline
        time.sleep(1)

    assert svctl.images(red) == [] and svctl.used(red)["bytes"] == 0
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == ""


def _bad_files(directory: Path) -> dict[str, tuple[Path, str]]:
    raw = make_raw(directory / "whole.raw", 64 * MIB, 8)
    whole = make_qcow2(raw).read_bytes()
    compressed = make_qcow2(raw, "-c").read_bytes()
    secret = directory / "host-secret"
    secret.write_bytes(b"root:x:0:0\n" * 512)
    bad = {
        "truncated": (whole[: len(whole) * 2 // 3], "truncated"),
        "last-bytes-missing": (whole[:-4096], "cut short"),
        "header-only": (whole[:60], "cut short"),
        "compressed-truncated": (compressed[: len(compressed) // 2], "truncated"),
        "text": (b"#!/bin/sh\necho hello\n" * 100, "not a qcow2"),
        "empty": (b"", "empty"),
    }
    found = {}
    for name, (content, why) in bad.items():
        path = directory / f"{name}.qcow2"
        path.write_bytes(content)
        found[name] = (path, why)
    backed = directory / "backed.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(secret), "-F", "raw", str(backed)],
        check=True,
    )
    outside = directory / "outside.qcow2"
    data = f"data_file={directory / 'outside.data'},data_file_raw=on"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", data, str(outside), "8M"], check=True
    )
    vmdk = directory / "other.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qed", str(vmdk), "8M"], check=True)
    pipe = directory / "pipe.qcow2"
    os.mkfifo(pipe)
    return found | {
        "backing-file": (backed, "never followed"),
        "data-file": (outside, "never followed"),
        "qed": (vmdk, "not a qcow2"),
        "missing": (directory / "nowhere.qcow2", "does not exist"),
        "directory": (directory, "is a directory"),
        "device": (Path("/dev/zero"), "not a regular file"),
        "pipe": (pipe, "not a regular file"),
    }


def test_what_is_no_whole_image_is_refused_and_nothing_is_left(
    svctl: Svctl, red: str, tmp_path: Path
) -> None:
    for name, (path, why) in _bad_files(tmp_path).items():
        refused = svctl.refused("image", "import", name, "--tenant", red, "--from", str(path))

        assert why in refused.sentence, (name, refused.sentence)
        assert refused.exit_code in (1, 2)
    assert svctl.images(red) == []
    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == ""
