"""Quota under racing writers, against a real cluster."""

from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

WRITERS = 50


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
