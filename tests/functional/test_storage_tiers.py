"""A cache tier laid and taken away under a writing tenant: no acknowledged byte is lost."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from lab.lab import Lab
from storvirt.tiers.steps import Step
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


def once_written(lab: Lab, key: dict[str, Any], seed: int) -> dict[str, str]:
    """One burst of a tenant's, and what is owed since."""
    stop = f"/tmp/virtkit-stop-{seed}"
    lab.ctl.run(["rm", "-f", stop])
    where = (key["user"], key["key"], key["pool"], key["namespace"], key["name"])
    done = lab.ctl.run(probe_command("writer", *where, stop, seed, 1), timeout_s=120)
    found: dict[str, str] = json.loads(done.stdout)["owed"]
    return found


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
        assert writer["bursts"] and not writer["refused"], "a guest was refused its disk"
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
            ((cached, "--cache", "fast", "--size", "900TiB"), "cache fast: it can hold"),
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


def killed_at(lab: Lab, step: Step, *arguments: str) -> bool:
    """Run `svctl` and kill it at the moment in which it says that this step comes.

    False if it got to its end without. What it says goes through a pipe that holds no more than
    a line or two ahead of us; the kill is there before Ceph has answered the step, or right after.
    """
    process = lab.ctl.popen(["svctl", *arguments], stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip().endswith(f": {step}"):
                process.kill()
                return True
    assert process.returncode == 0
    return False


SETUP = [Step.ADD, Step.LIMIT, Step.WRITEBACK, Step.LAY]
SEALED_SETUP = [Step.SEAL, Step.ADD, Step.LIMIT, Step.READONLY, Step.LAY]
TEARDOWN = [Step.PROXY, Step.DRAIN, Step.HOLD, Step.UNLAY, Step.REMOVE, Step.RELEASE]


def test_set_up_and_teardown_killed_at_each_step_are_finished_by_the_next_run(
    svctl: Svctl, red: str, ceph_lab: Lab, cached: str
) -> None:
    svctl("image", "create", "steps", "--tenant", red, "--pool", cached, "--size", "16MiB")
    key = svctl("image", "attach", "steps", "--tenant", red)
    create = ("tier", "create", cached, "--cache", "fast", "--size", "1GiB")
    owed: dict[str, str] = {}
    for step in SETUP:
        assert killed_at(ceph_lab, step, *create), step
    tier = svctl(*create)
    assert tier["active"] and tier["mode"] == "writeback" and not tier["held"]
    for number, step in enumerate(TEARDOWN):
        owed |= once_written(ceph_lab, key, 100 + number)
        assert killed_at(ceph_lab, step, "tier", "remove", cached, "--yes"), step
        owed |= once_written(ceph_lab, key, 200 + number)
        if number % 2:
            # Whoever begins anew finds its way as well.
            svctl(*create)
        _remove(svctl, cached)
        assert wrong_blocks(ceph_lab, key, owed) == []
        svctl(*create)
    _remove(svctl, cached)

    assert wrong_blocks(ceph_lab, key, owed) == []
    assert ceph_lab.ctl.run(["rados", "--pool", "fast", "ls", "--all"]).stdout == ""
    svctl("image", "delete", "steps", "--tenant", red, "--yes")


def test_modes_and_settings_change_under_a_guest_that_writes(
    svctl: Svctl, red: str, ceph_lab: Lab, cached: str
) -> None:
    svctl("image", "create", "modes", "--tenant", red, "--pool", cached, "--size", "64MiB")
    key = svctl("image", "attach", "modes", "--tenant", red)
    svctl("tier", "create", cached, "--cache", "fast", "--size", "1GiB", "--set", "dirty-ratio=0.3")
    with writing(ceph_lab, key, 7) as writer:
        changed = svctl("tier", "set", cached, "size=512MiB", "flush-age=30", "hit-set=bloom")
        proxy = svctl("tier", "set", cached, "--mode", "proxy")
        back = svctl("tier", "set", cached, "--mode", "writeback", "hit-set=none")
    _remove(svctl, cached)

    assert changed["settings"]["size"] == 512 << 20 and changed["settings"]["flush-age"] == 30
    assert changed["settings"]["dirty-ratio"] == 0.3 and changed["settings"]["hit-set-count"] == 4
    assert proxy["mode"] == "proxy" and proxy["settings"] == changed["settings"]
    assert back["mode"] == "writeback" and back["settings"]["hit-set-count"] == 0
    assert not writer["refused"] and wrong_blocks(ceph_lab, key, writer["owed"]) == []
    svctl("image", "delete", "modes", "--tenant", red, "--yes")


def test_settings_and_modes_that_make_no_sense_are_refused_and_change_nothing(
    svctl: Svctl, cached: str
) -> None:
    svctl("tier", "create", cached, "--cache", "fast", "--size", "1GiB")
    before = svctl("tier", "show", cached)["settings"]
    for words, why in (
        (("dirty-ratio=0.9",), "is below dirty-ratio"),
        (("colour=red",), "is not a setting"),
        (("size=900TiB",), "can hold"),
        (("hit-set=bloom", "read-recency=9"), "nothing would ever be promoted"),
        ((), "nothing to set"),
        (("--mode", "forward"), "forward"),
    ):
        assert why in svctl.refused("tier", "set", cached, *words).sentence
    again = svctl.refused("tier", "create", cached, "--cache", "fast", "--mode", "proxy")
    assert "svctl tier set slow --mode proxy" in again.sentence
    assert svctl("tier", "show", cached)["settings"] == before
    _remove(svctl, cached)
    assert "no cache tier" in svctl.refused("tier", "set", cached, "size=1GiB").sentence


def test_back_ends_that_are_not_possible_are_refused_with_what_is(
    svctl: Svctl, red: str, cached: str
) -> None:
    svctl("image", "create", "plain", "--tenant", red, "--pool", cached, "--size", "16MiB")
    by_name = {one["backend"]: one for one in svctl("tier", "plan")}
    assert set(by_name) == {"pool", "client", "parent", "golden", "fast-pool"}
    assert by_name["pool"]["possible"] and by_name["golden"]["possible"]
    for backend, instead in (("client", "write-back cache pool"), ("parent", "svctl golden")):
        image = ("plain", "--tenant", red, "--backend", backend)
        if by_name[backend]["possible"]:
            svctl("tier", "create", *image)
            svctl.run("tier", "remove", *image, "--yes")
            continue
        refused = svctl.refused("tier", "create", *image)
        assert "not possible here" in refused.sentence and instead in refused.sentence
    for backend, command in (("golden", "svctl golden"), ("fast-pool", "svctl migrate")):
        assert command in svctl.refused("tier", "create", "plain", "--backend", backend).sentence
    assert "tape" in svctl.refused("tier", "create", "plain", "--backend", "tape").sentence
    # Nothing is left of the trials, and a tenant's image was never part of them.
    for pool in svctl("pool", "list"):
        spaces = svctl.host.run(["rbd", "namespace", "ls", pool["name"]]).stdout
        assert "virtkit-probe" not in spaces
    assert "conf_" not in svctl.host.run(["rbd", "image-meta", "list", f"slow/{red}/plain"]).stdout
    svctl("image", "delete", "plain", "--tenant", red, "--yes")


def _remove(svctl: Svctl, base: str) -> None:
    done = svctl.run("tier", "remove", base, "--yes", "--wait", "90", timeout_s=200)
    # Killed after its last step, there is nothing to go on with.
    assert done.returncode == 0 or "has no cache tier" in done.stderr, done.stderr
