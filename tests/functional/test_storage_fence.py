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
    writers = [_writer(svctl, ceph_lab.host("h1"), red, "a")]
    (lost,) = writers
    try:
        assert _line(lost) == "wrote\n"
        (owner,) = svctl("image", "get", "root", "--tenant", red)["users"]
        lost.send_signal(signal.SIGSTOP)
        fenced = svctl("image", "take", "root", "--tenant", red, "--yes")["fenced"]
        writers.append(heir := _writer(svctl, ceph_lab.host("h2"), red, "b"))
        assert _line(heir) == "wrote\n"
        lost.send_signal(signal.SIGCONT)
        for _ in range(50):
            assert _line(heir) == "wrote\n"
        heir.kill()
        heir.wait()
        # The lost one still runs, and would have overwritten the block by now.
        read = ["sh", "-c", f"rbd export --no-progress vms/{red}/root - | head -c 4096"]
        found = {svctl.host.run(read).stdout for _ in range(5)}
    finally:
        for process in writers:
            process.kill()
            process.wait()

    assert fenced == [owner]
    assert found == {"b" * 4096}
    entries = json.loads(svctl.host.run(["ceph", "osd", "dump", "--format=json"]).stdout)
    assert owner in entries["blocklist"]
    until(lambda: not svctl("image", "get", "root", "--tenant", red)["users"], timeout_s=60)
    svctl.host.run(["ceph", "osd", "blocklist", "rm", owner])


def test_taking_an_image_that_nobody_has_fences_nobody(svctl: Svctl, red: str) -> None:
    svctl("image", "create", "idle", "--tenant", red, "--size", "8MiB")

    assert svctl("image", "take", "idle", "--tenant", red, "--yes")["fenced"] == []


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(process.stdout.readline())


def _writer(svctl: Svctl, host: Host, tenant: str, letter: str) -> subprocess.Popen[str]:
    key = svctl("image", "attach", "root", "--tenant", tenant)
    argv = probe_command("pacer", key["user"], key["key"], key["pool"], tenant, "root", letter)
    return host.popen(argv, stdout=subprocess.PIPE, text=True)
