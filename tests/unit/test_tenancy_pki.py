"""Authorities and certificates: what they are good for, appearing whole, keys kept secret."""

import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tenancy.backends import pki
from tenancy.errors import BackendUnavailable, InvalidRequest, NotFound
from tenancy.pki import Authority, Kind, checked_days, checked_name, is_due
from tests.conftest import command_on


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    pki.init(tmp_path / "pki")
    return tmp_path / "pki"


def verify(bundle: Path, purpose: str, authority: Path | None = None) -> str:
    """What OpenSSL says of a certificate used for this purpose."""
    done = subprocess.run(
        [
            *("openssl", "verify", "-CAfile", str(authority or bundle / "ca.pem")),
            *("-purpose", purpose, str(bundle / "cert.pem")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return "OK" if done.returncode == 0 else done.stderr


def test_a_hosts_certificate_is_a_clients_and_nobody_elses(directory: Path) -> None:
    bundle = pki.issue(directory, Kind.HOST, "h1", days=30)

    assert verify(bundle, "sslclient") == "OK"
    assert "unsuitable certificate purpose" in verify(bundle, "sslserver")
    assert "error" in verify(bundle, "sslclient", directory / "operators" / "ca.pem")


def test_a_server_is_known_to_hosts_and_to_operators(directory: Path) -> None:
    bundle = pki.issue(directory, Kind.SERVER, "db1", days=30)

    for authority in Authority:
        assert verify(bundle / authority, "sslserver") == "OK"
        assert "unsuitable certificate purpose" in verify(bundle / authority, "sslclient")


def test_no_key_can_be_read_by_others(directory: Path) -> None:
    for kind in Kind:
        pki.issue(directory, kind, "one", days=30)

    keys = [*directory.rglob("*.key"), *directory.rglob("key.pem")]
    assert len(keys) == 2 + 6
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_doing_it_again_changes_nothing(directory: Path) -> None:
    bundle = pki.issue(directory, Kind.HOST, "h1", days=300)
    before = {path: path.read_bytes() for path in directory.rglob("*.pem")}

    assert not pki.init(directory)
    assert pki.issue(directory, Kind.HOST, "h1", days=300) == bundle

    assert {path: path.read_bytes() for path in directory.rglob("*.pem")} == before


def test_a_certificate_that_ends_soon_is_issued_anew(directory: Path) -> None:
    bundle = pki.issue(directory, Kind.HOST, "h1", days=5)
    old = (bundle / "cert.pem").read_bytes(), (bundle / "key.pem").read_bytes()

    pki.issue(directory, Kind.HOST, "h1", days=300)
    new = (bundle / "cert.pem").read_bytes(), (bundle / "key.pem").read_bytes()

    assert old[0] != new[0] and old[1] != new[1]
    [found] = pki.issued(directory)
    assert found.not_after > datetime.now(UTC) + timedelta(days=299)
    assert pki.issue(directory, Kind.HOST, "h1", days=300, renew=True) == bundle
    assert (bundle / "key.pem").read_bytes() != new[1]


@pytest.mark.parametrize("leftover", [".host-h1.new", ".host-h1.old"])
def test_what_a_killed_process_left_is_no_obstacle(directory: Path, leftover: str) -> None:
    left = directory / "issued" / leftover
    left.mkdir(parents=True)
    (left / "key.pem").write_text("half a key")

    bundle = pki.issue(directory, Kind.HOST, "h1", days=30)

    assert verify(bundle, "sslclient") == "OK"
    assert [one.name for one in pki.issued(directory)] == ["h1"]
    assert not left.exists()


def test_what_is_wrong_is_said(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nvctl pki init"):
        pki.issue(tmp_path / "elsewhere", Kind.HOST, "h1", days=30)
    (directory / "hosts" / "ca.key").write_text("garbage")
    with pytest.raises(BackendUnavailable, match=r"hosts/ca\.key can't be used"):
        pki.issue(directory, Kind.HOST, "h1", days=30)
    assert not (directory / "issued" / "host-h1").exists()


@pytest.mark.parametrize("name", ["", "-h1", "h1/..", "../h1", "h 1", "h" * 65, "h1\n", "ü"])
def test_a_name_that_no_certificate_can_carry_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not usable in a certificate"):
        checked_name(Kind.HOST, name)


def test_validity_has_bounds() -> None:
    for days in (0, -1, 3651):
        with pytest.raises(InvalidRequest, match="can't be valid"):
            checked_days(days)
    now = datetime.now(UTC)
    assert is_due(now + timedelta(days=59), now)
    assert not is_due(now + timedelta(days=61), now)


def test_the_command_says_what_to_do(tmp_path: Path) -> None:
    nvctl = command_on("unix:/nonexistent")
    where = f"--directory {tmp_path}/pki"
    assert nvctl(f"nvctl pki issue host h1 {where}").stderr.startswith("authority hosts")
    assert nvctl(f"nvctl pki init {where}").returncode == 0
    issued = nvctl(f"nvctl pki issue host h1 {where}")
    assert issued.stdout.strip() == f"{tmp_path}/pki/issued/host-h1"
    assert nvctl(f"nvctl pki issue host h/1 {where}").returncode == 2
    listed = nvctl(f"nvctl pki list {where} -o json")
    assert '"name": "h1"' in listed.stdout
    everything = issued.stdout + listed.stdout + issued.stderr + listed.stderr
    assert "PRIVATE" not in everything
