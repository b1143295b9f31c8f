"""Groups: one moment of several images, also of a guest that writes."""

import json
from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

DISKS = ("root", "data")
MOMENTS = 4


@pytest.fixture
def disks(svctl: Svctl, red: str) -> Iterator[tuple[str, ...]]:
    """Two images in the group `vm`; the options that name their tenant."""
    tenant = ("--tenant", red)
    for name in DISKS:
        svctl("image", "create", name, *tenant, "--size", "8MiB")
    svctl("group", "create", "vm", *tenant)
    svctl("group", "add", "vm", *DISKS, *tenant)
    yield tenant
    for moment in svctl("group", "get", "vm", *tenant)["snapshots"]:
        svctl.run("group", "delete-snapshot", f"vm@{moment}", *tenant, "--yes")
    svctl("group", "delete", "vm", *tenant, "--yes")
    svctl("image", "delete", *DISKS, *tenant, "--yes")
    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}


def test_the_disks_of_a_guest_that_writes_are_kept_at_one_moment(
    svctl: Svctl, red: str, disks: tuple[str, ...], ceph_lab: Lab
) -> None:
    key = svctl("image", "attach", "root", *disks)
    guest = ceph_lab.ctl.popen(
        probe_command("stamper", key["user"], key["key"], "vms", red, *DISKS),
        stdin=-1,
        stdout=-1,
        text=True,
    )
    with guest:
        assert guest.stdin is not None and guest.stdout is not None
        assert json.loads(guest.stdout.readline()) == {"writing": True}

        for number in range(MOMENTS):
            svctl("group", "snapshot", f"vm@m{number}", *disks)

        guest.stdin.close()
        assert guest.wait(60) == 0
    assert svctl.used(red)["snapshots"] == MOMENTS * len(DISKS)
    stamps = svctl.probe("stamps", "vms", red, *DISKS)
    pairs = list(zip(stamps["root"], stamps["data"], strict=True))
    assert len(pairs) == MOMENTS
    # It writes to root first, so root may be one stamp ahead.
    assert all(root - data in (0, 1) for root, data in pairs), pairs
    assert pairs[0][0] < pairs[-1][0]


def test_a_group_goes_back_whole(svctl: Svctl, disks: tuple[str, ...], ceph_lab: Lab) -> None:
    tenant = disks[1]

    def digests() -> list[str]:
        commands = [f"rbd export --no-progress vms/{tenant}/{name} - | sha256sum" for name in DISKS]
        return [ceph_lab.ctl.run(["sh", "-c", command]).stdout for command in commands]

    before = digests()
    svctl("group", "snapshot", "vm@then", *disks)
    for name in DISKS:
        write = ["rbd", "bench", "--io-type", "write", "--io-total", "64K", f"vms/{tenant}/{name}"]
        ceph_lab.ctl.run(write)
    assert digests() != before
    back = ("group", "rollback", "vm@then", *disks, "--yes")
    died = ceph_lab.ctl.run(
        probe_command("dying", "before", "storvirt.backends.groups.roll_back", 1, *back),
        check=False,
    )
    assert died.returncode == 9
    assert "rolled back" in svctl.refused("image", "attach", "data", *disks).sentence

    svctl.run(*back)

    assert digests() == before
    assert svctl("image", "attach", "data", *disks)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_group_snapshot_that_was_cut_off_is_finished_and_counts_once(
    svctl: Svctl, red: str, disks: tuple[str, ...], ceph_lab: Lab, when: str
) -> None:
    command = ("group", "snapshot", "vm@once", *disks)
    died = ceph_lab.ctl.run(
        probe_command("dying", when, "storvirt.backends.groups.take_snapshot", 1, *command),
        check=False,
    )
    assert died.returncode == 9

    until(lambda: svctl.run(*command).returncode == 0, timeout_s=60)

    assert svctl("group", "get", "vm", *disks)["snapshots"] == ["once"]
    assert svctl.used(red)["snapshots"] == len(DISKS)
    assert "already" in svctl.refused(*command).sentence


def test_a_group_holds_its_images_and_its_snapshots_hold_the_group(
    svctl: Svctl, red: str, disks: tuple[str, ...]
) -> None:
    svctl("tenant", "set", red, "--quota", "snapshots=1")
    refused = svctl.refused("group", "snapshot", "vm@m", *disks)
    svctl("tenant", "set", red, "--quota", "snapshots=1000")
    assert "quota of snapshots" in refused.sentence
    svctl("group", "snapshot", "vm@m", *disks)

    for arguments, words in (
        (("image", "delete", "root", "--yes"), "is in a group"),
        (("group", "remove", "vm", "root"), "is in snapshot m"),
        (("group", "delete", "vm", "--yes"), "has snapshots: m"),
        (("group", "get", "never"), "has no group"),
        (("group", "create", "vm"), "already"),
        (("group", "create", "a/b"), "not usable"),
        (("group", "add", "vm", "never"), "has no image never"),
        (("group", "rollback", "vm@never", "--yes"), "has no snapshot never"),
        (("image", "resize", "root", "--size", "4MiB", "--shrink", "--yes"), "of its group"),
    ):
        assert words in svctl.refused(*arguments, *disks).sentence

    svctl("group", "delete-snapshot", "vm@m", *disks, "--yes")
    svctl("group", "remove", "vm", "root", *disks)
    assert svctl("group", "get", "vm", *disks)["images"] == ["data"]
    svctl("group", "add", "vm", "root", *disks)
