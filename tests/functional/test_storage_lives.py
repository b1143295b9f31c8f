"""What happens to images between their making and their end: renamed, rolled back, limited,
flattened, thrown away and had back."""

import itertools
import json

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


# Operations per second, and for how many of those a guest is watched at most.
LIMIT = 10
SECONDS = 60


def die(lab: Lab, when: str, function: str, *command: str) -> None:
    died = lab.ctl.run(probe_command("dying", when, function, 1, *command), check=False)
    assert died.returncode == 9, died.stderr


def listed(svctl: Svctl, tenant: str) -> list[str]:
    return svctl.host.run(["rbd", "ls", f"vms/{tenant}"]).stdout.split()


@pytest.mark.parametrize(
    ("when", "function"),
    [
        ("before", "storvirt.backends.naming.give"),
        ("before", "storvirt.backends.naming._list_as"),
        ("after", "storvirt.backends.naming._list_as"),
        ("after", "storvirt.backends.naming.give"),
    ],
)
def test_a_rename_that_was_cut_off_is_finished_by_the_same_command(
    svctl: Svctl, red: str, ceph_lab: Lab, when: str, function: str
) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "old", *tenant, "--size", "8MiB")
    die(ceph_lab, when, function, "image", "rename", "old", "new", *tenant)
    assert "image rename old new" in svctl.refused("image", "attach", "new", *tenant).sentence

    svctl.run("image", "rename", "old", "new", *tenant)

    assert (svctl.images(red), listed(svctl, red)) == (["new"], ["new"])
    svctl("image", "delete", "new", *tenant, "--yes")


def test_a_name_that_is_taken_is_not_given(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    for name in ("one", "two"):
        svctl("image", "create", name, *tenant, "--size", "8MiB")
    svctl.host.run(["rbd", "create", f"vms/{red}/theirs", "--size", "8M"])

    for name, words in (("two", "already"), ("theirs", "somebody else"), ("a/b", "not usable")):
        assert words in svctl.refused("image", "rename", "one", name, *tenant).sentence

    assert svctl.images(red) == ["one", "two"]
    svctl.host.run(["rbd", "rm", "--no-progress", f"vms/{red}/theirs"])
    svctl("image", "delete", "one", "two", *tenant, "--yes")


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_in_the_trash_counts_and_comes_back_under_any_name(
    svctl: Svctl, red: str, ceph_lab: Lab, when: str
) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "lost", *tenant, "--size", "8MiB")
    used = svctl.used(red)
    throw = ("image", "delete", "lost", *tenant, "--trash")
    die(ceph_lab, when, "storvirt.backends.trash.move", *throw)
    until(lambda: svctl.run(*throw).returncode == 0, timeout_s=60)
    assert svctl.images(red) == [] and svctl.used(red) == used
    svctl("image", "create", "lost", *tenant, "--size", "16MiB")

    assert "--name" in svctl.refused("trash", "restore", "lost", *tenant).sentence
    restore = ("trash", "restore", "lost", "--name", "found", *tenant)
    die(ceph_lab, when, "storvirt.backends.trash.restore", *restore)
    svctl.run(*restore)

    assert svctl("image", "get", "found", *tenant)["size_bytes"] == 8 << 20
    assert listed(svctl, red) == ["found", "lost"]
    assert svctl("trash", "list", *tenant) == []
    assert svctl("status")["unfinished"] == []
    svctl("image", "delete", "found", "lost", *tenant, "--yes")


def test_the_trash_is_purged_when_its_time_is_over_or_when_asked(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    before = svctl.used(red)
    for name, expire in (("soon", "0s"), ("later", "1h")):
        svctl("image", "create", name, *tenant, "--size", "8MiB")
        svctl("image", "delete", name, *tenant, "--trash", "--expire", expire)

    svctl.run("trash", "purge", *tenant)

    assert [one["name"] for one in svctl("trash", "list", *tenant)] == ["later"]
    assert "has no image never" in svctl.refused("trash", "purge", "never", *tenant, "-y").sentence
    assert "--yes" in svctl.refused("trash", "purge", "--all", *tenant).sentence
    svctl.run("trash", "purge", "later", *tenant, "--yes")
    assert svctl.used(red) == before
    assert svctl.host.run(["rbd", "trash", "ls", f"vms/{red}"]).stdout == ""
    for expire in ("7", "-1d", "4000d", "soon"):
        refused = svctl.refused("image", "delete", "x", "--trash", "--expire", expire, *tenant)
        assert "is not a time" in refused.sentence


def test_a_rollback_brings_bytes_and_size_back(svctl: Svctl, red: str, ceph_lab: Lab) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "disk", *tenant, "--size", "8MiB")
    write = ["rbd", "bench", "--io-type", "write", "--io-total", "1M", f"vms/{red}/disk"]
    digest = f"rbd export --no-progress vms/{red}/disk - | sha256sum"
    ceph_lab.ctl.run(write)
    then = ceph_lab.ctl.run(["sh", "-c", digest]).stdout
    svctl("snapshot", "create", "disk@then", *tenant)
    svctl("image", "resize", "disk", *tenant, "--size", "16MiB")
    ceph_lab.ctl.run([*write, "--io-pattern", "rand"])
    back = ("snapshot", "rollback", "disk@then", *tenant, "--yes")
    die(ceph_lab, "before", "storvirt.backends.images.roll_back", *back)
    assert "rolled back" in svctl.refused("image", "attach", "disk", *tenant).sentence

    until(lambda: svctl.run(*back).returncode == 0, timeout_s=60)

    assert ceph_lab.ctl.run(["sh", "-c", digest]).stdout == then
    assert svctl("image", "get", "disk", *tenant)["size_bytes"] == 8 << 20
    assert svctl.used(red)["bytes"] == 8 << 20
    assert (
        "has no snapshot"
        in svctl.refused("snapshot", "rollback", "disk@never", *tenant, "-y").sentence
    )
    svctl("snapshot", "delete", "disk@then", *tenant, "--yes")
    svctl("image", "delete", "disk", *tenant, "--yes")


def test_a_flat_clone_needs_its_parent_no_longer(svctl: Svctl, red: str, ceph_lab: Lab) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "golden", *tenant, "--size", "16MiB")
    write = ["rbd", "bench", "--io-type", "write", "--io-total", "1M", f"vms/{red}/golden"]
    ceph_lab.ctl.run(write)
    svctl("snapshot", "create", "golden@base", *tenant, "--protect")
    svctl("image", "clone", "golden@base", "web", *tenant)
    used = {one["name"]: one["used_bytes"] for one in svctl("image", "du", *tenant)}
    assert used["web"] == 0
    flatten = ("image", "flatten", "web", *tenant)
    die(ceph_lab, "after", "storvirt.backends.images.flatten", *flatten)

    svctl.run(*flatten)

    assert svctl("image", "get", "web", *tenant)["parent"] is None
    assert "is not a clone" in svctl.refused(*flatten).sentence
    (used_now,) = (
        one["used_bytes"] for one in svctl("image", "du", *tenant) if one["name"] == "web"
    )
    assert used_now > 0
    svctl("snapshot", "unprotect", "golden@base", *tenant)
    svctl("snapshot", "delete", "golden@base", *tenant, "--yes")
    svctl("image", "delete", "golden", "web", *tenant, "--yes")


def test_clones_of_clones_are_refused_beyond_the_depth_or_copied_whole(
    svctl: Svctl, red: str
) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "d0", *tenant, "--size", "8MiB")
    for depth in range(2):
        svctl("snapshot", "create", f"d{depth}@s", *tenant, "--protect")
        svctl("image", "clone", f"d{depth}@s", f"d{depth + 1}", *tenant)
    svctl("snapshot", "create", "d2@s", *tenant, "--protect")

    refused = svctl.refused("image", "clone", "d2@s", "d3", *tenant, "--max-depth", "2")
    svctl("image", "clone", "d2@s", "d3", *tenant, "--max-depth", "2", "--flatten-deep")

    assert "3 generations deep" in refused.sentence and "--flatten-deep" in refused.sentence
    assert svctl("image", "get", "d3", *tenant)["depends_on"] is None
    for depth in (3, 2, 1, 0):
        if depth < 3:
            svctl("snapshot", "unprotect", f"d{depth}@s", *tenant)
            svctl("snapshot", "delete", f"d{depth}@s", *tenant, "--yes")
        svctl("image", "delete", f"d{depth}", *tenant, "--yes")


def test_layout_features_and_limits_are_as_stock_tools_see_them(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    svctl(
        *("image", "create", "wide", *tenant, "--size", "8MiB", "--object-size", "1MiB"),
        *("--stripe-unit", "64KiB", "--stripe-count", "4", "--no-feature", "fast-diff"),
    )

    svctl("image", "set", "wide", *tenant, "--feature", "fast-diff", "--iops-limit", "100")

    info = json.loads(svctl.host.run(["rbd", "info", f"vms/{red}/wide", "--format=json"]).stdout)
    assert (info["object_size"], info["stripe_unit"], info["stripe_count"]) == (
        1 << 20,
        64 << 10,
        4,
    )
    assert "fast-diff" in info["features"] and info["flags"] == []
    limits = svctl("image", "get", "wide", *tenant)["limits"]
    assert limits == {"iops": 100}
    listed_limits = svctl.host.run(["rbd", "config", "image", "list", f"vms/{red}/wide"]).stdout
    assert any(
        line.split()[:2] == ["rbd_qos_iops_limit", "100"] for line in listed_limits.splitlines()
    )
    assert svctl("image", "set", "wide", *tenant, "--iops-limit", "0")["limits"] == {}
    svctl("image", "delete", "wide", *tenant, "--yes")


def test_a_limit_binds_a_guest_that_runs(svctl: Svctl, red: str, ceph_lab: Lab) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "busy", *tenant, "--size", "8MiB")
    key = svctl("image", "attach", "busy", *tenant)
    guest = ceph_lab.ctl.popen(
        probe_command("pace", key["user"], key["key"], "vms", red, "busy"),
        stdin=-1,
        stdout=-1,
        text=True,
    )
    with guest:
        assert guest.stdin is not None and guest.stdout is not None
        paces = (int(line) for line in guest.stdout)
        # What a busy machine does in one of its better seconds.
        assert any(pace > 2 * LIMIT for pace in itertools.islice(paces, SECONDS))

        svctl("image", "set", "busy", *tenant, "--iops-limit", str(LIMIT))

        # The seconds before the limit were printed meanwhile; three in a row are no accident.
        slow = 0
        for pace in itertools.islice(paces, SECONDS):
            slow = slow + 1 if pace <= 1.5 * LIMIT else 0
            if slow == 3:
                break
        assert slow == 3
        svctl("snapshot", "create", "busy@live", *tenant)
        guest.stdin.close()
        assert guest.wait(60) == 0
    svctl("snapshot", "delete", "busy@live", *tenant, "--yes")
    svctl("image", "delete", "busy", *tenant, "--yes")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "d", "--size", "8MiB", "--object-size", "3MiB"), "object size 3MiB"),
        (("create", "d", "--size", "8MiB", "--stripe-unit", "64KiB"), "needs both"),
        (("create", "d", "--size", "8MiB", "--no-feature", "exclusive-lock"), "needs exclusive"),
        (("create", "d", "--size", "8MiB", "--feature", "journaling"), "is not offered"),
        (("set", "d"), "nothing to set"),
        (("set", "d", "--iops-limit", "-5"), "--iops-limit -5"),
        (("set", "d", "--bps-limit", "1KiB"), "--bps-limit 1024"),
        (("set", "d", "--iops-burst", "50"), "goes with"),
        (("delete", "d", "--expire", "3d", "--yes"), "--expire goes with --trash"),
        (("du", "d@s"), "not usable"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(
    svctl: Svctl, red: str, arguments: tuple[str, ...], words: str
) -> None:
    refused = svctl.refused("image", *arguments, "--tenant", red)

    assert refused.exit_code == 2 and words in refused.sentence, refused.sentence
    assert svctl.images(red) == []
