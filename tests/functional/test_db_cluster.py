"""The fabric database as a cluster of three hosts: what it survives, with writers and traffic.

What each fault cost is printed as a table at the end of the module.
"""

import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tenancy import dbfile, members
from tenancy.backends import member
from tenancy.errors import VirtkitError
from tests.functional.tenants import Container, Fabric, pinging

pytestmark = pytest.mark.functional

PATIENCE_S = 120.0
WRITERS, WRITES = 4, 1000
SOCKET = "unix:/run/virtkit/fabric.sock"
DATABASE = "/var/lib/virtkit/fabric.db"

# One writer: ports of a network, one after the other. A line is written when one is acknowledged.
WRITER = """
import sys, time
from netvirt.service import ports
from netvirt.service.ports import PortRequest
from tenancy.backends.fabric import Fabric
remote, number, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Fabric.connect(remote) as fabric:
    for index in range(count):
        port = ports.create(fabric, "load", "many", PortRequest(name=f"w{number}-{index}"))
        print(time.monotonic(), port.port.name, port.port.id, flush=True)
"""


@dataclass
class Load:
    """Writers in `ctl`, and what was acknowledged to them."""

    processes: list["subprocess.Popen[bytes]"]
    files: list[Path]
    lost_packets: list[int] = field(default_factory=list)

    def acknowledged(self) -> list[tuple[float, str, str]]:
        """When, name and id, in the order of time."""
        lines = [
            line.split()
            for file in self.files
            for line in file.read_text().splitlines(True)
            if line.endswith("\n")
        ]
        return sorted((float(at), name, port) for at, name, port in lines)


@dataclass
class Report:
    rows: list[tuple[str, str, int, int, float]] = field(default_factory=list)

    def add(self, fault: str, load: str, operations: int, packets: int, recovery_s: float) -> None:
        self.rows.append((fault, load, operations, packets, recovery_s))

    def lines(self) -> list[str]:
        head = f"{'fault':44} {'under load':44} {'lost op.':>8} {'lost pkt':>8} {'recovery s':>10}"
        return [head, *(f"{f:44} {u:44} {o:8} {p:8} {r:10.2f}" for f, u, o, p, r in self.rows)]


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    found = Report()
    yield found
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *found.lines(), sep="\n")


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with Lab.up(f"test-db-{os.getpid()}", hosts=3, db_members=3) as lab:
        fabric = Fabric(lab)
        fabric("nvctl tenant create red")
        fabric("nvctl network create front -t red --cidr 10.1.0.0/24")
        fabric("nvctl tenant create load")
        fabric("nvctl network create many -t load --cidr 10.2.0.0/20")
        yield fabric


@pytest.fixture(scope="module")
def pair(fabric: Fabric) -> tuple[Container, Container]:
    a = fabric.container("h1", "red", "front", "a")
    b = fabric.container("h2", "red", "front", "b")
    until(lambda: a.ping(b.ip, count=1) == 1, what="b is not reached", timeout_s=PATIENCE_S)
    return a, b


def own_report(host: Host) -> members.Report | None:
    """What the member on a host knows; None if there is none that answers."""
    try:
        return member.report(host.path("/run/virtkit"))
    except VirtkitError:
        return None


def has_quorum(host: Host) -> bool:
    """Whether the member on a host is in touch with a majority, by its own word."""
    try:
        return member.in_touch(host.path("/run/virtkit"))
    except VirtkitError:
        return False


def leader(fabric: Fabric) -> Host:
    """The host whose member leads, once one does."""
    found: list[Host] = []

    def one_leads() -> bool:
        found[:] = [
            host
            for host in fabric.lab.hosts
            if has_quorum(host) and (own := own_report(host)) and own.role == "leader"
        ]
        return len(found) == 1

    until(one_leads, what="nobody leads", timeout_s=PATIENCE_S)
    return found[0]


def whole(fabric: Fabric) -> bool:
    """Whether three members are there and in touch, each by its own word."""
    return all(
        has_quorum(host) and (own := own_report(host)) and len(own.peers) == 3
        for host in fabric.lab.hosts
    )


def peers(host: Host) -> int:
    """How many members a host's member knows of."""
    own = own_report(host)
    return len(own.peers) if own else 0


def member_names(fabric: Fabric) -> list[str]:
    return [row["name"] for row in fabric("nvctl db status")["members"]]


@contextmanager
def writing(fabric: Fabric, directory: Path, *, round: str) -> Iterator[Load]:
    """A thousand writes by four writers, begun before the block and finished after it."""
    python = Path(fabric.lab.ctl.search_path.partition(":")[0]) / "python"
    settings = fabric.lab.ctl.path("/etc/virtkit/virtkit.toml").read_text()
    remote = settings.splitlines()[0].partition('"')[2].rstrip('"')
    load = Load([], [])
    for number in range(WRITERS):
        out = directory / f"{round}-{number}"
        load.files.append(out)
        load.processes.append(
            fabric.lab.ctl.popen(
                [str(python), "-c", WRITER, remote, f"{round}{number}", str(WRITES // WRITERS)],
                stdout=out.open("wb"),
                stderr=out.with_suffix(".err").open("wb"),
            )
        )
    try:
        yield load
        for process in load.processes:
            process.wait(PATIENCE_S)
        said = [file.with_suffix(".err").read_text() for file in load.files]
        assert [p.returncode for p in load.processes] == [0] * WRITERS, said
    finally:
        for process in load.processes:
            process.kill()
            process.wait(10)


def longest_pause(times: list[float], since: float) -> float:
    """The longest time that nobody was acknowledged anything, after a moment."""
    after = [since, *(at for at in times if at > since)]
    return max((b - a for a, b in itertools.pairwise(after)), default=0.0)


def test_a_killed_leader_loses_no_acknowledged_write_and_no_packet(
    fabric: Fabric, pair: tuple[Container, Container], report: Report, tmp_path: Path
) -> None:
    a, b = pair
    killed = []
    with pinging(a, b.ip) as lost, pinging(b, a.ip) as lost_back:
        with writing(fabric, tmp_path, round="k") as load:
            for enough in (150, 500):
                until(
                    lambda enough=enough: len(load.acknowledged()) >= enough,  # type: ignore[misc]
                    what="writers don't go on",
                    timeout_s=PATIENCE_S,
                )
                victim = leader(fabric)
                killed.append(time.monotonic())
                victim.kill("fabric")
                seen = len(load.acknowledged())
                until(
                    lambda seen=seen: len(load.acknowledged()) > seen + 20,  # type: ignore[misc]
                    what="writers don't go on without the leader",
                    timeout_s=PATIENCE_S,
                )
                victim.start("fabric")
                until(lambda: whole(fabric), what="it is not whole again", timeout_s=PATIENCE_S)
        # What was asked for is followed by agents, wherever they are connected now.
        fabric("nvctl network set front -t red --label round=killed --wait")
    acknowledged = load.acknowledged()

    there = {row["name"]: row["id"] for row in fabric("nvctl port list -t load")}
    assert len(acknowledged) == WRITES
    assert there == {name: port for _, name, port in acknowledged}
    quota = fabric("nvctl tenant get load")["quota"]["ports"]
    assert quota["used"] == WRITES
    assert (lost, lost_back) == ([], [])
    times = [at for at, _, _ in acknowledged]
    pause_s = max(longest_pause(times, at) for at in killed)
    writers = f"{WRITES} writes by {WRITERS}, 200 pings/s"
    report.add("leader killed, twice", writers, 0, len(lost) + len(lost_back), pause_s)


@contextmanager
def cut_off(host: Host) -> Iterator[None]:
    """Keep a member from the others; everything else of the host goes on."""
    rules = "table inet cut { chain c { type filter hook %s priority 0; tcp %s 6643 drop; }; }"
    for hook in ("input", "output"):
        for side in ("dport", "sport"):
            table = rules.replace("inet cut", f"inet cut-{hook}-{side}") % (hook, side)
            host.run(["nft", table])
    try:
        yield
    finally:
        for hook in ("input", "output"):
            for side in ("dport", "sport"):
                host.run(["nft", "delete", "table", "inet", f"cut-{hook}-{side}"])


def test_a_minority_refuses_writes_and_its_clients_go_to_the_majority(
    fabric: Fabric, pair: tuple[Container, Container], report: Report
) -> None:
    a, b = pair
    minority = leader(fabric)
    with pinging(a, b.ip) as lost, cut_off(minority):
        began = time.monotonic()
        # With all members' addresses, a command goes on at once or when another leads.
        fabric("nvctl tenant create beyond")
        recovery_s = time.monotonic() - began
        until(
            lambda: not has_quorum(minority),
            what="the minority does not notice",
            timeout_s=PATIENCE_S,
        )
        said = fabric.refused(f"nvctl --db {SOCKET} tenant create minor", minority)
        assert "has no quorum within reach" in said
        assert len(said.splitlines()) == 1
        status = fabric.refused(f"nvctl --db {SOCKET} db status", minority)
        assert "no quorum" in status
        # Its agents have gone over: all hosts follow what the majority is told.
        fabric("nvctl network set front -t red --label round=cut --wait", minority)
    until(lambda: whole(fabric), what="it is not whole again", timeout_s=PATIENCE_S)

    names = {row["name"] for row in fabric("nvctl tenant list")}
    assert "beyond" in names and "minor" not in names
    assert lost == []
    report.add("leader cut off from the others", "a command, 100 pings/s", 0, len(lost), recovery_s)


def rows_of(fabric: Fabric, name: str) -> dict[str, Any]:
    """Every row that a backup made now has, but those by which hosts report and are waited for."""
    host = fabric.lab.host("h1")
    file = f"/var/lib/virtkit/{name}"
    host.run(["nvctl", "db", "backup", file])
    assert host.path(file).stat().st_mode & 0o777 == 0o600
    contents = dbfile.parse(file, host.path(file).read_bytes())
    own = ("Host", "Fabric", "RBAC_Role", "RBAC_Permission", "Connection")
    found = {table: rows for table, rows in contents.rows.items() if table not in own}
    for network in found["Network"].values():
        network.pop("cfg", None)
    return found


def bundles(host: Host) -> int:
    """How often the agent has changed the switch's flows."""
    return host.path("/var/log/virtkit/agent.log").read_text().count("bundle sent")


def test_what_was_backed_up_is_there_again_row_by_row_after_a_disaster(
    fabric: Fabric, pair: tuple[Container, Container], report: Report
) -> None:
    a, b = pair
    fabric("nvctl network set front -t red --label round=cut --wait")
    before = rows_of(fabric, "good")
    assert before["Tenant"] and before["Port"] and before["Binding"]
    sent = bundles(a.host) + bundles(b.host)
    with pinging(a, b.ip) as lost:
        for host in fabric.lab.hosts:
            host.kill("fabric")
            host.path(DATABASE).unlink()
        began = time.monotonic()
        listening = "--listen ptcp:6640:{0.address} --address tcp:{0.address}:6643 --name {0.name}"
        for host in fabric.lab.hosts:
            verb = (
                "init --from /var/lib/virtkit/good"
                if host.name == "h1"
                else "join tcp:10.77.0.11:6643"
            )
            fabric.do(f"nvctl db {verb} {listening.format(host)}", host)
        fabric("nvctl network set front -t red --label round=restored --wait")
        recovery_s = time.monotonic() - began
        for host in fabric.lab.hosts:
            fabric.do("nvctl db stop", host)
            host.start("fabric")
        until(lambda: whole(fabric), what="it is not whole again", timeout_s=PATIENCE_S)
    assert bundles(a.host) + bundles(b.host) == sent
    assert lost == []
    fabric("nvctl network set front -t red --label round=cut --wait")
    assert rows_of(fabric, "again") == before

    # A mistake, put right in the running cluster.
    with pinging(a, b.ip) as lost_in_restore:
        fabric("nvctl tenant create mistake")
        fabric("nvctl network create wrong -t mistake --cidr 10.9.0.0/24")
        said = fabric.refused("nvctl db restore /var/lib/virtkit/good", fabric.lab.host("h1"))
        assert "is not empty" in said
        fabric.do("nvctl db restore /var/lib/virtkit/good --replace", fabric.lab.host("h1"))
    assert lost_in_restore == []
    assert rows_of(fabric, "put-right") == before
    assert member_names(fabric) == ["h1", "h2", "h3"]
    count = sum(len(rows) for rows in before.values())
    load = f"{count} rows, 100 pings/s"
    report.add("all three files lost, backup", load, 0, len(lost), recovery_s)


def killed_when(host: Host, line: str, reached: Callable[[], bool]) -> None:
    """Start a command and kill it once it has got so far, if it is not done by then."""
    process = host.popen(line.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(
            lambda: reached() or process.poll() is not None,
            what=f"{line} does not get on",
            timeout_s=PATIENCE_S,
        )
    finally:
        process.kill()
        process.wait(10)


def test_leave_join_and_kick_are_finished_by_a_second_run(fabric: Fabric) -> None:
    h1, h3 = fabric.lab.host("h1"), fabric.lab.host("h3")
    leave = "nvctl db leave --yes"
    join = (
        "nvctl db join tcp:10.77.0.11:6643 tcp:10.77.0.12:6643 --name h3 "
        "--address tcp:10.77.0.13:6643 --listen ptcp:6640:10.77.0.13"
    )
    kick = "nvctl db kick h3 --yes"
    # The lab's server makes way for one of nvctl's.
    h3.stop("fabric")
    fabric.do("nvctl db start --listen ptcp:6640:10.77.0.13", h3)

    killed_when(h3, leave, lambda: peers(h1) == 2)
    fabric.do(leave, h3)
    assert member_names(fabric) == ["h1", "h2"]
    assert "has left its cluster" in fabric.refused("nvctl db start", h3)

    killed_when(h3, join, h3.path(DATABASE).exists)
    fabric.do(join, h3)
    until(lambda: whole(fabric), what="h3 is no member", timeout_s=PATIENCE_S)
    assert member_names(fabric) == ["h1", "h2", "h3"]

    assert "is alive" in fabric.refused(kick, h1)
    fabric.do("nvctl db stop", h3)
    killed_when(h1, kick, lambda: peers(h1) == 2)
    again = h1.run(kick.split(), check=False)
    assert again.returncode == 0 or "has no member h3" in again.stderr, again
    assert member_names(fabric) == ["h1", "h2"]

    h3.path(DATABASE).unlink()
    fabric.do(join, h3)
    fabric.do("nvctl db stop", h3)
    h3.start("fabric")
    until(lambda: whole(fabric), what="h3 is no member", timeout_s=PATIENCE_S)
    assert member_names(fabric) == ["h1", "h2", "h3"]


def test_who_would_take_the_quorum_along_stays(fabric: Fabric) -> None:
    h1, h2, h3 = fabric.lab.hosts
    h3.stop("fabric")
    for host in (h1, h2):
        said = fabric.refused("nvctl db leave --yes", host)
        assert "can't go: of the 2 members that stay, 1 answers" in said
    assert "is alive" in fabric.refused("nvctl db kick h2 --yes", h1)
    h2.stop("fabric")
    until(lambda: not has_quorum(h1), what="h1 does not notice", timeout_s=PATIENCE_S)
    for line in ("leave --yes", "kick h2 --yes"):
        assert "quorum" in fabric.refused(f"nvctl --db {SOCKET} db {line}", h1), line
    for host in (h2, h3):
        host.start("fabric")
    until(lambda: whole(fabric), what="it is not whole again", timeout_s=PATIENCE_S)
    fabric("nvctl tenant list")
