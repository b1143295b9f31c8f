"""The block server's cache without Ceph: threads, killed processes, damage, and manifests."""

import random
import re
import subprocess
from pathlib import Path

import pytest

from storvirt.golden import (
    CHUNK_BYTES,
    Counters,
    chunk_digest,
    counters,
    digests_of,
    export_name,
    manifest,
    qemu_blockdev,
)
from storvirt.model import ImagePath, PoolName, TenantName
from tenancy.errors import VerificationFailed

PLUGIN = Path(__file__).parents[2] / "plugins" / "golden"
SOURCES = ("cache.c", "counters.c", "digest.c", "golden.c", "manifest.c", "say.c")
PATH = ImagePath(pool=PoolName("vms"), namespace=TenantName("red"), name="web")


def compiled(target: Path, program: str, *flags: str) -> Path:
    subprocess.run(
        [
            *("gcc", "-std=c17", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror"),
            *flags,
            *("-o", str(target), str(PLUGIN / "tests" / program)),
            *(str(PLUGIN / name) for name in SOURCES),
            "-lcrypto",
        ],
        check=True,
    )
    return target


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_readers_get_right_bytes_within_the_limit_while_processes_die_and_chunks_rot(
    sanitizers: str, tmp_path: Path
) -> None:
    storm = compiled(tmp_path / "storm", "storm.c", f"-fsanitize={sanitizers}")
    done = subprocess.run(
        [str(storm), str(tmp_path / "cache"), "4"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Sanitizer" not in done.stderr
    found = re.fullmatch(r"(\d+) deaths, at most (\d+) of (\d+) bytes\n", done.stdout)
    assert found is not None
    deaths, most, limit = map(int, found.groups())
    assert deaths > 0
    assert limit / 2 < most <= limit


def test_a_manifest_comes_back_as_it_was_written_and_a_changed_one_does_not() -> None:
    digests = [chunk_digest(b"a" * CHUNK_BYTES), None, chunk_digest(b"tail")]
    size = 2 * CHUNK_BYTES + 4
    data = manifest(size, digests)
    assert digests_of(data) == (size, digests)
    for at in random.Random(1).sample(range(len(data)), 20):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(VerificationFailed):
            digests_of(bytes(changed))


def test_the_block_server_refuses_every_changed_and_every_cut_manifest(tmp_path: Path) -> None:
    reader = compiled(tmp_path / "reader", "read_manifest.c", "-fsanitize=address,undefined")
    data = manifest(2 * CHUNK_BYTES, [chunk_digest(b"b" * CHUNK_BYTES), None])

    def read(data: bytes) -> str:
        done = subprocess.run([str(reader)], input=data, capture_output=True, check=False)
        assert not done.stderr, done.stderr
        return done.stdout.decode()

    assert read(data) == f"{2 * CHUNK_BYTES} bytes in 2 chunks, 1 of zeros\n"
    for length in (0, 1, 23, 56, len(data) - 1):
        assert read(data[:length]).startswith("refused: ")
    for at in (0, 9, 17, 21, 30, len(data) - 1):
        assert read(data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]).startswith("refused: ")


def test_a_chunk_of_zeros_has_no_digest_whatever_its_length() -> None:
    assert chunk_digest(bytes(CHUNK_BYTES)) is None
    assert chunk_digest(bytes(5)) is None
    assert chunk_digest(bytes(CHUNK_BYTES - 1) + b"\1") is not None


def test_counters_are_those_of_the_header_file_in_its_order() -> None:
    header = (PLUGIN / "counters.h").read_text()
    names = re.findall(r"_Atomic uint64_t (\w+);", header)
    values = range(1, len(names) + 1)
    data = b"VKGSTAT1" + b"".join(value.to_bytes(8, "little") for value in values)
    found = counters(data)
    assert isinstance(found, Counters)
    assert [getattr(found, name) for name in names] == list(values)
    assert counters(data[:-1]) is None
    assert counters(b"VKGSTAT2" + data[8:]) is None


def test_qemu_waits_for_a_server_that_is_away_and_sends_again() -> None:
    node = qemu_blockdev(PATH, "node", "/run/socket", 3600)
    assert node["export"] == export_name(PATH) == "vms/web"
    assert node["reconnect-delay"] == 3600
    assert node["server"] == {"type": "unix", "path": "/run/socket"}
