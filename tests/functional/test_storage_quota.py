"""Quota under racing writers, against a real cluster."""

import json
from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

WRITERS = 50
# Room for three of the racers, who want 64 MiB each.
GROWTH = 3 * 64 << 20


@pytest.fixture
def narrow(svctl: Svctl) -> Iterator[str]:
    """A tenant that may have ten images and 1 GiB."""
    svctl.remove_tenant("narrow")
    svctl("tenant", "create", "narrow", "--quota", "images=10", "--quota", "bytes=1GiB")
    svctl("namespace", "create", "narrow", "--pool", "vms")
    yield "narrow"
    svctl.remove_tenant("narrow")


def test_of_fifty_racing_writers_as_many_win_as_the_quota_admits(
    svctl: Svctl, narrow: str, ceph_lab: Lab
) -> None:
    svctl("image", "create", "first", "--tenant", narrow, "--size", "960MiB")

    # 64 MiB are left: room for one of the fifty.
    found = svctl.probe("racers", narrow, WRITERS, 64 << 20, timeout_s=280)

    assert len(found["won"]) == 1
    assert found["errors"] == {"QuotaExceeded": WRITERS - 1}
    assert svctl.used(narrow) == {"images": 2, "bytes": 1 << 30, "snapshots": 0}
    listed = ceph_lab.ctl.run(["rbd", "ls", f"vms/{narrow}"]).stdout.split()
    assert sorted(listed) == sorted(["first", *found["won"]])


def test_growing_beyond_the_quota_changes_nothing(svctl: Svctl, narrow: str) -> None:
    svctl("image", "create", "disk", "--tenant", narrow, "--size", "512MiB")

    refused = svctl.refused("image", "resize", "disk", "--tenant", narrow, "--size", "2GiB")

    assert refused.exit_code == 1 and "quota of bytes" in refused.sentence
    assert svctl("image", "get", "disk", "--tenant", narrow)["size_bytes"] == 512 << 20
    assert svctl.used(narrow)["bytes"] == 512 << 20


def test_racing_snapshots_and_growth_never_pass_the_quota_and_nobody_else_notices(
    svctl: Svctl, narrow: str, red: str, ceph_lab: Lab
) -> None:
    tenant = ("--tenant", narrow)
    svctl("image", "create", "first", *tenant, "--size", "64MiB")
    svctl("snapshot", "create", "first@base", *tenant, "--protect")
    svctl("tenant", "set", narrow, "--quota", "images=100", "--quota", "bytes=100GiB")
    svctl("image", "clone", "first@base", "web", "--count", str(WRITERS), *tenant)
    bytes_used = svctl.used(narrow)["bytes"]
    svctl(
        "tenant", "set", narrow, "--quota", "snapshots=6", "--quota", f"bytes={bytes_used + GROWTH}"
    )
    neighbour = ceph_lab.ctl.popen(
        ["svctl", "image", "create", "calm", "--tenant", red, "--size", "64MiB"]
    )

    taken = svctl.probe("racing", narrow, "snapshot", WRITERS)
    grown = svctl.probe("racing", narrow, "grow", WRITERS)

    assert (taken["won"], taken["errors"]) == (5, {"QuotaExceeded": WRITERS - 5})
    assert (grown["won"], grown["errors"]) == (3, {"QuotaExceeded": WRITERS - 3})
    assert svctl.used(narrow) == {
        "images": WRITERS + 1,
        "bytes": bytes_used + GROWTH,
        "snapshots": 6,
    }
    listed = ceph_lab.ctl.run(["rbd", "snap", "ls", f"vms/{narrow}/first", "--format=json"]).stdout
    assert len(json.loads(listed)) == 6
    assert neighbour.wait(60) == 0 and svctl.used(red)["images"] == 1
    svctl("image", "delete", "calm", "--tenant", red, "--yes")
    svctl("image", "delete", "web", "--count", str(WRITERS), *tenant, "--yes")
