"""What `svctl tier plan` says, held against where the objects are after a write."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

MIB = 1 << 20


@pytest.fixture(scope="module")
def planned(svctl: Svctl, red: str) -> Iterator[str]:
    """A pool with an image `disk` of red's, and a pool `quick` to be its cache."""
    _forget(svctl, red)
    svctl("pool", "create", "plain", "--pg-num", "8")
    svctl("pool", "create", "quick", "--pg-num", "8")
    svctl("namespace", "create", red, "--pool", "plain")
    svctl("image", "create", "disk", "--tenant", red, "--pool", "plain", "--size", "64MiB")
    yield "plain"
    _forget(svctl, red)


def _forget(svctl: Svctl, tenant: str) -> None:
    if "cached by quick" in json.dumps(svctl("pool", "list")):
        svctl("tier", "remove", "plain", "--yes", "--wait", "60")
    for image in svctl("image", "list", "--tenant", tenant):
        if image["pool"] == "plain":
            for snapshot in svctl("snapshot", "list", image["name"], "--tenant", tenant):
                if snapshot["protected"]:
                    svctl("snapshot", "unprotect", snapshot["snapshot"], "--tenant", tenant)
                svctl("snapshot", "delete", snapshot["snapshot"], "--tenant", tenant, "--yes")
            svctl("image", "delete", image["name"], "--tenant", tenant, "--yes")
    if "plain" in {one["pool"] for one in svctl("namespace", "list", "--tenant", tenant)}:
        svctl("namespace", "delete", tenant, "--pool", "plain", "--yes")
    for pool in ("plain", "quick"):
        if any(one["name"] == pool for one in svctl("pool", "list")):
            svctl("pool", "delete", pool, "--yes")


def write(lab: Lab, key: dict[str, str], offset: int, text: str) -> None:
    where = (key["user"], key["key"], key["pool"], key["namespace"], key["name"])
    lab.ctl.run(probe_command("patch", *where, offset, text))


def data_objects(lab: Lab, pool: str) -> set[str]:
    """The data objects that the OSDs have of a pool itself, whatever tier is before it."""
    found = set()
    for line in lab.ctl.run(["rados", "--pool", pool, "ls", "--all"]).stdout.splitlines():
        name = line.split("\t")[1]
        if name.startswith("rbd_data."):
            found.add(name.rpartition(".")[2])
    return found


def object_of(offset: int) -> str:
    return f"{offset // (4 * MIB):016x}"


def test_a_first_write_goes_where_the_plan_says(
    svctl: Svctl, red: str, ceph_lab: Lab, planned: str
) -> None:
    key = svctl("image", "attach", "disk", "--tenant", red)
    for number, (hit_set, says, there, not_there) in enumerate(
        (
            ("none", "to the cache", "quick", "plain"),
            ("bloom", "through the cache to pool plain", "plain", "quick"),
        )
    ):
        size = ("--size", "1GiB", "--hit-set", hit_set)
        plan = svctl("tier", "plan", planned, "--cache", "quick", *size)
        svctl("tier", "create", planned, "--cache", "quick", *size)
        try:
            assert plan["first_write"].startswith(says)
            assert svctl("tier", "plan", planned)["first_write"] == plan["first_write"]
            assert plan["images"] == [f"plain/{red}/disk"] and plan["dirty_limit_bytes"] == 1 << 30
            offset = (3 + number) * 4 * MIB
            write(ceph_lab, key, offset, "written")
            assert object_of(offset) in data_objects(ceph_lab, there)
            # The base may list an object that is only in the cache when it is looked at through
            # its tier; so the one that must not have it is asked for it as what it is.
            if not_there == "quick":
                assert object_of(offset) not in data_objects(ceph_lab, not_there)
            else:
                until(lambda: svctl("tier", "show", planned)["dirty_objects"] > 0)
        finally:
            svctl("tier", "remove", planned, "--yes", "--wait", "60")
        assert object_of(offset) in data_objects(ceph_lab, "plain")


def test_a_read_is_served_by_the_cache_and_counted(
    svctl: Svctl, red: str, ceph_lab: Lab, planned: str
) -> None:
    key = svctl("image", "attach", "disk", "--tenant", red)
    write(ceph_lab, key, 0, "read me")
    svctl("tier", "create", planned, "--cache", "quick", "--size", "1GiB")
    where = (key["user"], key["key"], key["pool"], key["namespace"], key["name"])
    svctl.probe("reads", *where, 1)
    try:
        with ceph_lab.ctl.popen(
            ["svctl", "tier", "show", planned, "--window", "4", "-o", "json"],
            stdout=subprocess.PIPE,
            text=True,
        ) as watching:
            svctl.probe("reads", *where, 200)
            output, _ = watching.communicate(timeout=60)
        shown = json.loads(output)
        assert object_of(0) in data_objects(ceph_lab, "quick")
        assert shown["hit_ratio"] is not None and shown["hit_ratio"] > 0.8
        assert shown["settings"]["size"] == 1 << 30
        assert {"flushed_objects_per_s", "promoted_objects_per_s", "dirty_bytes"} <= set(shown)
        (listed,) = (one for one in svctl("tier", "list") if one["target"] == planned)
        assert (listed["backend"], listed["cache"]) == ("pool", "quick")
    finally:
        svctl("tier", "remove", planned, "--yes", "--wait", "60")


def test_over_a_read_only_cache_tenants_read_and_nobody_writes(
    svctl: Svctl, red: str, ceph_lab: Lab, planned: str
) -> None:
    key = svctl("image", "attach", "disk", "--tenant", red)
    where = (key["user"], key["key"], key["pool"], key["namespace"], key["name"])
    create = ("tier", "create", planned, "--cache", "quick", "--size", "1GiB", "--mode", "readonly")
    assert "no protected snapshot" in svctl.refused(*create).sentence
    write(ceph_lab, key, 8 * MIB, "golden")
    svctl("snapshot", "create", "disk@base", "--protect", "--tenant", red)
    holder = ceph_lab.ctl.popen(
        probe_command("holder", *where), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline()
        assert "open for writing on" in svctl.refused(*create).sentence
        assert not any(one["target"] == planned for one in svctl("tier", "list"))
        holder.stdin.close()
    assert holder.returncode == 0

    tier = svctl(*create)
    try:
        assert (tier["mode"], tier["tenants_may"]) == ("readonly", "read")
        # The tenant's key, with stock calls: Ceph itself refuses whatever writes.
        tried = svctl.probe("read_only", *where)
        assert tried["refused"] and not tried["done"], tried
        assert tried["read"].startswith("golden")
        assert object_of(8 * MIB) in data_objects(ceph_lab, "quick")
        # The operator's commands, too.
        for arguments in (
            ("image", "resize", "disk", "--size", "128MiB"),
            ("snapshot", "create", "disk@more"),
            ("image", "create", "new", "--pool", planned, "--size", "1MiB"),
            ("image", "delete", "disk", "--yes"),
        ):
            refused = svctl.refused(*arguments, "--tenant", red)
            assert "read-only cache" in refused.sentence or "snapshots" in refused.sentence
        # What it is for: clones elsewhere. They stay known, and readable while the tier goes.
        svctl("image", "clone", "disk@base", "child", "--tenant", red, "--pool", "vms")
        child = svctl("image", "attach", "child", "--tenant", red)
        reads = (child["user"], child["key"], child["pool"], child["namespace"], "child")
        reading = ceph_lab.ctl.popen(
            probe_command("reads", *reads, 0, 8 * MIB),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with reading:
            assert reading.stdin is not None and reading.stdout is not None
            assert reading.stdout.readline()
            svctl("tier", "remove", planned, "--yes")
            reading.stdin.close()
            counted = json.loads(reading.stdout.read())
        assert counted["reads"] > 0 and counted["errors"] == [] and counted["wrong"] == 0
    finally:
        if any(one["target"] == planned for one in svctl("tier", "list")):
            svctl("tier", "remove", planned, "--yes", "--wait", "60")
    children = ceph_lab.ctl.run(["rbd", "children", f"plain/{red}/disk@base"]).stdout
    assert f"vms/{red}/child" in children
    write(ceph_lab, key, 0, "again")
    svctl("image", "delete", "child", "--tenant", red, "--yes")


def test_a_write_back_cache_becomes_read_only_and_writable_again_with_its_bytes(
    svctl: Svctl, red: str, ceph_lab: Lab, planned: str
) -> None:
    key = svctl("image", "attach", "disk", "--tenant", red)
    where = (key["user"], key["key"], key["pool"], key["namespace"], key["name"])
    if not svctl("snapshot", "list", "disk", "--tenant", red):
        svctl("snapshot", "create", "disk@base", "--protect", "--tenant", red)
    svctl("tier", "create", planned, "--cache", "quick", "--size", "1GiB")
    try:
        write(ceph_lab, key, 16 * MIB, "golden two")
        sealed = svctl("tier", "set", planned, "--mode", "readonly")
        assert (sealed["mode"], sealed["tenants_may"]) == ("readonly", "read")
        assert svctl.probe("read_only", *where, 16 * MIB)["read"].startswith("golden two")
        opened = svctl("tier", "set", planned, "--mode", "writeback")
        assert (opened["mode"], opened["tenants_may"]) == ("writeback", "read and write")
        write(ceph_lab, key, 16 * MIB, "changed")
    finally:
        svctl("tier", "remove", planned, "--yes", "--wait", "60")
    assert svctl.probe("read_only", *where, 16 * MIB)["read"].startswith("changed")
