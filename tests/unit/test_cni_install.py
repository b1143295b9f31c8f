"""`nvctl cni install` and `uninstall`: what a node gets, in which order, and what they say."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.waiting import until
from netvirt.backends import node_files
from netvirt.cni.call import parse
from netvirt.cni.frames import Request

NVCTL = Path(sys.executable).with_name("nvctl")

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node with a container runtime, and the program to install beside it."""
    for directory in ("bin", "conf", "run"):
        (tmp_path / directory).mkdir()
    # Any executable will do: what is installed is not run here, but by the tests of the image.
    (tmp_path / "program").write_bytes(Path("/bin/true").read_bytes())
    return tmp_path


@pytest.fixture
def run(node: Path) -> Run:
    def run(line: str, **options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*argv(node, line.split()), *(f"--{key}={value}" for key, value in options.items())],
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def argv(node: Path, words: list[str]) -> list[str]:
    places = [f"--bin-dir={node / 'bin'}", f"--conf-dir={node / 'conf'}"]
    if words[0] == "install":
        places += [f"--run-dir={node / 'run'}", f"--program={node / 'program'}"]
    return [str(NVCTL), "cni", words[0], *places, *words[1:]]


@pytest.fixture
def agent(node: Path) -> Iterator[Callable[[], None]]:
    """Makes an agent's two signs appear: its socket takes connections, its switch is ready."""
    with socket.socket(socket.AF_UNIX) as server:

        def appear() -> None:
            server.bind(str(node / "run" / "cni.sock"))
            server.listen()
            (node / "run" / "agent.ready").write_text("{}")

        yield appear


def conflist(node: Path, name: str = "10-virtkit.conflist") -> dict:
    return json.loads((node / "conf" / name).read_text())


def files(node: Path) -> set[str]:
    return {str(path.relative_to(node)) for path in node.rglob("*") if path.is_file()} - {"program"}


def test_a_node_gets_the_program_and_the_conflist(node: Path, run: Run) -> None:
    done = run("install -o json")

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert [one["state"] for one in json.loads(done.stdout)] == ["written", "written"]
    program = node / "bin" / "virtkit"
    assert program.read_bytes() == (node / "program").read_bytes()
    assert program.stat().st_mode & 0o7777 == 0o755
    assert (node / "conf" / "10-virtkit.conflist").stat().st_mode & 0o7777 == 0o644
    assert conflist(node) == {
        "cniVersion": "1.0.0",
        "name": "virtkit",
        "plugins": [
            {
                "type": "virtkit",
                "tenant": "default",
                "network": "pods",
                "capabilities": {"ips": True, "mac": True},
            }
        ],
    }
    assert files(node) == {"bin/virtkit", "conf/10-virtkit.conflist"}


def test_what_is_there_already_is_left_alone(node: Path, run: Run) -> None:
    assert run("install").returncode == 0
    before = written(node)

    done = run("install -o json")

    assert [one["state"] for one in json.loads(done.stdout)] == ["unchanged", "unchanged"]
    assert written(node) == before


def written(node: Path) -> list[tuple[int, int]]:
    """Which files are there and when each was last written: being read is no change."""
    found = [(node / name).stat() for name in sorted(files(node))]
    return [(one.st_ino, one.st_ctime_ns) for one in found]


@pytest.mark.parametrize("damage", ["contents", "mode", "link"])
def test_what_is_not_as_it_should_be_is_replaced(node: Path, run: Run, damage: str) -> None:
    assert run("install").returncode == 0
    program = node / "bin" / "virtkit"
    elsewhere = node / "bin" / "elsewhere"
    if damage == "contents":
        with program.open("ab") as file:
            file.write(b"\0")
    elif damage == "mode":
        program.chmod(0o600)
    else:
        program.rename(elsewhere)
        program.symlink_to(elsewhere)

    done = run("install -o json")

    assert [one["state"] for one in json.loads(done.stdout)] == ["written", "unchanged"]
    assert not program.is_symlink()
    assert program.stat().st_mode & 0o7777 == 0o755
    assert program.read_bytes() == (node / "program").read_bytes()


def test_a_program_that_is_running_is_replaced(node: Path, run: Run) -> None:
    (node / "bin" / "virtkit").write_bytes(Path("/bin/sleep").read_bytes())
    (node / "bin" / "virtkit").chmod(0o755)
    with subprocess.Popen([node / "bin" / "virtkit", "60"]) as running:
        try:
            done = run("install")

            assert done.returncode == 0, done.stderr
            assert running.poll() is None
        finally:
            running.kill()
    assert (node / "bin" / "virtkit").read_bytes() == (node / "program").read_bytes()


def test_options_are_found_in_the_conflist(node: Path, run: Run) -> None:
    for plugin in ("portmap", "bandwidth", "tuning"):
        (node / "bin" / plugin).touch()

    done = run(
        "install --tenant red --network front --name red-front --cni-version 1.1.0 --mtu 1400 "
        "--allow mac --allow ips --chain bandwidth --chain tuning --chain portmap "
        "--sysctl net.core.somaxconn=512 --conflist 05-red.conflist"
    )

    assert done.returncode == 0, done.stderr
    assert conflist(node, "05-red.conflist") == {
        "cniVersion": "1.1.0",
        "name": "red-front",
        "plugins": [
            {
                "type": "virtkit",
                "tenant": "red",
                "network": "front",
                "capabilities": {"ips": True, "mac": True},
                "mtu": 1400,
                "allow": ["ips", "mac"],
            },
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


@pytest.mark.parametrize("options", ["", "--mtu 1400 --allow ips", "--cni-version 1.1.0"])
def test_the_agent_understands_what_is_written(node: Path, run: Run, options: str) -> None:
    assert run(f"install --tenant red --network front {options}").returncode == 0

    written = conflist(node)
    # As libcni passes it on.
    configuration = {key: written[key] for key in ("cniVersion", "name")} | written["plugins"][0]
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(node / "bin"),
    }
    call = parse(Request(environment=environment, input=json.dumps(configuration).encode()))
    assert (call.conflist, call.tenant, call.network) == ("virtkit", "red", "front")
    assert call.version == written["cniVersion"]


@pytest.mark.parametrize(
    ("there", "options", "follow"),
    [
        (False, "", []),
        (True, "", ["portmap"]),
        (True, "--chain none", []),
    ],
)
def test_portmap_follows_where_the_node_has_it(
    node: Path, run: Run, there: bool, options: str, follow: list[str]
) -> None:
    if there:
        (node / "bin" / "portmap").touch()

    assert run(f"install {options}").returncode == 0

    assert [plugin["type"] for plugin in conflist(node)["plugins"]] == ["virtkit", *follow]


def test_nothing_may_be_chosen_by_a_container_if_the_operator_says_so(node: Path, run: Run) -> None:
    assert run("install --allow none").returncode == 0

    assert conflist(node)["plugins"][0]["allow"] == []


def test_the_conflist_is_written_last(node: Path, agent: Callable[[], None]) -> None:
    """The program is there while the agent is waited for; the conflist only afterwards."""
    words = ["install", "--wait-for-agent", "30"]
    with subprocess.Popen(argv(node, words), stdout=subprocess.DEVNULL) as waiting:
        until((node / "bin" / "virtkit").exists, what="no program is written", timeout_s=30)
        (node / "run" / "agent.ready").touch()  # left by an agent that was killed
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(5 * node_files.POLL_S)
        before = files(node)

        agent()

        assert waiting.wait(30) == 0
    assert "conf/10-virtkit.conflist" not in before
    assert "conf/10-virtkit.conflist" in files(node)


def test_an_agent_that_does_not_come_leaves_the_node_without_a_conflist(
    node: Path, run: Run
) -> None:
    done = run("install --wait-for-agent 0.5")

    assert done.returncode == 1
    assert done.stderr.startswith("the agent is not ready after 0.5 s:")
    assert len(done.stderr.splitlines()) == 1
    assert files(node) == {"bin/virtkit"}


def test_a_reader_never_sees_a_part(node: Path) -> None:
    """Contents that change all the time are read whole, also with two writers at once."""
    path = node / "conf" / "file"
    versions = [letter * 200_000 for letter in (b"a", b"b")]
    node_files.put(path, versions[0], 0o644)
    ended = threading.Event()

    def write() -> None:
        for turn in range(25):
            node_files.put(path, versions[turn % 2], 0o644)

    def read() -> None:
        while not ended.is_set():
            seen.append(path.read_bytes())

    seen: list[bytes] = []
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    reader.join()

    assert set(seen) <= set(versions)
    assert len(seen) > 10
    assert files(node) == {"conf/file"}


def test_configurations_that_a_runtime_prefers_are_named(node: Path, run: Run) -> None:
    for name in ("05-calico.conflist", "00-notes.txt", "87-podman.conflist", ".01-x.conf"):
        (node / "conf" / name).write_text("{}")

    done = run("install")

    assert done.returncode == 0
    assert "05-calico.conflist sorts before 10-virtkit.conflist" in done.stderr
    assert "87-podman" not in done.stderr
    assert "00-notes" not in done.stderr
    assert (node / "conf" / "05-calico.conflist").exists()


def test_a_dry_run_writes_nothing(node: Path, run: Run) -> None:
    done = run("install --dry-run")

    assert done.returncode == 0
    assert done.stdout.count("would be written") == 2
    assert '"network": "pods"' in done.stdout
    assert files(node) == set()


def test_uninstall_takes_both_away_and_nothing_else(node: Path, run: Run) -> None:
    assert run("install").returncode == 0
    (node / "bin" / "bridge").touch()
    (node / "conf" / "87-podman.conflist").touch()

    foretold, done, again = run("uninstall --dry-run"), run("uninstall -o json"), run("uninstall")

    assert foretold.stdout.count("would be removed") == 2
    assert [one["file"].rpartition("/")[2] for one in json.loads(done.stdout)] == [
        "10-virtkit.conflist",
        "virtkit",
    ]
    assert files(node) == {"bin/bridge", "conf/87-podman.conflist"}
    assert again.returncode == 0
    assert again.stdout.count("absent") == 2


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("install --tenant Red", 2, "tenant name 'Red' is not usable"),
        ("install --network a/b", 2, "network name 'a/b' is not usable"),
        ("install --name ../x", 2, "conflist name '../x' is not usable"),
        ("install --cni-version 2.0.0", 2, "Choose of: 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        ("install --mtu 9", 2, "MTU 9 is out of range. Choose 576 to 65535"),
        ("install --allow route", 2, "--allow 'route' is not known. Choose of: ips, mac"),
        ("install --chain dhcp", 2, "--chain 'dhcp' is not known. Choose of: portmap"),
        ("install --chain bandwidth", 2, "chained plugin bandwidth is not in"),
        ("install --chain none --chain portmap", 2, "--chain none stands alone"),
        ("install --sysctl a=b", 2, "Give both `--chain tuning` and --sysctl"),
        ("install --sysctl ab", 2, "sysctl 'ab' is not KEY=VALUE"),
        ("install --conflist x.json", 2, "conflist file 'x.json' would be read by no runtime"),
        ("install --conflist ../x.conflist", 2, "Give a name without directories"),
        ("install --conflist .x.conflist", 2, "would be read by no runtime"),
        ("uninstall --conflist x", 2, "would be read by no runtime"),
        ("install --program /nowhere", 2, "program /nowhere can't be read"),
        ("install --program /etc/passwd", 2, "program /etc/passwd is no executable"),
        ("install --bin-dir /proc/nowhere", 1, "can't be written (No such file or directory)"),
        ("install --bin-dir /dev/null", 1, "/dev/null/virtkit can't be written"),
        ("install --wait-for-agent 0", 2, ""),
    ],
)
def test_bad_input(node: Path, run: Run, line: str, code: int, says: str) -> None:
    done = run(line)

    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not says or len(done.stderr.splitlines()) == 1
    assert files(node) == set()
