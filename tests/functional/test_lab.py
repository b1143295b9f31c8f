"""The lab keeps its promises: real hosts, any of them breakable, and nothing left afterwards."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import state, waiting
from lab.host import CTL, Host
from lab.lab import Lab
from lab.linux import Process
from lab.population import PidNamespace
from lab.state import Record

pytestmark = pytest.mark.functional

PREFIX = f"test-lab-{os.getpid()}"
VIRTLAB = str(Path(sys.executable).with_name("virtlab"))


@pytest.fixture(scope="module", autouse=True)
def no_leftovers() -> Iterator[None]:
    """Remove at the end whatever lab a failed test has left."""
    yield
    for name in state.names():
        if name.startswith(PREFIX):
            Lab.down(name)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts with Open vSwitch only. Tests must leave them as they were."""
    with Lab.up(f"{PREFIX}-net", hosts=2, agents=False) as lab:
        yield lab


@pytest.fixture(scope="module")
def ceph_lab() -> Iterator[Lab]:
    """Three hosts with Ceph. Tests must leave the cluster healthy."""
    began = time.monotonic()
    with Lab.up(f"{PREFIX}-ceph", hosts=3, ceph=True, agents=False) as lab:
        print(f"three hosts with Ceph are up after {time.monotonic() - began:.1f} s")
        yield lab


def virtlab(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [VIRTLAB, *arguments], input=stdin, capture_output=True, text=True, timeout=120
    )


def pings(host: Host, address: str, *options: str, netns: str | None = None) -> bool:
    command = ["ping", "-c", "2", "-i", "0.2", "-W", "2", *options, address]
    return host.run(command, netns=netns, check=False).returncode == 0


# Networks


def test_hosts_reach_each_other_and_ctl_over_the_underlay(lab: Lab) -> None:
    for source in (lab.ctl, *lab.hosts):
        for target in (lab.ctl, *lab.hosts):
            assert pings(source, target.address), f"{source.name} to {target.name}"


def test_full_sized_frames_pass_and_larger_ones_do_not(lab: Lab) -> None:
    h1, h2 = lab.hosts

    assert pings(h1, h2.address, "-M", "do", "-s", str(1500 - 28))
    assert not pings(h1, h2.address, "-M", "do", "-s", str(1501 - 28))


def test_tcp_from_a_host_reaches_the_fabric_database(lab: Lab) -> None:
    answer = lab.host("h2").run(["ovsdb-client", "list-dbs", "tcp:10.77.0.1:6640"])

    assert "virtkit_fabric" in answer.stdout.lower() or "fabric" in answer.stdout.lower()


def test_only_br_phy_answers_for_the_address_of_a_host(lab: Lab, tmp_path: Path) -> None:
    h1, h2 = lab.hosts
    h1.run(["ip", "neigh", "flush", "all"])

    with lab.capture(tmp_path / "arp.pcap", expression="arp") as file:
        assert pings(h1, h2.address)

    decoded = h1.run(["tcpdump", "-nr", str(file), "arp[6:2] == 2"]).stdout.splitlines()
    answers = [line for line in decoded if f"Reply {h2.address} is-at" in line]
    assert len(answers) == 1
    assert "02:00:0a:4d:00:0c" in answers[0]


def test_a_vxlan_made_by_hand_carries_a_segment_between_hosts(lab: Lab, tmp_path: Path) -> None:
    h1, h2 = lab.hosts
    for host, other, address in ((h1, h2, "192.0.2.1/24"), (h2, h1, "192.0.2.2/24")):
        _add_container(host, address)
        host.run(
            [
                *("ovs-vsctl", "--timeout=20", "add-br", "br-test"),
                *("--", "set", "Bridge", "br-test", "datapath_type=netdev"),
                *("--", "add-port", "br-test", "veth-box"),
                *("--", "add-port", "br-test", "vx0"),
                *("--", "set", "Interface", "vx0", "type=vxlan"),
                *(f"options:remote_ip={other.address}", "options:key=1193046"),
            ]
        )

    with lab.capture(tmp_path / "vxlan.pcap", expression="udp port 4789") as file:
        reached = pings(h1, "192.0.2.2", "-M", "do", "-s", str(1450 - 28), netns="box")

    decoded = h1.run(["tcpdump", "-nr", str(file)]).stdout
    for host in (h1, h2):
        host.run(["ovs-vsctl", "del-br", "br-test"])
        host.delete_netns("box")
    assert reached
    assert "VXLAN, flags [I] (0x08), vni 1193046" in decoded


def test_traffic_returns_after_ovs_vswitchd_is_killed_and_started(lab: Lab) -> None:
    h1, h2 = lab.hosts

    assert h1.kill("ovs-vswitchd")
    assert not h1.is_running("ovs-vswitchd")
    assert h2.is_running("ovs-vswitchd")
    assert not pings(h2, h1.address, "-c", "1", "-W", "1")
    h1.start("ovs-vswitchd")

    assert pings(h2, h1.address)


def test_a_network_namespace_of_a_host_is_known_there_and_nowhere_else(lab: Lab) -> None:
    h1, h2 = lab.hosts
    h1.add_netns("web")

    seen = [host.run(["ip", "netns", "list"]).stdout.split() for host in (h1, h2)]
    inside = h1.run(["cat", "/proc/net/dev"], netns="web").stdout
    h1.delete_netns("web")

    assert seen == [["web"], []]
    assert "br-phy" not in inside
    assert not Path("/run/netns/web").exists()


# Hosts are apart


def test_a_host_sees_its_own_processes_names_and_files_only(lab: Lab) -> None:
    h1, h2 = lab.hosts

    seen = h1.run(["ps", "-eo", "pid=,comm="]).stdout
    h1.run(["sh", "-c", "echo own | tee /etc/virtkit/mark /opt/cni/mark /var/lib/mark"])

    assert h1.run(["hostname"]).stdout.strip() == "h1"
    assert seen.count("ovs-vswitchd") == 1
    assert h1.path("/etc/virtkit/mark").read_text() == "own\n"
    for path in ("/etc/virtkit/mark", "/opt/cni/mark", "/var/lib/mark"):
        assert not h2.path(path).exists()
        assert not Path(path).exists()


def test_two_labs_are_up_at_once_with_the_same_addresses(lab: Lab) -> None:
    with Lab.up(f"{PREFIX}-twin", hosts=1, agents=False) as twin:
        twin.ctl.run(["touch", "/run/virtkit/twin"])

        assert twin.host("h1").address == lab.host("h1").address
        assert pings(twin.host("h1"), "10.77.0.1")
        assert not pings(twin.host("h1"), lab.host("h2").address, "-c", "1", "-W", "1")
        assert not lab.ctl.path("/run/virtkit/twin").exists()
    assert lab.host("h1").is_running("ovs-vswitchd")


# The command


def test_exec_passes_input_output_and_exit_code(lab: Lab) -> None:
    done = virtlab("exec", "--name", lab.name, "h1", "--", "sh", "-c", "cat; exit 7", stdin="hello")

    assert (done.stdout, done.returncode) == ("hello", 7)


def test_exec_in_ctl_finds_the_operator_commands(lab: Lab) -> None:
    done = virtlab("exec", "--name", lab.name, CTL, "--", "sh", "-c", "command -v nvctl svctl")

    assert done.returncode == 0, done.stderr


def test_exec_reports_the_signal_that_ended_a_command(lab: Lab) -> None:
    done = virtlab("exec", "--name", lab.name, "h1", "--", "sh", "-c", "kill -9 $$")

    assert done.returncode == 128 + signal.SIGKILL


def test_exec_passes_sigterm_on(lab: Lab) -> None:
    command = [VIRTLAB, "exec", "--name", lab.name, "h1", "--"]
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen([*command, "sh", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()

        assert process.wait(10) == 5


def test_exec_gives_a_command_the_terminal(lab: Lab) -> None:
    command = f"{VIRTLAB} exec --name {lab.name} h1 -- sh -c 'test -t 0 && tty && hostname'"

    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, timeout=30
    )

    assert done.returncode == 0, done.stdout
    assert "h1" in done.stdout


def test_status_shows_a_daemon_that_has_ended(lab: Lab) -> None:
    before = virtlab("status", "--name", lab.name, "-o", "json")
    lab.host("h1").kill("ovsdb-server")
    broken = virtlab("status", "--name", lab.name, "-o", "json")
    mended = virtlab("up", "--name", lab.name, "--hosts", "2", "--no-agents")

    assert before.returncode == 0
    assert {row["state"] for row in json.loads(before.stdout)} == {"running"}
    assert broken.returncode == 1
    ended = [row for row in json.loads(broken.stdout) if row["state"] == "ended"]
    assert [(row["host"], row["daemon"]) for row in ended] == [("h1", "ovsdb-server")]
    assert mended.returncode == 0, mended.stderr
    assert lab.host("h1").is_running("ovsdb-server")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("exec", "--name", "{lab}", "h9", "--", "true"), 1, "has no host h9. It has: ctl, h1, h2"),
        (("exec", "--name", "test-lab-none", "h1", "--", "true"), 1, "test-lab-none is not up"),
        (("exec", "--name", "{lab}", "h1", "--", "no-such"), 127, "no-such is not installed"),
        (("up", "--name", "Bad_Name"), 2, "lab name 'Bad_Name' is not valid"),
        (("up", "--name", "{lab}", "--hosts", "5"), 1, "is up with 2 hosts, without Ceph"),
        (("up", "--name", "test-lab-none", "--hosts", "0"), 2, "0 hosts asked for"),
        (("up", "--name", "test-lab-none", "--underlay-mtu", "9"), 2, "MTU 9 is out of range"),
        (("kill", "--name", "{lab}", "h1", "nfsd"), 1, "no daemon nfsd. It has: ovsdb-server"),
    ],
)
def test_what_a_user_did_wrong_is_one_sentence(
    lab: Lab, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = virtlab(*(argument.format(lab=lab.name) for argument in arguments))

    assert done.returncode == code
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Record("test-lab-none").exists()


# The end


def test_down_leaves_nothing_also_of_what_detached_itself() -> None:
    lab = Lab.up(f"{PREFIX}-end", hosts=2, agents=False)
    h1 = lab.host("h1")
    h1.add_netns("box")
    detach = "setsid --fork {} sleep 1000 >/dev/null 2>&1"
    h1.run(["sh", "-c", detach.format("")], netns="box")
    h1.run(["sh", "-c", detach.format("unshare --pid --mount --fork")])
    h1.run(["sh", "-c", "for group in /sys/fs/cgroup/*/; do mkdir -p $group/machine/vm; done"])
    attached = h1.popen(["sleep", "1000"])
    members = _members(lab)
    namespaces = _namespaces_of(members)

    done = virtlab("down", "--name", lab.name)

    assert done.returncode == 0, done.stderr
    assert attached.wait(5) == -signal.SIGKILL
    assert len(members) > 8
    _assert_nothing_is_left(lab.name, members)
    assert not namespaces & _namespaces_of(_all_processes())


def test_down_of_no_lab_says_so_and_succeeds() -> None:
    done = virtlab("down", "--name", f"{PREFIX}-never")

    assert (done.returncode, done.stderr) == (0, f"lab {PREFIX}-never was not up\n")


# Seconds after the first trace of the lab: the directory, the first process, the hosts, Open
# vSwitch, Ceph's disks, its daemons.
MOMENTS_S = (0, 0.003, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0)


@pytest.mark.parametrize("moment_s", MOMENTS_S)
def test_down_leaves_nothing_of_an_up_that_was_killed(moment_s: float) -> None:
    name = f"{PREFIX}-killed"
    _kill_up_after(name, moment_s)
    members = _members_on_record(name)

    Lab.down(name)

    _assert_nothing_is_left(name, members)


def test_up_works_after_an_up_that_was_killed() -> None:
    name = f"{PREFIX}-again"
    _kill_up_after(name, 0.1)
    members = _members_on_record(name)

    with Lab.up(name, hosts=2, agents=False) as lab:
        assert pings(lab.host("h1"), lab.host("h2").address)
        assert not set(members) & set(_members(lab))


def test_an_up_that_is_interrupted_removes_what_it_made() -> None:
    name = f"{PREFIX}-interrupted"
    process = _start_up(name)
    waiting.until(lambda: _members_on_record(name), what="nothing is made", timeout_s=60)
    members = _members_on_record(name)
    process.terminate()

    assert process.wait(60) == 1
    _assert_nothing_is_left(name, members)


def test_a_daemon_that_does_not_start_is_shown_with_its_log(lab: Lab) -> None:
    h1 = lab.host("h1")
    h1.stop("ovs-vswitchd")
    h1.stop("ovsdb-server")
    database = h1.path("/etc/openvswitch/conf.db")
    content = database.read_bytes()
    database.write_bytes(b"no database\n")

    done = virtlab("start", "--name", lab.name, "h1", "ovsdb-server")

    database.write_bytes(content)
    h1.start("ovsdb-server")
    h1.start("ovs-vswitchd")
    assert done.returncode == 1
    assert "h1: ovsdb-server ended as soon as it was started" in done.stderr
    assert "conf.db" in done.stderr.partition("\n")[2]


# Ceph


@pytest.mark.ceph
def test_crush_hosts_are_the_hosts_of_the_lab(ceph_lab: Lab) -> None:
    answer = ceph_lab.host("h2").run(["ceph", "osd", "tree", "--format", "json"])

    nodes = {node["id"]: node for node in json.loads(answer.stdout)["nodes"]}
    children = {
        node["name"]: [nodes[child]["name"] for child in node["children"]]
        for node in nodes.values()
        if node["type"] == "host"
    }
    assert children == {"h1": ["osd.0"], "h2": ["osd.1"], "h3": ["osd.2"]}


@pytest.mark.ceph
def test_writes_go_on_while_an_osd_is_dead_and_it_comes_back(ceph_lab: Lab) -> None:
    ctl, h2 = ceph_lab.ctl, ceph_lab.host("h2")
    ctl.run(["ceph", "osd", "pool", "create", "test", "8"])
    put = ["rados", "--pool", "test", "put"]
    ctl.run([*put, "before", "/etc/hostname"])

    assert h2.kill("ceph-osd")
    waiting.until(lambda: _osds_up(ctl) == 2, what="osd.1 is still up", timeout_s=20)
    ctl.run([*put, "during", "/etc/hostname"], timeout_s=30)
    h2.start("ceph-osd")

    assert _osds_up(ctl) == 3
    waiting.until(lambda: _is_clean(ctl), what="placement groups are not clean", timeout_s=60)
    stored = ctl.run(["rados", "--pool", "test", "ls"]).stdout.split()
    assert sorted(stored) == ["before", "during"]


@pytest.mark.ceph
def test_an_osd_that_hangs_is_called_down_and_returns(ceph_lab: Lab) -> None:
    ctl, h3 = ceph_lab.ctl, ceph_lab.host("h3")

    assert h3.pause("ceph-osd")
    waiting.until(lambda: _osds_up(ctl) == 2, what="osd.2 is still up", timeout_s=30)
    assert h3.resume("ceph-osd")

    waiting.until(lambda: _osds_up(ctl) == 3, what="osd.2 is still down", timeout_s=30)


@pytest.mark.ceph
def test_the_cluster_survives_its_monitor_and_manager(ceph_lab: Lab) -> None:
    ctl = ceph_lab.ctl
    for name in ("ceph-mgr", "ceph-mon"):
        assert ctl.kill(name)
    for name in ("ceph-mon", "ceph-mgr"):
        ctl.start(name)

    waiting.until(lambda: _is_clean(ctl), what="placement groups are not clean", timeout_s=60)
    assert _osds_up(ctl) == 3


# Helpers


def _add_container(host: Host, address: str) -> None:
    host.add_netns("box")
    host.run(["ip", "link", "add", "veth-box", "type", "veth", "peer", "eth0", "netns", "box"])
    host.run(["ip", "link", "set", "veth-box", "mtu", "1450", "up"])
    host.run(["ip", "link", "set", "eth0", "mtu", "1450", "up"], netns="box")
    host.run(["ip", "address", "add", address, "dev", "eth0"], netns="box")
    host.run(["ethtool", "-K", "eth0", "tx", "off"], netns="box")


def _osds_up(ctl: Host) -> int:
    answer = ctl.run(["ceph", "osd", "stat", "--format", "json"], timeout_s=30)
    return int(json.loads(answer.stdout)["num_up_osds"])


def _is_clean(ctl: Host) -> bool:
    answer = ctl.run(["ceph", "pg", "stat", "--format", "json"], timeout_s=30)
    summary = json.loads(answer.stdout)["pg_summary"]
    return [found["name"] for found in summary["num_pg_by_state"]] == ["active+clean"]


def _start_up(name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [VIRTLAB, "up", "--name", name, "--hosts", "2", "--ceph", "--no-agents"],
        stderr=subprocess.DEVNULL,
    )


def _kill_up_after(name: str, moment_s: float) -> None:
    process = _start_up(name)
    directory = Record(name).directory
    deadline = time.monotonic() + 30
    while not directory.exists() and time.monotonic() < deadline:
        time.sleep(0.0005)
    time.sleep(moment_s)
    process.kill()
    process.wait()


def _members(lab: Lab) -> list[Process]:
    members = []
    for pid in lab.processes():
        with contextlib.suppress(ProcessLookupError):
            members.append(Process.named(pid))
    return members


def _members_on_record(name: str) -> list[Process]:
    first = Record(name).process(CTL)
    if first is None or not first.runs():
        return []
    members = []
    for pid in PidNamespace.of(first.pid).living():
        with contextlib.suppress(ProcessLookupError):
            members.append(Process.named(pid))
    return members


def _all_processes() -> list[Process]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                found.append(Process.named(int(entry.name)))
    return found


def _namespaces_of(processes: list[Process]) -> set[str]:
    """The network, mount and PID namespaces of processes, as the kernel names them, less ours."""
    found = set()
    for process in processes:
        for kind in ("net", "mnt", "pid"):
            with contextlib.suppress(OSError):
                found.add(str(Path(f"/proc/{process.pid}/ns/{kind}").readlink()))
    return found - {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "mnt", "pid")}


def _assert_nothing_is_left(name: str, members: list[Process]) -> None:
    # Dead at once; but gone when their parent has read their exit code, which for those whose
    # parent was killed is the machine's process 1, and some of these look only now and then.
    waiting.until(
        lambda: not any(member.exists() for member in members),
        what=f"of {members}, some are left",
        timeout_s=10,
    )
    named = [pid for pid, words in _command_lines() if name in words]
    mounts = Path("/proc/self/mountinfo").read_text()
    links = {entry.name for entry in Path("/sys/class/net").iterdir()}
    groups = list(Path("/sys/fs/cgroup").glob(f"**/virtkit-lab/{name}"))
    record = Record(name)

    assert named == []
    assert name not in mounts
    assert not links & {"underlay", "uplink", "h1", "h2", "br-phy"}
    assert groups == []
    assert not record.directory.exists()
    assert not record.disk.exists()


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    for process in _all_processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
            yield process.pid, words.split("\0")
