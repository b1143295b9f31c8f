"""Disks that other hypervisors leave: imported whole, or refused with nothing left."""

import subprocess
from pathlib import Path

import pytest

from tests.functional.storage import Svctl
from tests.functional.test_storage_import import MIB, content_in_ceph, make_raw, sha256

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

KINDS = {
    "sparse.vmdk": ("vmdk", "subformat=monolithicSparse"),
    "stream.vmdk": ("vmdk", "subformat=streamOptimized"),
    "dynamic.vhdx": ("vhdx", "subformat=dynamic"),
    "dynamic.vdi": ("vdi", "static=off"),
    "dynamic.vhd": ("vpc", "subformat=dynamic,force_size=on"),
    "fixed.vhd": ("vpc", "subformat=fixed,force_size=on"),
}


def converted(raw: Path, name: str) -> Path:
    kind, options = KINDS[name]
    path = raw.with_name(name)
    command = ["qemu-img", "convert", "-f", "raw", "-O", kind, "-o", options, str(raw), str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raw(tmp_path_factory.mktemp("formats") / "disk.raw", 64 * MIB, 6)


@pytest.mark.parametrize("name", KINDS)
def test_a_foreign_disk_becomes_the_same_image(
    svctl: Svctl, red: str, raw: Path, tmp_path: Path, name: str
) -> None:
    source = converted(raw, name)
    image = name.replace(".", "-")

    made = svctl(
        *("image", "import", image, "--tenant", red, "--from", str(source)),
        *("--sha256", sha256(source).upper()),
    )

    assert made["sha256"] == sha256(raw) == content_in_ceph(svctl, red, image, tmp_path)
    svctl("image", "delete", image, "--tenant", red, "--yes")


def test_what_is_no_whole_disk_is_refused_and_nothing_is_left(
    svctl: Svctl, red: str, raw: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "host-secret"
    secret.write_bytes(b"root:x:0:0\n" * 512)
    flat = tmp_path / "flat.vmdk"
    flat.write_text(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 8 FLAT "{secret}" 0\n'
    )
    bad = {flat: "never followed"}
    for name in KINDS:
        whole = converted(raw, name).read_bytes()
        cut = tmp_path / name
        cut.write_bytes(whole[: len(whole) * 2 // 3])
        bad[cut] = "Fetch it again"
    stream = bytearray(converted(raw, "stream.vmdk").read_bytes())
    stream[len(stream) // 2 : len(stream) // 2 + 4096] = bytes(4096)
    hurt = tmp_path / "hurt.vmdk"
    hurt.write_bytes(stream)
    bad[hurt] = "Fetch or repair"

    for path, why in bad.items():
        refused = svctl.refused("image", "import", "bad", "-t", red, "--from", str(path))
        assert why in refused.sentence, (path, refused.sentence)
        assert "host-secret" not in refused.sentence
    for checksum, why in (("0" * 64, "not the one asked for"), ("abc", "64 hexadecimal")):
        refused = svctl.refused(
            *("image", "import", "bad", "-t", red, "--from", str(raw), "--sha256", checksum)
        )
        assert why in refused.sentence

    assert svctl.images(red) == []
    assert svctl.used(red) == {"images": 0, "bytes": 0, "snapshots": 0}
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == ""
