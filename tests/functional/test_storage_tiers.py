"""A cache tier laid and taken away under a writing tenant: no acknowledged byte is lost."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


@pytest.fixture(scope="module")
def cached(svctl: Svctl, red: str) -> Iterator[str]:
    """A base pool of its own with a namespace of red's, and an empty pool to be its cache."""
    _forget(svctl, red)
    svctl("pool", "create", "slow", "--pg-num", "8")
    svctl("pool", "create", "fast", "--pg-num", "8")
    svctl("namespace", "create", red, "--pool", "slow")
    yield "slow"
    _forget(svctl, red)


def _forget(svctl: Svctl, tenant: str) -> None:
    if "cached by fast" in json.dumps(svctl("pool", "list")):
        svctl("tier", "remove", "slow", "--yes", "--wait", "60")
    for image in svctl("image", "list", "--tenant", tenant):
        if image["pool"] == "slow":
            svctl("image", "delete", image["name"], "--tenant", tenant, "--yes")
    if "slow" in {one["pool"] for one in svctl("namespace", "list", "--tenant", tenant)}:
        svctl("namespace", "delete", tenant, "--pool", "slow", "--yes")
    for pool in ("slow", "fast"):
        if any(one["name"] == pool for one in svctl("pool", "list")):
            svctl("pool", "delete", pool, "--yes")


@contextlib.contextmanager
def writing(lab: Lab, key: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    """A tenant that opens, writes, flushes and closes its image all the time."""
    stop = f"/tmp/virtkit-stop-{seed}"
    lab.ctl.run(["rm", "-f", stop])
    where = (key["user"], key["key"], key["pool"], key["namespace"], key["name"])
    process = lab.ctl.popen(
        probe_command("writer", *where, stop, seed), stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = {}
    try:
        yield result
    finally:
        lab.ctl.run(["touch", stop])
        output, _ = process.communicate(timeout=120)
        lab.ctl.run(["rm", "-f", stop])
    assert process.returncode == 0, "the writer met an error"
    result |= json.loads(output)


def wrong_blocks(lab: Lab, key: dict[str, Any], owed: dict[str, str]) -> list[str]:
    where = (key["user"], key["key"], key["pool"], key["namespace"], key["name"])
    done = lab.ctl.run(probe_command("reader", *where), input=json.dumps(owed), timeout_s=120)
    found: list[str] = json.loads(done.stdout)["wrong"]
    return found


def test_a_tier_comes_and_goes_under_writes_and_every_acknowledged_byte_is_there(
    svctl: Svctl, red: str, ceph_lab: Lab, cached: str
) -> None:
    svctl("image", "create", "disk", "--tenant", red, "--pool", cached, "--size", "256MiB")
    key = svctl("image", "attach", "disk", "--tenant", red)
    owed: dict[str, str] = {}

    for seed in (1, 2):
        with writing(ceph_lab, key, seed) as writer:
            tier = svctl("tier", "create", cached, "--cache", "fast", "--size", "1GiB")
            assert tier["active"] and tier["mode"] == "writeback"
            until(lambda: svctl("tier", "show", cached)["objects"] > 5)
            # Interrupted at whatever point it has reached, and run again.
            removal = ceph_lab.ctl.popen(["svctl", "tier", "remove", cached, "--yes", "--wait=60"])
            with contextlib.suppress(subprocess.TimeoutExpired):
                removal.wait(timeout=1.5 * seed)
            removal.kill()
            removal.wait()
            _remove(svctl, cached)
        owed |= writer["owed"]

        print(f"{writer['bursts']} bursts, {writer['refused']} refused, {len(owed)} blocks owed")
        assert writer["bursts"] > writer["refused"]
        assert wrong_blocks(ceph_lab, key, owed) == []
    left = ceph_lab.ctl.run(["rados", "--pool", "fast", "ls", "--all"]).stdout
    assert left == ""
    assert all(not pool["tier"] for pool in svctl("pool", "list"))
    svctl("image", "delete", "disk", "--tenant", red, "--yes")


def test_a_tier_is_kept_while_a_guest_has_an_image_open(
    svctl: Svctl, red: str, ceph_lab: Lab, cached: str
) -> None:
    svctl("image", "create", "open", "--tenant", red, "--pool", cached, "--size", "64MiB")
    key = svctl("image", "attach", "open", "--tenant", red)
    svctl("tier", "create", cached, "--cache", "fast", "--size", "1GiB")
    where = (key["user"], key["key"], key["pool"], red, "open")
    guest = ceph_lab.ctl.popen(
        probe_command("holder", *where),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with guest:
        assert guest.stdin is not None and guest.stdout is not None
        assert guest.stdout.readline()
        refused = svctl.refused("tier", "remove", cached, "--yes")
        assert svctl("tier", "show", cached)["mode"] == "proxy"
        guest.stdin.close()
    assert guest.returncode == 0

    assert "clients have images open" in refused.sentence and "run again" in refused.sentence
    svctl("tier", "remove", cached, "--yes")
    svctl("image", "delete", "open", "--tenant", red, "--yes")


def test_tiers_that_cannot_be_safe_are_refused(svctl: Svctl, red: str, cached: str) -> None:
    host = svctl.host
    host.run(["ceph", "osd", "pool", "create", "coded", "8", "8", "erasure"])
    svctl("pool", "create", "other", "--pg-num", "8")
    try:
        for arguments, why in (
            ((cached, "--cache", cached), "its own cache"),
            ((cached, "--cache", "nowhere"), "does not exist"),
            ((cached, "--cache", "coded"), "erasure-coded"),
            ((cached, "--cache", "vms"), "holds a namespace"),
            ((cached, "--cache", "fast", "--size", "900TiB"), "pool fast can hold"),
        ):
            refused = svctl.refused("tier", "create", *arguments)
            assert why in refused.sentence, refused.sentence
        svctl("tier", "create", cached, "--cache", "fast")
        for arguments, why in (
            ((cached, "--cache", "other"), "has the cache fast already"),
            (("other", "--cache", "fast"), "is the cache of slow already"),
            (("fast", "--cache", "other"), "stacked"),
        ):
            refused = svctl.refused("tier", "create", *arguments)
            assert why in refused.sentence, refused.sentence
        assert "part of a tier" in svctl.refused("pool", "delete", "fast", "--yes").sentence
        assert (
            "cache of slow" in svctl.refused("namespace", "create", red, "--pool", "fast").sentence
        )
        assert "cache of slow: name that" in svctl.refused("tier", "show", "fast").sentence
        svctl("tier", "remove", cached, "--yes")
        assert "no cache tier" in svctl.refused("tier", "remove", cached, "--yes").sentence
    finally:
        svctl("pool", "delete", "other", "--yes")
        host.run(
            ["ceph", "osd", "pool", "delete", "coded", "coded", "--yes-i-really-really-mean-it"]
        )


def _remove(svctl: Svctl, base: str) -> None:
    done = svctl.run("tier", "remove", base, "--yes", "--wait", "90", timeout_s=200)
    # Killed after its last step, there is nothing to go on with.
    assert done.returncode == 0 or "has no cache tier" in done.stderr, done.stderr
