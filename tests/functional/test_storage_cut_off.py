"""Commands that are killed at each step that they take in Ceph or the database, and run again."""

import json
import signal
import subprocess

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


def die(lab: Lab, when: str, function: str, call: int, *command: str) -> None:
    argv = probe_command("dying", when, f"storvirt.{function}", call, *command)
    died = lab.ctl.run(argv, check=False)
    assert died.returncode == 9, died.stderr


def again(svctl: Svctl, *command: str) -> None:
    # Ceph remembers for a while that the killed one had an image open.
    until(lambda: svctl.run(*command).returncode == 0, timeout_s=60)


def members(svctl: Svctl, tenant: str) -> list[str]:
    listed = svctl.host.run(["rbd", "group", "image", "list", f"vms/{tenant}/vm"]).stdout
    return sorted(line.rpartition("/")[2].strip() for line in listed.splitlines())


@pytest.mark.parametrize(
    ("when", "step"),
    [("after", 1), ("before", 2)],
)
def test_a_group_is_filled_emptied_and_deleted_whichever_step_it_was_cut_off_at(
    svctl: Svctl, red: str, ceph_lab: Lab, when: str, step: int
) -> None:
    mine = ("--tenant", red)
    for name in ("root", "data"):
        svctl("image", "create", name, *mine, "--size", "8MiB")
    create, delete = ("group", "create", "vm", *mine), ("group", "delete", "vm", *mine, "--yes")
    add = ("group", "add", "vm", "root", "data", *mine)
    remove = ("group", "remove", "vm", "root", "data", *mine)

    die(ceph_lab, when, "backends.groups.create", 1, *create)
    again(svctl, *create)
    die(ceph_lab, when, "backends.groups.add", step, *add)
    again(svctl, *add)
    assert members(svctl, red) == ["data", "root"]
    die(ceph_lab, when, "backends.groups.drop", step, *remove)
    again(svctl, *remove)
    assert members(svctl, red) == []
    die(ceph_lab, when, "backends.groups.remove", 1, *delete)
    again(svctl, *delete)

    assert svctl("group", "list", *mine) == []
    assert svctl.host.run(["rbd", "group", "list", f"vms/{red}"]).stdout == ""
    assert not [one for one in svctl("status")["unfinished"] if red in one]
    svctl("image", "delete", "root", "data", *mine, "--yes")


@pytest.mark.parametrize(
    ("when", "function", "call"),
    [
        ("after", "backends.trash.remove", 2),
        ("after", "service.admission.forget_all", 1),
    ],
)
def test_a_purge_that_was_cut_off_is_finished_by_the_next(
    svctl: Svctl, red: str, ceph_lab: Lab, when: str, function: str, call: int
) -> None:
    mine, before = ("--tenant", red), svctl.used(red)
    svctl("image", "create", "old", "--count", "3", *mine, "--size", "8MiB")
    svctl("image", "delete", "old", "--count", "3", *mine, "--trash", "--expire", "0s")
    die(ceph_lab, when, function, call, "trash", "purge", *mine)

    again(svctl, "trash", "purge", *mine)

    assert svctl("trash", "list", *mine) == [] and svctl.used(red) == before
    assert svctl.host.run(["rbd", "trash", "ls", f"vms/{red}"]).stdout == ""


def test_what_expires_is_purged_by_one_that_stays_and_a_killed_one_leaves_nobody(
    svctl: Svctl, red: str, ceph_lab: Lab
) -> None:
    mine, before = ("--tenant", red), svctl.used(red)

    def throw_away(name: str) -> None:
        svctl("image", "create", name, *mine, "--size", "8MiB")
        svctl("image", "delete", name, *mine, "--trash", "--expire", "1s")

    def purged() -> bool:
        return bool(svctl("trash", "list", *mine) == [])

    for ending in (signal.SIGKILL, signal.SIGTERM):
        throw_away("first")
        with ceph_lab.ctl.popen(
            ["svctl", "trash", "purge", "--every", "1s", *mine],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as staying:
            try:
                until(purged, timeout_s=60)
                throw_away("second")
                until(purged, timeout_s=60)
            finally:
                staying.send_signal(ending)

    assert svctl.used(red) == before
    until(lambda: "trash purge" not in svctl.host.run(["ps", "-e", "-o", "args"]).stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--every", "soon"), "is not a time"),
        (("--every", "0s"), "would never rest"),
        (("--every", "1h", "--all"), "--every is for what expires"),
    ],
)
def test_a_purge_that_cannot_be_repeated_is_refused(
    svctl: Svctl, arguments: tuple[str, ...], words: str
) -> None:
    refused = svctl.refused("trash", "purge", *arguments)

    assert refused.exit_code == 2 and words in refused.sentence


@pytest.mark.parametrize("when", ["before", "after"])
def test_limits_and_features_that_were_cut_off_are_set_by_the_same_command(
    svctl: Svctl, red: str, ceph_lab: Lab, when: str
) -> None:
    mine = ("--tenant", red)
    svctl("image", "create", "disk", *mine, "--size", "8MiB", "--no-feature", "fast-diff")
    set_ = ("image", "set", "disk", *mine, "--iops-limit", "100", "--feature", "fast-diff")

    for function in ("switch_features", "set_metadata"):
        die(ceph_lab, when, f"backends.images.{function}", 1, *set_)
    again(svctl, *set_)

    found = svctl("image", "get", "disk", *mine)
    assert found["limits"] == {"iops": 100} and "fast-diff" in found["features"]
    flags = json.loads(svctl.host.run(["rbd", "info", f"vms/{red}/disk", "--format=json"]).stdout)
    assert flags["flags"] == []
    until(lambda: svctl.run("image", "delete", "disk", *mine, "--yes").returncode == 0, 60)


@pytest.mark.parametrize(("when", "call"), [("before", 3), ("after", 1)])
def test_pins_that_were_cut_off_are_set_or_taken_back_by_the_same_command(
    svctl: Svctl, red: str, ceph_lab: Lab, when: str, call: int
) -> None:
    mine = ("--tenant", red)
    svctl("image", "create", "hot", *mine, "--size", "32MiB")
    filling = ["rbd", "bench", "--io-type=write", "--io-size=1M", "--io-total=32M"]
    svctl.host.run([*filling, f"vms/{red}/hot"])
    pin = ("pin", "hot", *mine, "--host", "h1", "--budget", "16")
    before = upmaps(svctl)

    die(ceph_lab, when, "backends.upmaps._set", call, *pin)
    svctl(*pin)
    ranking = svctl("place", "hot", *mine, "--objective", "bytes")["ranking"]
    assert {one["host"]: one["local"] for one in ranking}["h1"] == 1
    die(ceph_lab, "after", "backends.upmaps.restore", 1, "unpin", "hot", *mine)
    svctl("unpin", "hot", *mine)

    assert upmaps(svctl) == before
    assert not [one for one in svctl("status")["unfinished"] if red in one]
    until(lambda: svctl.run("image", "delete", "hot", *mine, "--yes").returncode == 0, 60)


def upmaps(svctl: Svctl) -> list[object]:
    dump = json.loads(svctl.host.run(["ceph", "osd", "dump", "--format=json"]).stdout)
    return list(dump["pg_upmap"])
