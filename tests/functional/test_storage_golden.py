"""Golden images: what guests read through a host's block server, and what that reads of Ceph."""

import fcntl
import hashlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.host import Host
from lab.lab import Lab
from tests.functional.golden_host import BlockServer
from tests.functional.storage import PROBES, Svctl, until

pytestmark = [
    pytest.mark.functional,
    pytest.mark.ceph,
    pytest.mark.usefixtures("golden"),
]

MIB = 1 << 20
SIZE_BYTES = 20 * MIB + 192 * 1024
HOLES = (3, 4, 11)
DATA_BYTES = SIZE_BYTES - len(HOLES) * MIB
CHUNKS = 21 - len(HOLES)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with holes, whose last chunk is short."""
    path = tmp_path_factory.mktemp("golden") / "disk.raw"
    content = bytearray(random.Random(4).randbytes(SIZE_BYTES))
    for hole in HOLES:
        content[hole * MIB : (hole + 1) * MIB] = bytes(MIB)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def golden(svctl: Svctl, red: str, original: Path) -> Iterator[str]:
    """A golden image of that disk."""
    made = svctl("golden", "create", "win10", "--tenant", red, "--from", str(original))
    assert made["state"] == "ready"
    assert made["data_bytes"] == DATA_BYTES
    yield "win10"
    clones = [one["name"] for one in svctl("image", "list", "--tenant", red) if one["parent"]]
    svctl("image", "delete", *clones, "--tenant", red, "--yes")
    for one in svctl("golden", "list", "--tenant", red):
        svctl("golden", "delete", one["name"], "--tenant", red, "--yes")


@pytest.fixture(scope="module")
def h1(ceph_lab: Lab) -> Host:
    return ceph_lab.host("h1")


@pytest.fixture
def server(h1: Host, red: str, tmp_path: Path) -> Iterator[BlockServer]:
    """The tenant's block server on h1, with an empty cache."""
    h1.run(["rm", "-rf", "/run/virtkit/golden"])
    with BlockServer(h1, red, tmp_path / "server.log") as running:
        yield running


def clone(svctl: Svctl, red: str, *names: str) -> None:
    for name in names:
        svctl("image", "clone", "win10", name, "--tenant", red, "--tier", "golden")


def test_many_readers_of_many_clones_read_each_block_once_from_the_cluster(
    svctl: Svctl, red: str, server: BlockServer, original: Path, ceph_lab: Lab
) -> None:
    svctl("image", "clone", "win10", "read", "-t", red, "--tier", "golden", "--count", "6")
    exports = [f"vms/read-{number}" for number in range(1, 7) for _ in range(2)]
    before = bytes_read_from_osds(ceph_lab)

    Svctl(server.host).probe("golden_readers", server.socket, original, *exports)

    found = server.status()
    assert (found["misses"], found["fetched_bytes"]) == (CHUNKS, DATA_BYTES)
    assert (found["passed_bytes"], found["fallen_bytes"]) == (0, 0)
    assert found["connections"] == 0
    # The witness that is not ours counts headers, maps and the manifest as well.
    assert DATA_BYTES <= bytes_read_from_osds(ceph_lab) - before <= 1.1 * DATA_BYTES


def test_random_use_of_a_clone_leaves_what_a_disk_would_also_to_stock_tools(
    svctl: Svctl, red: str, server: BlockServer, original: Path, tmp_path: Path
) -> None:
    clone(svctl, red, "mixed")
    pause = tmp_path / "quarter"
    probe = server.host.popen(
        [
            *("python3", str(PROBES / "golden_mix.py"), server.socket, "vms/mixed"),
            *(str(original), "480", "1", str(pause)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: pause.exists() or probe.poll() is not None, timeout_s=120)
    assert probe.poll() is None, probe.communicate()[1]
    at_snapshot = pause.read_text()
    svctl("snapshot", "create", "mixed@quarter", "--tenant", red)
    pause.unlink()
    out, err = probe.communicate(timeout=120)
    assert probe.returncode == 0, err

    assert content(svctl, red, "mixed") == json.loads(out)
    assert content(svctl, red, "mixed@quarter") == at_snapshot
    found = server.status()
    assert found["composed_objects"] > 0
    assert found["fetched_bytes"] <= DATA_BYTES
    svctl("snapshot", "delete", "mixed@quarter", "--tenant", red, "--yes")


def test_a_disk_that_was_cut_and_grown_again_shows_nothing_of_the_golden_image_there(
    svctl: Svctl, red: str, server: BlockServer, original: Path
) -> None:
    clone(svctl, red, "cut")
    kept = 5 * MIB + 4096
    svctl("image", "resize", "cut", "--size", str(kept), "--tenant", red, "--shrink", "--yes")
    svctl("image", "resize", "cut", "--size", "32MiB", "--tenant", red)

    found = read_through(server, "cut", 32 * MIB)
    disk = original.read_bytes()[:kept]
    assert found == hashlib.sha256(disk + bytes(32 * MIB - kept)).hexdigest()
    assert content(svctl, red, "cut") == found


def test_a_damaged_chunk_is_noticed_and_never_served(
    svctl: Svctl, red: str, server: BlockServer, original: Path
) -> None:
    clone(svctl, red, "damaged", "damaged-too")
    expected = hashlib.sha256(original.read_bytes()).hexdigest()
    assert read_through(server, "damaged", SIZE_BYTES) == expected
    fetched = server.status()["fetched_bytes"]
    flip_one_byte(server.chunks[0])
    flip_one_byte(server.chunks[1])

    assert read_through(server, "damaged-too", SIZE_BYTES) == expected

    found = server.status()
    assert found["corrupt_chunks"] == 2
    assert fetched < found["fetched_bytes"] <= fetched + 2 * MIB
    assert "in the cache is damaged" in server.log
    # A server that has not read them before finds out by their names.
    flip_one_byte(server.chunks[2])
    server.stop()
    server.start()
    assert read_through(server, "damaged", SIZE_BYTES) == expected
    assert server.status()["corrupt_chunks"] == 1


def test_a_server_killed_under_a_writer_loses_nothing_and_the_writer_goes_on(
    svctl: Svctl, red: str, server: BlockServer, original: Path
) -> None:
    clone(svctl, red, "killed")
    writes = 40
    disk = server.disk("killed", **{"reconnect-delay": "120"})
    writer = server.host.popen(
        ["stdbuf", "-oL", "qemu-io", "-t", "none", "--image-opts", disk],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert writer.stdin is not None and writer.stdout is not None
    for number in range(writes):
        writer.stdin.write(f"write -P {number + 1} {number * 400}k 8k\n")
        writer.stdin.flush()
        if number == writes // 2:
            # Before, under or after that write: each is one that happens.
            server.kill()
            server.start()
        line = writer.stdout.readline()
        while "wrote 8192/8192 bytes" not in line:
            assert line, "the writer has ended"
            assert "ailed" not in line, line
            line = writer.stdout.readline()
    writer.stdin.write("quit\n")
    writer.stdin.close()
    assert writer.wait(30) == 0

    expected = bytearray(original.read_bytes())
    for number in range(writes):
        at = number * 400 * 1024
        expected[at : at + 8192] = bytes([number + 1]) * 8192
    assert content(svctl, red, "killed") == hashlib.sha256(expected).hexdigest()


def test_what_a_killed_server_had_fetched_is_not_fetched_again(
    svctl: Svctl, red: str, server: BlockServer
) -> None:
    clone(svctl, red, "again")
    expected = read_through(server, "again", SIZE_BYTES)
    server.kill()
    half_written = server.chunks[0].parent / f".{'0' * 64}.part"
    half_written.write_bytes(b"half")
    server.start()

    assert read_through(server, "again", SIZE_BYTES) == expected
    assert server.status()["fetched_bytes"] == 0
    assert not half_written.exists()


def test_two_hosts_have_caches_of_their_own_and_a_cache_keeps_to_its_limit(
    svctl: Svctl, red: str, server: BlockServer, ceph_lab: Lab, tmp_path: Path
) -> None:
    clone(svctl, red, "here", "there")
    h2 = ceph_lab.host("h2")
    settings = h2.path("/etc/virtkit/virtkit.toml")
    before = settings.read_text()
    settings.write_text(before + '\n[golden]\nlimit = "16MiB"\n')
    most = 0
    try:
        with BlockServer(h2, red, tmp_path / "h2.log") as other:
            expected = read_through(server, "here", SIZE_BYTES)
            readers = [
                threading.Thread(target=read_through, args=(other, "there", SIZE_BYTES))
                for _ in range(2)
            ]
            for reader in readers:
                reader.start()
            while any(reader.is_alive() for reader in readers):
                most = max(most, cached_bytes(other))
                time.sleep(0.01)
            assert read_through(other, "there", SIZE_BYTES) == expected
            assert 8 * MIB < most <= 16 * MIB
            assert cached_bytes(other) <= 16 * MIB
            assert other.status()["evicted_chunks"] > 0
            assert other.status()["fetched_bytes"] >= DATA_BYTES
            assert server.status()["fetched_bytes"] == DATA_BYTES
    finally:
        settings.write_text(before)


def test_a_tenants_key_opens_no_clone_of_another_tenant(
    svctl: Svctl, red: str, blue: str, server: BlockServer, tmp_path: Path
) -> None:
    clone(svctl, red, "private")
    with BlockServer(server.host, blue, tmp_path / "blue.log") as other:
        refused = server.host.run(
            ["qemu-io", "-r", "-c", "read 0 4k", "--image-opts", other.disk("private")],
            check=False,
        )
        assert refused.returncode != 0
        assert "cannot" in refused.stderr.lower() or "not" in refused.stderr.lower()
    key = svctl.host.run(["ceph", "auth", "get-key", f"client.virtkit.{blue}"]).stdout.strip()
    conf = svctl.host.path("/etc/ceph/ceph.conf").read_text()
    forged = server.host.path("/run/forged.conf")
    forged.write_text(f"{conf}\n[client.virtkit.{blue}]\nkey = {key}\n")
    server.host.run(["rm", "-rf", "/run/forged"])
    server.host.path("/run/forged").mkdir()
    plugin = Path(__file__).parents[2] / "build" / "nbdkit-virtkit-golden-plugin.so"
    forged_server = server.host.popen(
        [
            *("nbdkit", "-f", "-U", "/run/forged/socket", str(plugin), "conf=/run/forged.conf"),
            *(f"user=virtkit.{blue}", f"namespace={red}", "cache=/run/forged/c", "limit=16M"),
            "state=/run/forged",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    until(
        lambda: server.host.path("/run/forged/socket").exists() or forged_server.poll() is not None
    )
    assert forged_server.poll() is None, forged_server.communicate()[1]
    refused = server.host.run(
        ["nbdinfo", "nbd+unix:///vms/private?socket=/run/forged/socket"], check=False
    )
    forged_server.terminate()
    assert refused.returncode != 0
    assert "Operation not permitted" in forged_server.communicate(timeout=30)[1]


def test_a_second_server_of_a_tenant_is_refused(server: BlockServer, red: str) -> None:
    refused = Svctl(server.host).refused("golden", "serve", "--tenant", red)
    assert "runs on this host already" in refused.sentence
    mode = server.host.path(server.socket).stat().st_mode & 0o777
    assert mode == 0o600


def test_a_golden_image_with_clones_stays(svctl: Svctl, red: str) -> None:
    clone(svctl, red, "held")
    refused = svctl.refused("golden", "delete", "win10", "--tenant", red, "--yes")
    assert "has clones" in refused.sentence and "Delete them first" in refused.sentence
    refused = svctl.refused("snapshot", "unprotect", "win10@golden", "--tenant", red)
    assert "is the golden image win10" in refused.sentence
    assert "held" in svctl("golden", "show", "win10", "--tenant", red)["clones"]


def test_an_interrupted_create_is_finished_or_given_up_and_quota_is_right(
    svctl: Svctl, red: str, original: Path
) -> None:
    before = svctl.used(red)
    for finish in (True, False):
        command = ["svctl", "golden", "create", "twice", "-t", red, "--from", str(original)]
        process = svctl.host.popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        until(
            lambda: any(one["name"] == "twice" for one in svctl("golden", "list", "-t", red)),
            timeout_s=60,
        )
        process.kill()
        process.wait()
        if finish and svctl("golden", "show", "twice", "-t", red)["state"] == "creating":
            made = svctl("golden", "create", "twice", "-t", red, "--from", str(original))
            assert (made["state"], made["data_bytes"]) == ("ready", DATA_BYTES)
        deleted = svctl.run("golden", "delete", "twice", "-t", red, "--yes")
        if deleted.returncode:
            # Ceph believes for some seconds that the killed one has the image open.
            until(
                lambda: svctl.run("golden", "delete", "twice", "-t", red, "--yes").returncode == 0,
                timeout_s=60,
            )
        assert svctl.used(red) == before


def test_what_can_not_be_golden_is_refused_in_a_sentence(
    svctl: Svctl, red: str, tmp_path: Path
) -> None:
    def create(name: str, source: str) -> str:
        done = svctl.refused("golden", "create", name, "--tenant", red, "--from", source)
        return done.sentence

    empty = tmp_path / "empty.raw"
    empty.touch()
    assert "already" in create("win10", "win10@golden")
    assert "is not usable" in create("a/b", "win10@golden")
    assert "has no snapshot nothing" in create("other", "win10@nothing")
    assert "does not exist" in create("other", str(tmp_path / "missing.raw"))
    assert "is empty" in create("other", str(empty))
    assert [one["name"] for one in svctl("golden", "list", "--tenant", red)] == ["win10"]
    refused = svctl.refused(
        "image", "clone", "nothing", "x", "--tenant", red, "--tier", "golden"
    ).sentence
    assert "has no golden image nothing" in refused


# What the tests look with


def content(svctl: Svctl, tenant: str, image: str) -> str:
    """The SHA-256 of an image as stock tools read it."""
    command = f"rbd export vms/{tenant}/{image} - --no-progress | sha256sum"
    return str(svctl.host.run(["sh", "-c", command], timeout_s=120).stdout.split()[0])


def read_through(server: BlockServer, image: str, size_bytes: int) -> str:
    """The SHA-256 of an image as a guest of the host reads it."""
    uri = f"nbd+unix:///vms/{image}?socket={server.socket}"
    script = (
        "import hashlib,nbd,sys;h=nbd.NBD();h.connect_uri(sys.argv[1]);n=h.get_size();"
        "d=hashlib.sha256();"
        "[d.update(h.pread(min(65536,n-a),a)) for a in range(0,n,65536)];"
        "h.shutdown();print(n,d.hexdigest())"
    )
    done = server.host.run(["python3", "-c", script, uri], timeout_s=120)
    size, found = done.stdout.split()
    assert int(size) == size_bytes
    return str(found)


def bytes_read_from_osds(lab: Lab) -> int:
    """What clients have read from all OSDs, as those count it."""
    total = 0
    for number in range(len(lab.hosts)):
        done = lab.ctl.run(["ceph", "tell", f"osd.{number}", "perf", "dump", "osd"])
        total += json.loads(done.stdout)["osd"]["op_r_out_bytes"]
    return total


def cached_bytes(server: BlockServer) -> int:
    """What the files of the cache have, whole and in the making, at one moment."""
    directory = server.host.path("/run/virtkit/golden/chunks")
    with (directory / "ledger").open("r+b") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        return sum(file.stat().st_size for file in directory.glob("*/*"))


def flip_one_byte(file: Path) -> None:
    with file.open("r+b") as chunk:
        chunk.seek(4096 * 3 + 17)
        old = chunk.read(1)
        chunk.seek(-1, 1)
        chunk.write(bytes([old[0] ^ 1]))
