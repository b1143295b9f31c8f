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


@pytest.mark.parametrize(
    ("died_in", "command"),
    [
        ("images.resize", ("image", "resize", "cut", "--size", "16MiB")),
        ("images.take_snapshot", ("snapshot", "create", "cut@new")),
        ("images.protect_snapshot", ("snapshot", "protect", "cut@old")),
        ("images.remove_snapshot", ("snapshot", "delete", "cut@spare", "--yes")),
        ("images.flatten", ("image", "flatten", "cut")),
        ("images.set_metadata", ("image", "set", "cut", "--iops-limit", "900")),
        ("images.switch_features", ("image", "set", "cut", "--no-feature", "fast-diff")),
        ("groups.take_snapshot", ("group", "snapshot", "both@together")),
    ],
)
def test_the_lock_of_a_command_that_was_killed_is_freed_when_it_is_run_again(
    svctl: Svctl, red: str, cut: str, died_in: str, command: tuple[str, ...]
) -> None:
    tenant = ("--tenant", red)
    words = ("after", f"storvirt.backends.{died_in}", 1, *command, *tenant)
    assert svctl.host.run(probe_command("dying", *words), check=False).returncode == 9
    # What the command would have left, had it died a little earlier.
    _lock_and_die(svctl, red)

    svctl.run(*command, *tenant)

    assert _locks_and_writes(svctl, cut, red)


@pytest.fixture(scope="module")
def cut(svctl: Svctl, red: str) -> str:
    """The key for a clone in a group, of which there are snapshots."""
    tenant = ("--tenant", red)
    svctl("image", "create", "golden", *tenant, "--size", "8MiB")
    svctl("snapshot", "create", "golden@base", *tenant, "--protect")
    svctl("image", "clone", "golden@base", "cut", *tenant)
    for snapshot in ("old", "spare"):
        svctl("snapshot", "create", f"cut@{snapshot}", *tenant)
    svctl("group", "create", "both", *tenant)
    svctl("group", "add", "both", "cut", *tenant)
    return str(svctl("image", "attach", "cut", *tenant)["key"])


def _lock_and_die(svctl: Svctl, tenant: str) -> None:
    key = svctl.host.run(["ceph", "auth", "get-key", "client.admin"]).stdout.strip()
    argv = probe_command("holder", "admin", key, "vms", tenant, "cut")
    with svctl.host.popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as operator:
        assert json.loads(_line(operator))["owner"]
        operator.kill()


def _locks_and_writes(svctl: Svctl, key: str, tenant: str) -> bool:
    """Whether a guest of the tenant's gets the disk at once."""
    argv = probe_command("holder", f"virtkit.{tenant}", key, "vms", tenant, "cut")
    return bool(json.loads(svctl.host.run(argv, timeout_s=90).stdout)["owner"])


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(process.stdout.readline())


def _writer(svctl: Svctl, host: Host, tenant: str, letter: str) -> subprocess.Popen[str]:
    key = svctl("image", "attach", "root", "--tenant", tenant)
    argv = probe_command("pacer", key["user"], key["key"], key["pool"], tenant, "root", letter)
    return host.popen(argv, stdout=subprocess.PIPE, text=True)
