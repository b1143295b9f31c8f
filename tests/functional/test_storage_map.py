"""Images as block devices of a machine without a kernel client: what is written is in the image."""

import hashlib
import json
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.host import Host
from tests.functional.storage import Svctl, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

PLACE = Path("/run/virtkit/mapped")


@contextmanager
def image(svctl: Svctl, tenant: str, name: str, size: str = "32MiB") -> Iterator[str]:
    svctl("image", "create", name, "--tenant", tenant, "--size", size)
    try:
        yield name
    finally:
        svctl.run("image", "unmap", name, "--tenant", tenant)
        until(lambda: not svctl("image", "get", name, "--tenant", tenant)["users"], timeout_s=60)
        svctl("image", "delete", name, "--tenant", tenant, "--yes")


def map_(svctl: Svctl, tenant: str, name: str, *options: str) -> dict[str, Any]:
    made: dict[str, Any] = svctl("image", "map", name, "--tenant", tenant, *options)
    return made


def unmap(svctl: Svctl, tenant: str, name: str) -> None:
    done = svctl.run("image", "unmap", name, "--tenant", tenant)
    assert done.returncode == 0, done.stderr


def loops(host: Host) -> list[str]:
    """Loop devices over what is mapped in this lab."""
    listing = host.run(["losetup", "--list", "--json"]).stdout or '{"loopdevices": []}'
    found = json.loads(listing)["loopdevices"]
    return [one["name"] for one in found if one["back-file"].startswith(str(PLACE))]


def test_what_is_written_to_the_device_is_in_the_image(svctl: Svctl, red: str) -> None:
    host = svctl.host
    with image(svctl, red, "disk") as name:
        made = map_(svctl, red, name)
        device = made["device"]
        assert made["method"] == "fuse"
        pattern = "seq 1 900000 | head -c 4194304"
        host.run(["sh", "-c", f"{pattern} | dd of={device} bs=1M seek=3 conv=notrunc status=none"])
        unmap(svctl, red, name)

        assert loops(host) == []
        read = f"rbd export --no-progress vms/{red}/{name} - | tail -c +3145729 | head -c 4194304"
        found = host.run(["sh", "-c", f"{read} | sha256sum"]).stdout.split()[0]
        text = "".join(f"{number}\n" for number in range(1, 900001))[:4194304]
        assert found == hashlib.sha256(text.encode()).hexdigest()
        assert list(host.path(PLACE).glob("*-*")) == []


def test_a_device_in_use_stays(svctl: Svctl, red: str) -> None:
    host = svctl.host
    with image(svctl, red, "files") as name:
        device = map_(svctl, red, name)["device"]
        host.run(["mkfs.ext4", "-q", device])
        host.run(["mkdir", "-p", "/mnt/disk"])
        host.run(["mount", device, "/mnt/disk"])
        host.run(["sh", "-c", "echo kept >/mnt/disk/file"])
        mounted = svctl.refused("image", "unmap", name, "--tenant", red)
        host.run(["umount", "/mnt/disk"])
        above = host.run(["losetup", "--find", "--show", device]).stdout.strip()
        covered = svctl.refused("image", "unmap", name, "--tenant", red)
        host.run(["losetup", "--detach", above])

        unmap(svctl, red, name)
        host.run(["mount", map_(svctl, red, name)["device"], "/mnt/disk"])
        kept = host.run(["cat", "/mnt/disk/file"]).stdout
        host.run(["umount", "/mnt/disk"])

    assert "in use" in mounted.sentence and "lsblk" in mounted.sentence
    assert "in use" in covered.sentence and above in covered.sentence
    assert kept == "kept\n"


def test_mapping_again_gives_the_same_device(svctl: Svctl, red: str) -> None:
    with image(svctl, red, "once") as name:
        made = map_(svctl, red, name)

        assert map_(svctl, red, name) == made
        assert svctl("image", "mapped") == [made]
        refused = svctl.refused("image", "map", name, "--tenant", red, "--read-only")
        assert made["device"] in refused.sentence and "unmap" in refused.sentence
        in_use = svctl.refused("image", "delete", name, "--tenant", red, "--yes")
        assert "open" in in_use.sentence


def test_nobody_else_reads_the_key(svctl: Svctl, red: str) -> None:
    with image(svctl, red, "secret") as name:
        map_(svctl, red, name)
        key = svctl("image", "attach", name, "--tenant", red)["key"]

        (directory,) = svctl.host.path(PLACE).glob("*-*")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "key").stat().st_mode) == 0o600
        assert key not in svctl.host.run(["ps", "auxww"]).stdout


def test_a_read_only_device_takes_no_writes(svctl: Svctl, red: str) -> None:
    with image(svctl, red, "still") as name:
        device = map_(svctl, red, name, "--read-only")["device"]

        written = svctl.host.run(["dd", "if=/dev/zero", f"of={device}", "count=1"], check=False)

        assert written.returncode != 0


def test_a_daemon_that_was_killed_leaves_nothing_in_the_way(svctl: Svctl, red: str) -> None:
    with image(svctl, red, "broken") as name:
        map_(svctl, red, name)
        (pid,) = svctl.host.path(PLACE).glob("*/pid")
        svctl.host.run(["kill", "-KILL", pid.read_text().strip()])
        until(lambda: svctl("image", "mapped") == [], timeout_s=30)
        until(lambda: not svctl("image", "get", name, "--tenant", red)["users"], timeout_s=60)

        device = map_(svctl, red, name)["device"]

        svctl.host.run(["dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=1"])
        assert loops(svctl.host) == [device]


def test_a_command_that_was_killed_is_finished_by_the_next(svctl: Svctl, red: str) -> None:
    with image(svctl, red, "cut") as name:
        for delay_s in (0.8, 1.2, 1.6, 2.0):
            mapping = svctl.host.popen(["svctl", "image", "map", name, "--tenant", red])
            try:
                mapping.wait(delay_s)
            except subprocess.TimeoutExpired:
                mapping.send_signal(signal.SIGKILL)
                mapping.wait()

        device = map_(svctl, red, name)["device"]

        assert loops(svctl.host) == [device]
        svctl.host.run(["dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=1"])


def test_what_is_not_possible_is_said(svctl: Svctl, red: str) -> None:
    with image(svctl, red, "here") as name:
        for arguments, words in (
            (("map", name, "--method", "kernel"), "no module rbd"),
            (("map", name, "--method", "nbd"), "no module nbd"),
            (("map", "nowhere"), "has no image nowhere"),
            (("map", name, "--passphrase-file", "/etc/hostname"), "not encrypted"),
            (("unmap", name), "no device of this machine"),
            (("unmap", "nowhere"), "has no image nowhere"),
            (("map", "a/b"), "not usable"),
        ):
            refused = svctl.refused("image", *arguments, "--tenant", red)
            assert words in refused.sentence, (arguments, refused.sentence)
        assert svctl("image", "mapped") == []
