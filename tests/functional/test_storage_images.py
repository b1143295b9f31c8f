"""Images over their whole life, on a real cluster."""

import contextlib
import json
import subprocess
from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


def test_an_image_is_created_resized_and_deleted_and_the_quota_follows(
    svctl: Svctl, red: str
) -> None:
    before = svctl.used(red)

    svctl("image", "create", "data", "--tenant", red, "--size", "1GiB")
    assert svctl.used(red)["bytes"] - before["bytes"] == 1 << 30
    svctl("image", "resize", "data", "--tenant", red, "--size", "2GiB")
    assert svctl.used(red)["bytes"] - before["bytes"] == 2 << 30
    refused = svctl.refused("image", "resize", "data", "--tenant", red, "--size", "1GiB")
    assert refused.exit_code == 2 and "--shrink" in refused.sentence
    svctl("image", "resize", "data", "--tenant", red, "--size", "512MiB", "--shrink", "--yes")
    stock = svctl.host.run(["rbd", "info", f"vms/{red}/data", "--format", "json"]).stdout
    assert json.loads(stock)["size"] == 512 << 20
    svctl("image", "delete", "data", "--tenant", red, "--yes")

    assert svctl.used(red) == before
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == ""


def test_a_clone_needs_a_protected_snapshot_and_holds_it(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "golden", *tenant, "--size", "64MiB")
    svctl("snapshot", "create", "golden@base", *tenant)

    refused = svctl.refused("image", "clone", "golden@base", "web", *tenant)
    assert "svctl snapshot protect golden@base" in refused.sentence
    svctl("snapshot", "protect", "golden@base", *tenant)
    clone = svctl("image", "clone", "golden@base", "web", *tenant)

    assert clone["parent"] == "golden@base" and clone["size_bytes"] == 64 << 20
    assert "clones: web" in svctl.refused("snapshot", "unprotect", "golden@base", *tenant).sentence
    assert "protected" in svctl.refused("snapshot", "delete", "golden@base", *tenant, "-y").sentence
    assert "snapshots: base" in svctl.refused("image", "delete", "golden", *tenant, "-y").sentence
    svctl("image", "delete", "web", *tenant, "--yes")
    svctl("snapshot", "unprotect", "golden@base", *tenant)
    svctl("snapshot", "delete", "golden@base", *tenant, "--yes")
    svctl("image", "delete", "golden", *tenant, "--yes")
    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}


def test_an_image_made_with_stock_tools_is_never_taken_for_ours(svctl: Svctl, red: str) -> None:
    svctl.host.run(["rbd", "create", f"vms/{red}/mine", "--size", "8M"])

    refused = svctl.refused("image", "create", "mine", "--tenant", red, "--size", "8MiB")

    assert "made by somebody else" in refused.sentence
    assert f"vms/{red}/mine" in svctl("status")["unknown_in_fabric"]
    assert svctl.images(red) == [] and svctl.used(red)["images"] == 0
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == "mine\n"
    svctl.host.run(["rbd", "rm", "--no-progress", f"vms/{red}/mine"])


def test_an_open_image_is_kept_and_freed_when_its_host_has_died(
    svctl: Svctl, red: str, ceph_lab: Lab
) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "root", *tenant, "--size", "64MiB")
    with _held(svctl, ceph_lab, red, "root") as guest:
        (owner,) = svctl("image", "get", "root", *tenant)["users"]
        assert "is open" in svctl.refused("image", "delete", "root", *tenant, "--yes").sentence
        assert "which answers" in svctl.refused("image", "unlock", "root", *tenant, "-y").sentence
        svctl("image", "resize", "root", *tenant, "--size", "128MiB")
        cut = ("image", "resize", "root", *tenant, "--size", "64MiB", "--shrink", "--yes")
        assert f"is open on {owner}" in svctl.refused(*cut).sentence
        guest.kill()

    until(lambda: not svctl("image", "get", "root", *tenant)["users"], timeout_s=60)
    svctl("image", "unlock", "root", *tenant, "--yes")

    assert owner in ceph_lab.ctl.run(["ceph", "osd", "blocklist", "ls"]).stdout
    with _held(svctl, ceph_lab, red, "root"):
        assert svctl("image", "get", "root", *tenant)["size_bytes"] == 128 << 20
        svctl("snapshot", "create", "root@live", *tenant)
        svctl("snapshot", "delete", "root@live", *tenant, "--yes")
    svctl("image", "delete", "root", *tenant, "--yes")


@pytest.mark.parametrize("after_s", [0.4, 0.6])
def test_svctl_killed_anywhere_and_run_again_ends_the_same(
    svctl: Svctl, red: str, ceph_lab: Lab, after_s: float
) -> None:
    tenant = ("--tenant", red)
    for command in (
        ("image", "create", "twice", *tenant, "--size", "64MiB"),
        ("snapshot", "create", "twice@s", *tenant, "--protect"),
        ("image", "clone", "twice@s", "copy", *tenant),
        ("image", "delete", "copy", *tenant, "--yes"),
        ("snapshot", "unprotect", "twice@s", *tenant),
        ("snapshot", "delete", "twice@s", *tenant, "--yes"),
        ("image", "delete", "twice", *tenant, "--yes"),
    ):
        process = ceph_lab.ctl.popen(["svctl", *command])
        with contextlib.suppress(Exception):
            process.wait(timeout=after_s)
        process.kill()
        process.wait()
        # A client that was killed with the image open is remembered for 30 s.
        until(lambda command=command: _done(svctl, command), timeout_s=60)

    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == ""


@pytest.mark.parametrize(
    "point",
    [
        ("after", "storvirt.backends.images.create"),
        ("after", "storvirt.service.admission.note_ids"),
        # The new name stands for the image, and is not listed.
        ("before", "storvirt.backends.naming._list_as"),
        # The old name stands for it still, and is listed no longer.
        ("after", "storvirt.backends.naming._list_as"),
    ],
)
def test_an_image_whose_making_was_cut_off_is_finished_or_given_up_whole(
    svctl: Svctl, red: str, ceph_lab: Lab, point: tuple[str, str]
) -> None:
    command = ("image", "create", "named", "--tenant", red, "--size", "64MiB")

    def die() -> None:
        died = ceph_lab.ctl.run(probe_command("dying", *point, 1, *command), check=False)
        assert died.returncode == 9, died.stderr
        assert svctl("status")["unfinished"] == [f"image vms/{red}/named"]

    die()
    svctl(*command)

    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == "named\n"
    status = svctl("status")
    assert (status["unfinished"], status["missing_in_ceph"]) == ([], [])
    svctl("image", "delete", "named", "--tenant", red, "--yes")
    die()
    svctl("image", "delete", "named", "--tenant", red, "--yes")
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == ""
    listed = svctl.host.run(["rados", "--pool", "vms", "--namespace", red, "ls"]).stdout
    assert "rbd_id" not in listed
    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}


def _done(svctl: Svctl, command: tuple[str, ...]) -> bool:
    done = svctl.run(*command)
    if done.returncode == 0:
        return True
    sentence = done.stderr.strip().splitlines()[-1]
    was_done = any(
        phrase in sentence for phrase in ("already", "exists", "has no image", "has no snapshot")
    )
    dead_client = any(phrase in sentence for phrase in ("is open", "in use", "is half deleted"))
    assert was_done or dead_client, sentence
    return was_done


@contextlib.contextmanager
def _held(svctl: Svctl, lab: Lab, tenant: str, image: str) -> Iterator[subprocess.Popen[str]]:
    """A guest that has the image open and locked, with the tenant's key."""
    key = svctl("image", "attach", image, "--tenant", tenant)
    guest = lab.ctl.popen(
        probe_command("holder", key["user"], key["key"], key["pool"], tenant, image),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with guest:
        assert guest.stdout is not None
        assert json.loads(guest.stdout.readline()) == {"owner": True}
        yield guest
        assert guest.stdin is not None
        guest.stdin.close()
