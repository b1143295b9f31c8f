"""Pools: erasure-coded data, device classes, settings, and that nothing of them is left behind."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


@pytest.fixture(scope="module")
def archive(svctl: Svctl) -> Iterator[str]:
    """A pool whose images have their data in an erasure-coded one, with two tenants in it."""
    _clear(svctl)
    svctl("pool", "create", "archive", "--erasure", "2+1", "--pg-num", "4", "--replicas", "2")
    for tenant in ("keeper", "nosy"):
        svctl("tenant", "create", tenant)
        svctl("namespace", "create", tenant, "--pool", "archive")
    yield "archive"
    _clear(svctl)


def test_data_is_erasure_coded_and_headers_are_not(svctl: Svctl, archive: str) -> None:
    svctl("image", "create", "disk", "--tenant", "keeper", "--size", "16MiB")
    svctl("image", "create", "other", "--tenant", "nosy", "--size", "16MiB")
    mine = svctl("image", "attach", "disk", "--tenant", "keeper")
    theirs = svctl("image", "attach", "other", "--tenant", "nosy")

    written = _rbd(svctl, mine, "bench", "--io-type=write", "--io-size=65536", "--io-total=1M")
    crossed = _rbd(svctl, {**theirs, "namespace": "keeper", "name": "disk"}, "info")

    assert written == 0
    assert crossed != 0
    headers, data = (_objects(svctl, pool, "keeper") for pool in (archive, f"{archive}.data"))
    assert data and all(name.startswith("rbd_data.") for name in data)
    assert headers and not any(name.startswith("rbd_data.") for name in headers)
    # What the other tenant may not do in the first pool it may not in the second.
    raw = ["rados", "--pool", f"{archive}.data", "--namespace", "keeper", *_as(theirs)]
    assert svctl.host.run([*raw, "get", data[0], "/dev/null"], check=False).returncode != 0
    assert svctl.host.run([*raw, "rm", data[0]], check=False).returncode != 0
    pool = svctl("pool", "get", archive)
    assert (pool["erasure"], pool["data_pool"], pool["replicas"]) == ("2+1", "archive.data", 2)


@pytest.mark.usefixtures("archive")
def test_clones_and_stock_tools_follow_the_data_pool(svctl: Svctl) -> None:
    svctl("image", "create", "gold", "--tenant", "keeper", "--size", "16MiB")
    svctl("snapshot", "create", "gold@v1", "--tenant", "keeper", "--protect")
    svctl("image", "clone", "gold@v1", "copy", "--tenant", "keeper")
    svctl.host.run(["rbd", "create", "archive/keeper/stock", "--size", "8M"])

    for name in ("gold", "copy", "stock"):
        info = svctl.host.run(["rbd", "info", f"archive/keeper/{name}", "--format=json"]).stdout
        assert json.loads(info)["data_pool"] == "archive.data", name
    svctl.host.run(["rbd", "rm", "--no-progress", "archive/keeper/stock"])


def test_what_can_be_set_is_set_and_what_can_not_is_refused(svctl: Svctl, archive: str) -> None:
    svctl("pool", "set", archive, "--compression", "aggressive", "--compression-algorithm", "zstd")
    svctl("pool", "set", archive, "--compression-ratio", "0.7", "--replicas", "3")
    pool = svctl("pool", "set", archive, "--autoscale", "warn")

    assert (pool["replicas"], pool["autoscale"]) == (3, "warn")
    for name in (archive, f"{archive}.data"):
        found = svctl.host.run(["ceph", "osd", "pool", "get", name, "all", "-f", "json"]).stdout
        values = json.loads(found)
        assert values["compression_mode"] == "aggressive"
        assert values["compression_algorithm"] == "zstd"
        assert values["compression_required_ratio"] == 0.7
    assert "Ceph has 3" in svctl.refused("pool", "set", archive, "--replicas", "4").sentence
    assert "nothing to set" in svctl.refused("pool", "set", archive).sentence
    refused = svctl.refused("pool", "set", archive, "--compression-ratio", "1.5")
    assert "not above 0 and at most 1" in refused.sentence
    assert svctl("pool", "get", archive)["replicas"] == 3


def test_an_impossible_wish_is_refused_before_anything_is_made(svctl: Svctl) -> None:
    before = _everything(svctl)

    for options, reason in (
        ("--device-class tape", "no OSD has the device class 'tape'"),
        ("--failure-domain galaxy", "failure domain 'galaxy' is none of this cluster's"),
        ("--replicas 4", "4 replicas need 4 of `host` with OSDs, and Ceph has 3"),
        ("--erasure 4+2", "6 pieces need 6 of `host` with OSDs, and Ceph has 3"),
        ("--erasure 2+0", "M at least 1"),
        ("--pg-num 0", "not between 1 and 65536"),
        ("--compression-ratio -1", "not above 0"),
        ("--adopt --replicas 2", "--adopt takes it as it is"),
    ):
        refused = svctl.refused("pool", "create", "impossible", *options.split())
        assert reason in refused.sentence

    assert _everything(svctl) == before
    assert all(pool["name"] != "impossible" for pool in svctl("pool", "list"))


def test_a_deleted_pool_leaves_neither_rule_nor_profile_nor_data_pool(svctl: Svctl) -> None:
    (some_class, *_) = json.loads(svctl.host.run(["ceph", "osd", "crush", "class", "ls"]).stdout)
    before = _everything(svctl)

    svctl("pool", "create", "fast", "--device-class", some_class, "--failure-domain", "osd")
    svctl("pool", "create", "cold", "--erasure", "2+1", "--device-class", some_class)
    made = _everything(svctl)
    rule = svctl.host.run(["ceph", "osd", "pool", "get", "fast", "crush_rule"]).stdout
    for name in ("fast", "cold"):
        svctl("pool", "delete", name, "--yes")

    assert rule.strip() == "crush_rule: fast"
    assert made["pools"] - before["pools"] == {"fast", "cold", "cold.data"}
    assert made["profiles"] - before["profiles"] == {"cold"}
    assert _everything(svctl) == before


def test_making_a_pool_can_be_killed_anywhere(svctl: Svctl, ceph_lab: Lab) -> None:
    before = _everything(svctl)
    create = ["pool", "create", "killed", "--erasure", "2+1", "--failure-domain", "host"]
    delete = ["pool", "delete", "killed", "--yes"]
    for after_s, command in ((0.6, create), (0.9, create), (0.6, delete), (0.9, delete)):
        process = ceph_lab.ctl.popen(["svctl", *command])
        with contextlib.suppress(Exception):
            process.wait(timeout=after_s)
        process.kill()
        process.wait()
        if (after_s, command) == (0.9, create):
            done = svctl.run(*create)
            assert done.returncode == 0 or "already" in done.stderr, done.stderr
            assert svctl("pool", "get", "killed")["data_pool"] == "killed.data"

    done = svctl.run(*delete)

    assert done.returncode == 0 or "is not known here" in done.stderr, done.stderr
    assert _everything(svctl) == before


def _everything(svctl: Svctl) -> dict[str, set[str]]:
    """Pools, rules and profiles that Ceph has."""
    found = {}
    for what, command in {
        "pools": ["osd", "pool", "ls"],
        "rules": ["osd", "crush", "rule", "ls"],
        "profiles": ["osd", "erasure-code-profile", "ls"],
    }.items():
        out = svctl.host.run(["ceph", *command, "--format=json"]).stdout
        found[what] = set(json.loads(out))
    return found


def _objects(svctl: Svctl, pool: str, namespace: str) -> list[str]:
    listed = svctl.host.run(["rados", "--pool", pool, "--namespace", namespace, "ls"]).stdout
    return listed.split()


def _as(attached: dict[str, Any]) -> list[str]:
    return ["--id", attached["user"], "--key", attached["key"], "--keyring=/dev/null"]


def _rbd(svctl: Svctl, attached: dict[str, Any], verb: str, *options: str) -> int:
    path = f"{attached['pool']}/{attached['namespace']}/{attached['name']}"
    return svctl.host.run(["rbd", verb, *options, path, *_as(attached)], check=False).returncode


def _clear(svctl: Svctl) -> None:
    for tenant in ("keeper", "nosy"):
        svctl.remove_tenant(tenant)
    if any(pool["name"] == "archive" for pool in svctl("pool", "list")):
        svctl("pool", "delete", "archive", "--yes")


def test_what_a_killed_probe_has_left_goes_with_its_pool(svctl: Svctl) -> None:
    svctl("pool", "create", "probed", "--pg-num", "1")
    svctl.host.run(["rbd", "namespace", "create", "probed/virtkit-probe-1-1"])
    svctl.host.run(["rbd", "namespace", "create", "probed/theirs"])
    refused = svctl.refused("pool", "delete", "probed", "--yes")
    assert "theirs/" in refused.sentence and "virtkit-probe" not in refused.sentence
    svctl.host.run(["rbd", "namespace", "rm", "probed/theirs"])

    svctl("pool", "delete", "probed", "--yes")

    assert all(pool["name"] != "probed" for pool in svctl("pool", "list"))
