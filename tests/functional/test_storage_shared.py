"""Images that other tenants clone: across tenants and pools, and when the shared one moves."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until
from tests.functional.test_storage_import import MIB, make_raw, sha256
from tests.functional.test_storage_migrate import guest

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

OTHER = "shared-to"
SIZE = 16 * MIB


@pytest.fixture(scope="module")
def pools(svctl: Svctl, red: str, blue: str) -> Iterator[tuple[str, str]]:
    """Two tenants, each with a namespace in `vms` and in another pool."""
    if not any(pool["name"] == OTHER for pool in svctl("pool", "list")):
        svctl("pool", "create", OTHER, "--pg-num", "8")
    for tenant in (red, blue):
        svctl("namespace", "create", tenant, "--pool", OTHER)
    yield red, blue
    # Clones go before what they were cloned from.
    for tenant in (blue, red):
        svctl.remove_tenant(tenant)
    svctl("pool", "delete", OTHER, "--yes")
    for tenant in (red, blue):
        svctl("tenant", "create", tenant)


@pytest.fixture
def digest(svctl: Svctl, pools: tuple[str, str], tmp_path: Path) -> Iterator[str]:
    """Red's `golden@v1` in `vms`, shared with blue; what it holds."""
    red, blue = pools
    raw = make_raw(tmp_path / "golden.raw", SIZE, 4)
    golden = ("image", "import", "golden", "--tenant", red, "--pool", "vms")
    svctl(*golden, "--from", str(raw), "--snapshot", "v1")
    svctl("image", "share", "golden", "--tenant", red, "--with", blue)
    yield sha256(raw)
    for tenant in (blue, red):
        for image in svctl("image", "list", "--tenant", tenant):
            if image["parent"]:
                svctl("image", "delete", image["name"], "--tenant", tenant, "--yes")
    svctl("snapshot", "unprotect", "golden@v1", "--tenant", red)
    svctl("snapshot", "delete", "golden@v1", "--tenant", red, "--yes")
    svctl("image", "delete", "golden", "--tenant", red, "--yes")


def read_by_its_owner(svctl: Svctl, tenant: str, name: str, directory: Path) -> str:
    """What the image holds, read with its tenant's own key and stock tools."""
    key = svctl("image", "attach", name, "--tenant", tenant)
    exported = directory / "exported"
    exported.unlink(missing_ok=True)
    identity = ["--name", f"client.{key['user']}", "--key", key["key"]]
    place = f"{key['pool']}/{tenant}/{name}"
    svctl.host.run(["rbd", *identity, "export", "--no-progress", place, str(exported)])
    return sha256(exported)


def test_clones_across_tenants_and_pools_hold_what_their_parent_holds(
    svctl: Svctl, pools: tuple[str, str], digest: str, tmp_path: Path
) -> None:
    red, blue = pools
    clone = ("image", "clone", f"{red}/golden@v1")
    beside = svctl(*clone, "beside", "--tenant", blue, "--pool", "vms")
    across = svctl(*clone, "across", "--tenant", blue, "--pool", OTHER)
    own = svctl("image", "clone", "golden@v1", "own", "--tenant", red, "--pool", OTHER)
    many = svctl(*clone, "many", "--count", "3", "--tenant", blue, "--pool", OTHER)

    assert [made["pool"] for made in (beside, across, own)] == ["vms", OTHER, OTHER]
    assert across["parent"] == f"{red}/golden@v1" and own["parent"] == "golden@v1"
    assert many["done"] == ["many-1", "many-2", "many-3"]
    for tenant, name in ((blue, "beside"), (blue, "across"), (red, "own"), (blue, "many-2")):
        assert read_by_its_owner(svctl, tenant, name, tmp_path) == digest
    # What one of them writes, no other has.
    svctl.host.run(["rbd", "bench", "--io-type=write", "--io-total=4M", f"{OTHER}/{blue}/across"])
    assert read_by_its_owner(svctl, blue, "across", tmp_path) != digest
    for tenant, name in ((blue, "beside"), (red, "own"), (red, "golden")):
        assert read_by_its_owner(svctl, tenant, name, tmp_path) == digest
    refused = svctl.refused("image", "unshare", "golden", "--tenant", red, "--with", blue)
    assert "has clones there" in refused.sentence
    refused = svctl.refused("image", "clone", f"{blue}/across@v1", "stolen", "--tenant", red)
    assert "no snapshot" in refused.sentence
    # Whole, it needs nothing of red's.
    svctl("image", "flatten", "many-1", "--tenant", blue)
    assert read_by_its_owner(svctl, blue, "many-1", tmp_path) == digest


def test_a_shared_image_whose_move_was_cut_off_and_ended_is_read_by_those_it_is_shared_with(
    svctl: Svctl, pools: tuple[str, str], digest: str, ceph_lab: Lab, tmp_path: Path
) -> None:
    red, blue = pools
    svctl("image", "clone", f"{red}/golden@v1", "web", "--tenant", blue, "--pool", OTHER)
    before = image_id(svctl, "vms", red)
    move = ("migrate", "golden", "--tenant", red, "--to-pool", OTHER)
    # In Ceph all is done, and blue's caps still name the image that was.
    command = probe_command("dying", "after", "storvirt.backends.migration.commit", 1, *move)
    assert ceph_lab.ctl.run(command, check=False).returncode == 9

    svctl(*move)

    after = image_id(svctl, OTHER, red)
    assert before != after
    assert read_by_its_owner(svctl, blue, "web", tmp_path) == digest
    svctl("image", "clone", f"{red}/golden@v1", "new", "--tenant", blue, "--pool", "vms")
    assert read_by_its_owner(svctl, blue, "new", tmp_path) == digest
    caps = svctl.host.run(["ceph", "auth", "get", f"client.virtkit.{blue}"]).stdout
    assert f"rbd_header.{after}," in caps and before not in caps


def test_a_shared_image_is_not_moved_while_a_foreign_clone_is_open(
    svctl: Svctl, pools: tuple[str, str], digest: str, ceph_lab: Lab, tmp_path: Path
) -> None:
    red, blue = pools
    svctl("image", "clone", f"{red}/golden@v1", "web", "--tenant", blue, "--pool", "vms")
    key = svctl("image", "attach", "web", "--tenant", blue)
    arguments = (key["user"], key["key"], "vms", blue, "web")
    holder = ceph_lab.ctl.popen(
        probe_command("holder", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        move = ("migrate", "golden", "--tenant", red, "--to-pool", OTHER)
        refused = svctl.refused(*move)
    finally:
        holder.communicate(timeout=60)

    assert f"is read by {blue}/web" in refused.sentence
    assert svctl("image", "get", "golden", "--tenant", red)["pool"] == "vms"
    until(lambda: svctl.run(*move).returncode == 0, timeout_s=60)
    assert read_by_its_owner(svctl, red, "golden", tmp_path) == digest


def test_an_image_that_is_shared_moves_under_its_guest_and_can_be_cloned_by_others_then(
    svctl: Svctl, pools: tuple[str, str], ceph_lab: Lab, tmp_path: Path
) -> None:
    red, blue = pools
    raw = make_raw(tmp_path / "live.raw", SIZE, 4)
    mine = ("--tenant", red)
    svctl("image", "import", "live", *mine, "--pool", "vms", "--from", str(raw))
    svctl("image", "share", "live", *mine, "--with", blue)
    with guest(ceph_lab, svctl, red, "live", tmp_path) as qmp:
        svctl("migrate", "live", *mine, "--to-pool", OTHER, "--qmp", str(qmp))

    svctl("snapshot", "create", "live@v1", *mine, "--protect")
    svctl("image", "clone", f"{red}/live@v1", "alive", "--tenant", blue, "--pool", "vms")

    assert read_by_its_owner(svctl, blue, "alive", tmp_path) == sha256(raw)
    svctl("image", "delete", "alive", "--tenant", blue, "--yes")
    svctl("snapshot", "unprotect", "live@v1", *mine)
    svctl("snapshot", "delete", "live@v1", *mine, "--yes")
    svctl("image", "delete", "live", *mine, "--yes")


def image_id(svctl: Svctl, pool: str, tenant: str) -> str:
    found = svctl.host.run(["rbd", "info", f"{pool}/{tenant}/golden", "--format=json"]).stdout
    return str(json.loads(found)["id"])
