"""No command hangs: whatever of Ceph does not answer, each ends within its deadline, with a
sentence. This is about time by nature; what takes longer beside sixty others is tried alone."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab import ceph
from lab.host import Host
from lab.lab import Lab
from tests.functional import verbs
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

TIMEOUT_S = 4
GRACE_S = 1.0
POOL, TENANT = "deadline", "deadline"
HOSTS = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def furnished(svctl: Svctl) -> Iterator[Svctl]:
    """A pool with a tenant's images in it, and some that are to be deleted."""
    if any(pool["name"] == POOL for pool in svctl("pool", "list")):
        _clear(svctl)
    tenant = ("--tenant", TENANT)
    for name in (POOL, f"{POOL}-gone"):
        svctl("pool", "create", name, "--pg-num", "4")
    for name in (TENANT, f"{TENANT}-4"):
        svctl("tenant", "create", name)
    svctl("namespace", "create", TENANT, "--pool", POOL)
    for name in ("disk", "gone", "old"):
        svctl("image", "create", name, *tenant, "--size", "8MiB")
    for name in ("kept", "gone"):
        svctl("snapshot", "create", f"disk@{name}", *tenant)
    svctl("snapshot", "protect", "disk@kept", *tenant)
    yield svctl
    # What the faults cut short must not be in the way of this.
    _clear(svctl)


def test_a_stopped_monitor_ends_every_command_in_time(furnished: Svctl, ceph_lab: Lab) -> None:
    ceph_lab.ctl.pause(ceph.MONITOR)
    try:
        ended = run_all(ceph_lab.ctl)
    finally:
        ceph_lab.ctl.resume(ceph.MONITOR)
        settled(furnished)

    assert failed(ended) >= {("image", "create"), ("pool", "list"), ("status",), ("place",)}


def test_stopped_osds_end_every_command_in_time(furnished: Svctl, ceph_lab: Lab) -> None:
    for name in HOSTS:
        ceph_lab.host(name).pause(ceph.OSD)
    try:
        ended = run_all(ceph_lab.ctl)
    finally:
        for name in HOSTS:
            ceph_lab.host(name).resume(ceph.OSD)
        settled(furnished)

    assert failed(ended) >= {("image", "create"), ("image", "get"), ("snapshot", "create")}


@pytest.mark.usefixtures("furnished")
def test_a_full_pool_ends_every_command_in_time(ceph_lab: Lab) -> None:
    def is_full() -> bool:
        dump = json.loads(ceph_lab.ctl.run(["ceph", "osd", "dump", "--format=json"]).stdout)
        flags = {pool["pool_name"]: pool["flags_names"] for pool in dump["pools"]}
        return "full" in flags[POOL].split(",")

    quota = ["ceph", "osd", "pool", "set-quota", POOL, "max_objects"]
    ceph_lab.ctl.run([*quota, "1"])
    try:
        until(is_full, timeout_s=60)
        ended = run_all(ceph_lab.ctl)
    finally:
        ceph_lab.ctl.run([*quota, "0"])
        until(lambda: not is_full(), timeout_s=60)

    assert failed(ended) >= {("image", "create")}


def test_a_cut_network_ends_every_command_in_time(furnished: Svctl, ceph_lab: Lab) -> None:
    ceph_lab.ctl.run(["ip", "link", "set", "h1", "down"])
    try:
        ended = run_all(ceph_lab.host("h1"))
    finally:
        ceph_lab.ctl.run(["ip", "link", "set", "h1", "up"])
        settled(furnished)

    assert failed(ended) >= {("image", "create"), ("pool", "list"), ("status",), ("place",)}


def run_all(host: Host) -> list[dict[str, Any]]:
    """How every verb ended; each in time, with a result or a sentence."""
    commands = [
        verbs.arguments(path, command, tenant=TENANT, pool=POOL)
        for path, command in verbs.all_verbs()
    ]
    ended = _run(host, commands)
    late = [one["arguments"] for one in ended if one["seconds"] > TIMEOUT_S + GRACE_S]
    ended = [one for one in ended if one["arguments"] not in late]
    ended += [one for command in late for one in _run(host, [command])]
    for one in ended:
        said = one["stderr"].strip()
        assert one["seconds"] <= TIMEOUT_S + GRACE_S, one
        assert one["code"] in (0, 1, 2), one
        assert "Traceback" not in said, one
        assert one["code"] != 1 or said.endswith("."), one
    return ended


def failed(ended: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    known = {path for path, _ in verbs.all_verbs()}
    return {
        path
        for one in ended
        if one["code"] == 1
        for path in known
        if tuple(one["arguments"][: len(path)]) == path
    }


def settled(svctl: Svctl) -> None:
    """Wait until the cluster is as it was."""
    command = ["ceph", "--connect-timeout=5", "status", "--format=json"]

    def well() -> bool:
        done = svctl.host.run(command, check=False)
        if done.returncode:
            return False
        status = json.loads(done.stdout)
        if status["osdmap"]["num_up_osds"] < len(HOSTS):
            return False
        states = status["pgmap"].get("pgs_by_state", [])
        return all(state["state_name"].startswith("active+clean") for state in states)

    until(well, timeout_s=120)


def _run(host: Host, commands: list[list[str]]) -> list[dict[str, Any]]:
    done = host.run(probe_command("deadlines", TIMEOUT_S, json.dumps(commands)), timeout_s=120)
    return list(json.loads(done.stdout))


def _clear(svctl: Svctl) -> None:
    # One that was cut short goes on only under its own name.
    svctl.run("image", "rename", "old", "renamed", "--tenant", TENANT)
    for name in (TENANT, f"{TENANT}-2", f"{TENANT}-4"):
        svctl.remove_tenant(name)
    known = {pool["name"] for pool in svctl("pool", "list")}
    for name in (POOL, f"{POOL}-2", f"{POOL}-gone"):
        if name in known:
            svctl("pool", "delete", name, "--yes")
