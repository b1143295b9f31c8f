"""A machine becomes a host of the fabric by `nvctl host init` and `join`, and leaves it again."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tests.functional.storage import probe_command
from tests.functional.tenants import Fabric

pytestmark = pytest.mark.functional

SETTINGS = "/etc/virtkit/virtkit.toml"
BUNDLE = "/etc/issued"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A machine with a switch and its certificates at hand, that is no host yet."""
    with Lab.up(f"test-membership-{os.getpid()}", hosts=1, agents=False, tls=True) as lab:
        for host in lab.hosts:
            shutil.copytree(host.path("/etc/virtkit/tls"), host.path(BUNDLE))
            shutil.rmtree(host.path("/etc/virtkit"))
        yield lab


@pytest.fixture
def h1(lab: Lab) -> Host:
    """The first machine, as it was before it became anything."""
    host = lab.host("h1")
    shutil.rmtree(host.path("/etc/virtkit"), ignore_errors=True)
    return host


def init(lab: Lab, host: Host, *options: str, **changed: str) -> subprocess.CompletedProcess[str]:
    wish = {"name": host.name, "tunnel-ip": host.address, "certificates": BUNDLE, **changed}
    words = [word for key, value in wish.items() for word in (f"--{key}", value)]
    return host.run([*_nvctl(lab), "host", "init", *words, *options], check=False)


@contextmanager
def agent(host: Host) -> Iterator[None]:
    """As a supervisor would run it."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with host.popen(["nvctl", "agent", "run"], **quiet) as process:
        try:
            yield
        finally:
            process.terminate()


def test_a_machine_becomes_a_host_and_leaves_with_all_that_it_had(lab: Lab, h1: Host) -> None:
    fabric = Fabric(lab)
    assert init(lab, h1).returncode == 0
    again = init(lab, h1)
    assert "written" not in again.stdout and "as it was" in again.stdout
    assert stat.S_IMODE(h1.path("/etc/virtkit/tls/key.pem").stat().st_mode) == 0o600

    with agent(h1):
        assert h1.run(["nvctl", "host", "join"]).returncode == 0
        (host,) = fabric("nvctl host list")
        assert (host["name"], host["tunnel_ip"], host["alive"]) == ("h1", h1.address, True)
        assert "vk-vxlan" in h1.run(["ovs-vsctl", "list-ports", "br-int"]).stdout
        fabric("nvctl tenant create red")
        fabric("nvctl network create front -t red --cidr 10.1.0.0/24")
        port = fabric("nvctl port create web -t red -n front")["id"]
        h1.run(["nvctl", "port", "plug", port, "--tap"])

        holding = h1.run(["nvctl", "host", "leave", "--yes"], check=False)
        assert holding.returncode == 1 and "holds 1 bound port." in holding.stderr
        lab.ctl.run(["nvctl", "port", "delete", port, "--force", "--yes"])
        runs = h1.run(["nvctl", "host", "leave", "--yes"], check=False)
        assert runs.returncode == 1 and "Stop it" in runs.stderr
        assert [host["alive"] for host in fabric("nvctl host list")] == [True]

    died = h1.run(
        probe_command(
            "dying", "after", "netvirt.service.hosts.delete", 1, "host", "leave", "--yes"
        ),
        check=False,
    )
    assert died.returncode == 9
    left = h1.run(["nvctl", "host", "leave", "--purge", "--yes"])
    assert "is not in the fabric" in left.stderr
    assert fabric("nvctl host list") == []
    assert "br-int" not in h1.run(["ovs-vsctl", "list-br"]).stdout
    assert not h1.path(SETTINGS).exists() and not h1.path("/etc/virtkit/tls/key.pem").exists()


def test_preparing_that_was_cut_off_is_finished_by_the_same_command(lab: Lab, h1: Host) -> None:
    for number in (1, 2, 3, 4):
        words = (
            "host",
            "init",
            "--name",
            "h1",
            "--tunnel-ip",
            h1.address,
            "--certificates",
            BUNDLE,
        )
        put = probe_command("dying", "after", "netvirt.backends.node_files.put", number)
        died = h1.run([*put, *_nvctl(lab)[1:], *words], check=False)
        if died.returncode == 0:
            # One file less had to be written each time.
            break
        assert died.returncode == 9, died.stderr
    assert init(lab, h1).returncode == 0
    assert h1.run(["nvctl", "host", "list", "-o", "json"]).stdout.strip() == "[]"


def test_joining_says_what_is_missing_within_its_time(lab: Lab, h1: Host) -> None:
    early = h1.run([*_nvctl(lab), "host", "join"], check=False)
    assert early.returncode == 2 and "etc/virtkit/tls" in early.stderr
    assert init(lab, h1).returncode == 0

    silent = h1.run(["nvctl", "host", "join", "--wait", "2"], check=False)

    assert silent.returncode == 1 and "has not reported" in silent.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tunnel-ip": "10.99.0.1"}, "no interface of this host has this address"),
        ({"tunnel-ip": "10.98.0.1"}, "only by a bridge of Open vSwitch"),
        ({"tunnel-ip": "elsewhere"}, "elsewhere"),
        ({"name": "h2"}, "nvctl pki issue host h2"),
        ({"name": "../h1"}, "not usable"),
        ({"certificates": "/etc/none"}, "nvctl pki issue"),
    ],
)
def test_what_can_not_be_a_host_is_refused_and_nothing_written(
    lab: Lab, h1: Host, changed: dict[str, str], words: str
) -> None:
    h1.run(["ip", "address", "replace", "10.98.0.1/32", "dev", "lo"])

    refused = init(lab, h1, **changed)

    assert refused.returncode in (1, 2) and words in refused.stderr, refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not h1.path("/etc/virtkit").exists()


def test_two_hosts_never_have_one_tunnel_address(lab: Lab, h1: Host) -> None:
    fabric = Fabric(lab)
    fabric(f"nvctl host create ghost --tunnel-ip {h1.address}")

    refused = init(lab, h1)

    lab.ctl.run(["nvctl", "host", "delete", "ghost", "--yes"])
    assert refused.returncode == 1 and "host ghost has tunnel IP" in refused.stderr
    assert not h1.path(SETTINGS).exists()


def test_settings_of_somebody_are_kept_unless_told_otherwise(lab: Lab, h1: Host) -> None:
    h1.path("/etc/virtkit").mkdir()
    theirs = '# mine\ndb = "unix:/run/other.sock"\n[ceph]\nuser = "virtkit"\n'
    h1.path(SETTINGS).write_text(theirs)

    assert "--replace" in init(lab, h1).stderr
    assert h1.path(SETTINGS).read_text() == theirs
    assert init(lab, h1, "--replace").returncode == 0

    assert h1.path(f"{SETTINGS}.before").read_text() == theirs
    assert 'user = "virtkit"' in h1.path(SETTINGS).read_text()


def test_a_database_or_switch_that_is_away_is_said_in_time(lab: Lab, h1: Host) -> None:
    lab.ctl.kill("fabric")
    try:
        assert "does not answer" in init(lab, h1).stderr
    finally:
        lab.ctl.start("fabric")
    h1.kill("ovsdb-server")
    try:
        assert "apt-get install openvswitch-switch" in init(lab, h1).stderr
    finally:
        h1.start("ovsdb-server")
    assert not h1.path(SETTINGS).exists()
    until(lambda: init(lab, h1).returncode == 0, what="it is not prepared", timeout_s=20)


def _nvctl(lab: Lab) -> list[str]:
    return ["nvctl", "--db", f"ssl:{lab.ctl.address}:6640"]
