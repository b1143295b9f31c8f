"""Encrypted images: ciphertext in Ceph, the disk for who has the passphrase, nothing else."""

import json
import subprocess
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl
from tests.functional.test_storage_import import MIB

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

MARK = b"nobody may read this in Ceph. "


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text("correct horse battery staple")
    path.chmod(0o600)
    return path


def exported(svctl: Svctl, tenant: str, image: str, directory: Path) -> Path:
    path = directory / f"{image}.raw"
    svctl("image", "export", image, "--tenant", tenant, "--to", str(path), "--force")
    return path


def qemu_io(lab: Lab, attached: dict[str, dict[str, object]], *commands: str) -> str:
    """What a QEMU that opens the image as a guest would does and says."""
    qemu = attached["qemu"]
    objects = [
        part
        for name in ("object", "passphrase")
        if name in qemu
        for part in ("--object", json.dumps(qemu[name]))
    ]
    done = lab.ctl.run(
        [
            *("qemu-io", *objects),
            *(part for command in commands for part in ("-c", command)),
            "json:" + json.dumps(qemu["blockdev"]),
        ],
        check=False,
    )
    return str(done.stdout + done.stderr)


def test_what_a_guest_writes_is_ciphertext_in_ceph_and_luks2_to_stock_tools(
    svctl: Svctl, red: str, ceph_lab: Lab, tmp_path: Path, secret: Path
) -> None:
    made = svctl(
        *("image", "create", "closed", "--tenant", red, "--size", "32MiB"),
        *("--encrypt", "luks2", "--passphrase-file", str(secret)),
        timeout_s=240,
    )
    assert made["encryption"] == "luks2" and made["size_bytes"] == 48 * MIB
    attach = ("image", "attach", "closed", "-t", red, "--write-dir", str(tmp_path))
    attached = svctl(*attach, "--passphrase-file", str(secret))
    text = json.dumps(attached)
    assert "correct horse" not in text

    said = qemu_io(ceph_lab, attached, "write -P 0x5a 0 64k", "read -P 0x5a 0 64k")

    assert "wrote 65536" in said and "verification failed" not in said
    raw = exported(svctl, red, "closed", tmp_path)
    assert b"\x5a" * 64 not in raw.read_bytes()
    dumped = subprocess.run(["cryptsetup", "luksDump", str(raw)], capture_output=True, text=True)
    assert dumped.returncode == 0 and "Version:       \t2" in dumped.stdout
    tested = ["cryptsetup", "open", "--test-passphrase", "--key-file", str(secret), str(raw)]
    subprocess.run(tested, check=True)
    wrong = tmp_path / "wrong"
    wrong.write_text("incorrect")
    wrong.chmod(0o600)
    refused = svctl.refused(*attach, "--passphrase-file", str(wrong))
    assert "does not open" in refused.sentence
    assert "--passphrase-file" in svctl.refused(*attach).sentence

    svctl("snapshot", "create", "closed@base", "--tenant", red, "--protect")
    clone = svctl("image", "clone", "closed@base", "copy", "--tenant", red)
    assert svctl("image", "get", "copy", "--tenant", red)["encryption"] == "luks2", clone
    attached = svctl(
        *("image", "attach", "copy", "-t", red, "--write-dir", str(tmp_path)),
        *("--passphrase-file", str(secret)),
    )
    assert "verification failed" not in qemu_io(ceph_lab, attached, "read -P 0x5a 0 64k")


def test_an_imported_disk_is_the_same_for_who_has_the_passphrase(
    svctl: Svctl, red: str, tmp_path: Path, secret: Path
) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(MARK * 40_000 + bytes(3 * MIB) + MARK * 10)
    with source.open("ab") as file:
        file.truncate(8 * MIB)

    svctl(
        *("image", "import", "taken", "--tenant", red, "--from", str(source)),
        *("--encrypt", "luks2", "--passphrase-file", str(secret)),
        timeout_s=240,
    )

    raw = exported(svctl, red, "taken", tmp_path)
    assert MARK not in raw.read_bytes() and raw.read_bytes().startswith(b"LUKS\xba\xbe\x00\x02")
    assert raw.stat().st_size == 24 * MIB
    fabric = "unix:/run/virtkit/fabric.sock"
    rows = svctl.host.run(["ovsdb-client", "dump", "-f", "json", fabric]).stdout
    assert "taken" in rows and "correct horse" not in rows
    assert "encrypted" in svctl.refused("image", "attach", "taken", "-t", red).sentence


def test_what_cannot_be_encrypted_is_refused_and_nothing_is_left(
    svctl: Svctl, red: str, tmp_path: Path, secret: Path
) -> None:
    before = svctl.used(red)
    bad = {
        "newline": (b"abc\n", 0o600, "line break"),
        "open": (b"abc", 0o644, "read by others"),
        "empty": (b"", 0o600, "empty"),
        "noise": (b"\xff\xfe", 0o600, "no text"),
    }
    create = ("image", "create", "no", "--tenant", red, "--size", "8MiB")
    for name, (data, mode, why) in bad.items():
        path = tmp_path / name
        path.write_bytes(data)
        path.chmod(mode)
        refused = svctl.refused(*create, "--encrypt", "luks2", "--passphrase-file", str(path))
        assert why in refused.sentence
        assert "abc" not in refused.sentence
    missing = ("--encrypt", "luks2", "--passphrase-file", str(tmp_path / "none"))
    assert "cannot be read" in svctl.refused(*create, *missing).sentence
    assert "both" in svctl.refused(*create, "--encrypt", "luks2").sentence
    assert "both" in svctl.refused(*create, "--passphrase-file", str(secret)).sentence
    assert svctl.used(red) == before
