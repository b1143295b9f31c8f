"""Taking over images that stock tools made."""

import os
from pathlib import Path

import pytest

from tests.functional.storage import Svctl
from tests.functional.test_storage_import import MIB, content_in_ceph, sha256

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

# Stock tools would look for settings in the whole pool, which a namespace's key can't see.
RBD = ("rbd", "--rbd_validate_pool=false")


def test_an_image_made_with_stock_tools_becomes_the_tenants(
    svctl: Svctl, red: str, tmp_path: Path
) -> None:
    raw = tmp_path / "stock.raw"
    raw.write_bytes(os.urandom(4 * MIB))
    where = f"vms/{red}/stock"
    svctl.host.run([*RBD, "import", "--no-progress", str(raw), where])
    svctl.host.run([*RBD, "snap", "create", "--no-progress", f"{where}@first"])

    adopted = svctl("image", "adopt", "stock", "--tenant", red)

    assert adopted["size_bytes"] == 4 * MIB and adopted["state"] == "ready"
    assert svctl.used(red) == {"images": 1, "bytes": 4 * MIB, "snapshots": 1}
    assert where not in svctl("status")["unknown_in_fabric"]
    assert "already" in svctl.refused("image", "adopt", "stock", "--tenant", red).sentence
    target = tmp_path / "out.raw"
    svctl("image", "export", "stock@first", "--tenant", red, "--to", str(target))
    assert sha256(target) == sha256(raw) == content_in_ceph(svctl, red, "stock", tmp_path)
    svctl("snapshot", "delete", "stock@first", "--tenant", red, "--yes")
    svctl("image", "delete", "stock", "--tenant", red, "--yes")
    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}


def test_what_cannot_be_adopted_is_refused_and_nothing_is_charged(svctl: Svctl, red: str) -> None:
    space = f"vms/{red}"
    svctl.host.run([*RBD, "create", "--size", "8M", f"{space}/parent"])
    svctl.host.run([*RBD, "snap", "create", "--no-progress", f"{space}/parent@s"])
    clone = ("--rbd_default_clone_format=2", "clone", f"{space}/parent@s", f"{space}/child")
    svctl.host.run([*RBD, *clone])
    svctl.host.run([*RBD, "create", "--size", "1B", f"{space}/odd"])
    svctl.host.run([*RBD, "create", "--size", "8M", f"{space}/large"])
    cases = {"none": "does not exist", "child": "rbd flatten", "odd": "512", "a/b": "not usable"}
    for name, why in cases.items():
        assert why in svctl.refused("image", "adopt", name, "--tenant", red).sentence, name
    svctl("tenant", "set", red, "--quota", "bytes=1MiB")
    assert "quota" in svctl.refused("image", "adopt", "large", "--tenant", red).sentence
    svctl("tenant", "set", red, "--quota", "bytes=100TiB")

    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}
    svctl.host.run([*RBD, "rm", "--no-progress", f"{space}/child"])
    svctl.host.run([*RBD, "snap", "purge", "--no-progress", f"{space}/parent"])
    for name in ("parent", "odd", "large"):
        svctl.host.run([*RBD, "rm", "--no-progress", f"{space}/{name}"])
