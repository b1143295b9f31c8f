"""A disk is taken from a host that is lost: another writes, and the lost one never again."""

import json
import signal
import subprocess
import time

import pytest

from lab import ceph
from lab.host import Host
from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command, until

# What may be waited for, on Ceph's own settings, which give a paused OSD 20 s (osd_heartbeat_grace)
# and a silent client 30 s (osd_client_watch_timeout). How fast this machine is comes on top.
BOUND_S = 35.0
# See RFC 5737.
NOBODY = "192.0.2.7"

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


def test_a_lost_hosts_disks_are_another_hosts_within_the_bound(
    svctl: Svctl, red: str, ceph_lab: Lab
) -> None:
    h1, h2 = ceph_lab.host("h1"), ceph_lab.host("h2")
    for name in ("first", "second", "calm"):
        svctl("image", "create", name, "--tenant", red, "--size", "8MiB")
    lost = [_writer(svctl, h1, red, "a", name) for name in ("first", "second")]
    processes = list(lost)
    try:
        # What the same takes on this machine when nothing is lost and nothing has to be waited for.
        began = time.monotonic()
        svctl("host", "fence", "nobody", "--address", NOBODY, "--yes")
        processes.append(neighbour := _writer(svctl, h2, red, "n", "calm"))
        assert [_line(one) for one in processes] == ["wrote\n"] * 3
        usual_s = time.monotonic() - began
        h1.pause(ceph.OSD)
        for one in lost:
            one.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        fenced = svctl("host", "fence", "h1", "--yes")
        processes.append(heir := _writer(svctl, h2, red, "b", "first"))
        assert _line(heir) == "wrote\n"
        took_s = time.monotonic() - began
        # It is not lost at all, and goes on with what it had in mind.
        h1.resume(ceph.OSD)
        for one in lost:
            one.send_signal(signal.SIGCONT)
        for _ in range(30):
            assert _line(heir) == _line(neighbour) == "wrote\n"
        until(lambda: _up_osds(svctl) == 3, timeout_s=120)
        late = _writer(svctl, h1, red, "c", "second")
        processes.append(late)
        assert _line(late) != "wrote\n"
        heir.kill()
        heir.wait()
        assert {_first_block(svctl, red, "first") for _ in range(5)} == {"b" * 4096}
    finally:
        h1.resume(ceph.OSD)
        for process in processes:
            process.kill()
            process.wait()
        svctl("host", "unfence", "h1", "--yes")
        svctl("host", "unfence", "nobody", "--address", NOBODY, "--yes")

    assert took_s < BOUND_S + usual_s
    assert fenced["addresses"] == ["10.77.0.11"]
    freed = {one["image"]: one for one in fenced["images"]}
    assert freed.keys() == {"first", "second"}
    assert {one["state"] for one in freed.values()} == {"free"}
    # Who had a lock stays out for good.
    blocklist = _blocklist(svctl)
    assert "10.77.0.11:0/0" not in blocklist
    assert all(client in blocklist for one in freed.values() for client in one["clients"])
    until(lambda: _up_osds(svctl) == 3, timeout_s=120)
    anew = _writer(svctl, h1, red, "d", "second")
    try:
        assert _line(anew) == "wrote\n"
    finally:
        anew.kill()
        anew.wait()


@pytest.mark.parametrize(
    ("when", "function", "call"),
    [
        # The host is fenced; the guest's lock is there, and its client not fenced by itself.
        ("after", "storvirt.backends.fencing.fence", 1),
        ("after", "storvirt.backends.images.break_lock_of", 1),
    ],
)
def test_a_fence_that_was_cut_off_is_finished_by_the_same_command(
    svctl: Svctl, red: str, ceph_lab: Lab, when: str, function: str, call: int
) -> None:
    if "cut" not in svctl.images(red):
        svctl("image", "create", "cut", "--tenant", red, "--size", "8MiB")
    writer = _writer(svctl, ceph_lab.host("h1"), red, "a", "cut")
    fence = ("host", "fence", "h1", "--yes")
    try:
        assert _line(writer) == "wrote\n"
        owner = _owner(svctl, red, "cut")
        died = ceph_lab.ctl.run(probe_command("dying", when, function, call, *fence), check=False)
        assert died.returncode == 9, died.stderr

        svctl(*fence)

        assert _owner(svctl, red, "cut") is None
        assert {owner, "10.77.0.11:0/0"} <= set(_blocklist(svctl))
    finally:
        writer.kill()
        writer.wait()
        svctl("host", "unfence", "h1", "--yes")
    until(lambda: _up_osds(svctl) == 3, timeout_s=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "host nowhere is not known"),
        (("h1", "--address", "h1.example"), "'h1.example' does not appear to be an IPv4 or IPv6"),
        (("ctl", "--address", "10.77.0.1"), "from which this command speaks to Ceph"),
    ],
)
def test_what_is_no_host_that_can_be_fenced_is_refused(
    svctl: Svctl, arguments: tuple[str, ...], words: str
) -> None:
    before = {entry for entry in _blocklist(svctl) if entry.endswith(":0/0")}

    refused = svctl.refused("host", "fence", *arguments, "--yes")

    assert words in refused.sentence, refused.sentence
    assert {entry for entry in _blocklist(svctl) if entry.endswith(":0/0")} == before


def _blocklist(svctl: Svctl) -> dict[str, str]:
    dump = json.loads(svctl.host.run(["ceph", "osd", "dump", "--format=json"]).stdout)
    return dict(dump["blocklist"])


def _up_osds(svctl: Svctl) -> int:
    status = json.loads(svctl.host.run(["ceph", "status", "--format=json"]).stdout)
    return int(status["osdmap"]["num_up_osds"])


def _owner(svctl: Svctl, tenant: str, name: str) -> str | None:
    owner: str | None = svctl("image", "get", name, "--tenant", tenant)["lock_owner"]
    return owner


def _first_block(svctl: Svctl, tenant: str, name: str) -> str:
    read = f"rbd export --no-progress vms/{tenant}/{name} - | head -c 4096"
    return str(svctl.host.run(["sh", "-c", read]).stdout)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(process.stdout.readline())


def _writer(
    svctl: Svctl, host: Host, tenant: str, letter: str, image: str = "root"
) -> subprocess.Popen[str]:
    key = svctl("image", "attach", image, "--tenant", tenant)
    argv = probe_command("pacer", key["user"], key["key"], key["pool"], tenant, image, letter)
    return host.popen(argv, stdout=subprocess.PIPE, text=True)
