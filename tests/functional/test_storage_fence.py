"""A disk is taken from a host that is lost: another writes, and the lost one never again."""

import json
import signal
import subprocess

import pytest

from lab.host import Host
from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


def test_a_paused_host_can_not_write_after_its_disk_was_taken(
    svctl: Svctl, red: str, ceph_lab: Lab
) -> None:
    svctl("image", "create", "root", "--tenant", red, "--size", "8MiB")
    lost = _writer(svctl, ceph_lab.host("h1"), red, "a")
    assert lost.stdout is not None
    assert lost.stdout.readline() == "wrote\n"
    (owner,) = svctl("image", "get", "root", "--tenant", red)["users"]
    lost.send_signal(signal.SIGSTOP)

    fenced = svctl("image", "take", "root", "--tenant", red, "--yes")["fenced"]
    heir = _writer(svctl, ceph_lab.host("h2"), red, "b")
    try:
        assert heir.stdout is not None
        assert heir.stdout.readline() == "wrote\n"
        lost.send_signal(signal.SIGCONT)
        said = lost.communicate(timeout=60)[0].splitlines()
        assert heir.stdout.readline() == "wrote\n"
    finally:
        for process in (lost, heir):
            process.kill()
            process.wait()

    assert fenced == [owner]
    # What it prints last is the refusal; a write may have been under way when it was paused.
    assert said[-1].startswith("refused: ") and set(said[:-1]) <= {"wrote"}
    read = svctl.host.run(
        ["sh", "-c", f"rbd export --no-progress vms/{red}/root - | head -c 4096"]
    ).stdout
    assert read == "b" * 4096
    entries = json.loads(svctl.host.run(["ceph", "osd", "dump", "--format=json"]).stdout)
    assert owner in entries["blocklist"]
    until(lambda: not svctl("image", "get", "root", "--tenant", red)["users"], timeout_s=60)
    svctl.host.run(["ceph", "osd", "blocklist", "rm", owner])


def test_taking_an_image_that_nobody_has_fences_nobody(svctl: Svctl, red: str) -> None:
    svctl("image", "create", "idle", "--tenant", red, "--size", "8MiB")

    assert svctl("image", "take", "idle", "--tenant", red, "--yes")["fenced"] == []


def _writer(svctl: Svctl, host: Host, tenant: str, letter: str) -> subprocess.Popen[str]:
    key = svctl("image", "attach", "root", "--tenant", tenant)
    argv = probe_command("pacer", key["user"], key["key"], key["pool"], tenant, "root", letter)
    return host.popen(argv, stdout=subprocess.PIPE, text=True)
