"""The loss test: whatever happens to tiers, svctl and OSDs, every acknowledged byte is there.

Every run walks another history of 1,000 steps; `VIRTKIT_TEST_SEED=N` repeats one (what is killed
by time may fall a little later or sooner), `VIRTKIT_LOSS_STEPS=10000` makes it long. See
probes/loss.py and loss_model.py.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

STEPS = int(os.environ.get("VIRTKIT_LOSS_STEPS", "1000"))
SEED = int(os.environ.get("VIRTKIT_TEST_SEED", secrets.randbits(32)))

BASE, CACHE = "kept", "quick-kept"


@pytest.fixture
def place(svctl: Svctl, red: str) -> Iterator[str]:
    """A base pool with a namespace of red's, and a pool for its cache, fresh."""
    _forget(svctl, red)
    svctl("pool", "create", BASE, "--pg-num", "8")
    svctl("pool", "create", CACHE, "--pg-num", "8")
    svctl("namespace", "create", red, "--pool", BASE)
    yield red
    _forget(svctl, red)


def _forget(svctl: Svctl, tenant: str) -> None:
    """Take all of it away, whatever a history that broke off has left."""
    if not any(one["name"] == BASE for one in svctl("pool", "list")):
        return
    svctl.run("tier", "remove", BASE, "--yes", "--wait", "60", timeout_s=200)
    for _ in range(8):
        left = [one for one in svctl("image", "list", "--tenant", tenant) if one["pool"] == BASE]
        if not left:
            break
        for image in sorted(left, key=lambda image: image["parent"] is None):
            owner = ("--tenant", tenant)
            for snapshot in svctl("snapshot", "list", image["name"], *owner):
                svctl.run("snapshot", "unprotect", snapshot["snapshot"], *owner)
                svctl.run("snapshot", "delete", snapshot["snapshot"], *owner, "--yes")
            svctl.run("image", "delete", image["name"], *owner, "--yes")
    svctl.run("namespace", "delete", tenant, "--pool", BASE, "--yes")
    for pool in (BASE, CACHE):
        if any(one["name"] == pool for one in svctl("pool", "list")):
            svctl("pool", "delete", pool, "--yes")


def played(lab: Lab, options: dict[str, Any]) -> dict[str, Any]:
    """What a history came to; OSDs are killed and started for it."""
    process = lab.ctl.popen(
        probe_command("loss", json.dumps(options)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        try:
            for line in process.stdout:
                said = json.loads(line)
                if "result" in said:
                    return dict(said["result"])
                if "kill" in said:
                    lab.host(said["kill"]).kill("ceph-osd")
                if "start" in said:
                    lab.host(said["start"]).start("ceph-osd")
                    until(lambda: _healthy(lab), timeout_s=60)
                process.stdin.write("\n")
                process.stdin.flush()
        finally:
            process.kill()
    raise AssertionError("the history broke off")


def _healthy(lab: Lab) -> bool:
    status = json.loads(lab.ctl.run(["ceph", "status", "--format", "json"]).stdout)
    return all("active+clean" in one["state_name"] for one in status["pgmap"]["pgs_by_state"])


def options(svctl: Svctl, tenant: str, *, steps: int, naive: bool = False) -> dict[str, Any]:
    svctl("image", "create", "first", "--tenant", tenant, "--pool", BASE, "--size", "4MiB")
    key = svctl("image", "attach", "first", "--tenant", tenant)
    svctl("image", "delete", "first", "--tenant", tenant, "--yes")
    return {
        "seed": SEED,
        "steps": steps,
        "naive": naive,
        "base": BASE,
        "cache": CACHE,
        "tenant": tenant,
        "user": key["user"],
        "key": key["key"],
        "hosts": [host.name for host in svctl_hosts(svctl)],
        "settle_s": 1.5,
    }


def svctl_hosts(svctl: Svctl) -> list[Any]:
    return [host for host in Lab.open(svctl.host.lab).hosts if "ceph-osd" in host.daemons]


@pytest.mark.timeout(600 + STEPS)
def test_every_acknowledged_byte_is_there_after_a_random_history(
    svctl: Svctl, ceph_lab: Lab, place: str
) -> None:
    print(f"VIRTKIT_TEST_SEED={SEED} VIRTKIT_LOSS_STEPS={STEPS}")
    result = played(ceph_lab, options(svctl, place, steps=STEPS))
    print(result)

    assert result["faults"] == [], f"repeat with VIRTKIT_TEST_SEED={SEED}: {result}"
    assert sum(result["counts"].values()) >= STEPS
    if STEPS >= 1000:
        assert {"lay", "take_away", "change", "write", "snapshot", "clone"} <= set(result["counts"])
        assert result["kills"] > 0


def test_the_loss_of_what_a_cache_alone_had_is_noticed(
    svctl: Svctl, ceph_lab: Lab, place: str
) -> None:
    """Ceph's own way to take a tier away loses acknowledged writes, and the comparison sees it."""
    result = played(ceph_lab, options(svctl, place, steps=0, naive=True))

    assert result["faults"], "the comparison saw nothing, so it can't be trusted"
