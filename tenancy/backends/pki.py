"""Certificate authorities and certificates in a directory, by the library `cryptography`.

    DIR/hosts/      ca.pem, ca.key      DIR/operators/  ca.pem, ca.key
    DIR/issued/host-h1/                 cert.pem, key.pem, ca.pem
    DIR/issued/server-db1/hosts/ and operators/    the same

What is under `issued` is what a machine gets as its /etc/virtkit/tls. A directory appears with all
that is in it or not at all. Keys are of mode 0600, and are never printed.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tenancy.errors import BackendUnavailable, NotFound
from tenancy.pki import AUTHORITY_DAYS, Authority, Issued, Kind, is_due

DEFAULT_DIRECTORY = Path("/etc/virtkit/pki")
# A clock that is somewhat behind must not take a new certificate for one of the future.
_BACKDATED = timedelta(hours=1)

_Key = ec.EllipticCurvePrivateKey


def init(directory: Path) -> bool:
    """Make the authorities that are missing; whether there were any."""
    with _locked(directory):
        made = False
        for authority in Authority:
            if not (directory / authority / "ca.pem").exists():
                _make_authority(directory, authority)
                made = True
        return made


def issue(directory: Path, kind: Kind, name: str, *, days: int, renew: bool = False) -> Path:
    """Have a certificate for this name, and return the directory to be carried there.

    One that is good for some time yet stays, unless `renew` asks for another key and certificate.
    Raises NotFound if there is no authority.
    """
    place = directory / "issued" / f"{kind}-{name}"
    with _locked(directory):
        signers = {one: _load_authority(directory, one) for one in kind.authorities}
        now = datetime.now(UTC)
        if place.exists() and not renew and not any(is_due(i.not_after, now) for i in _in(place)):
            return place
        fresh = _fresh(place)
        for authority, (certificate, key) in signers.items():
            bundle = fresh / authority if kind.serves else fresh
            bundle.mkdir(mode=0o700, exist_ok=True)
            own = ec.generate_private_key(ec.SECP256R1())
            signed = _sign(kind, name, own, certificate, key, min(days, _days_left(certificate)))
            _write_key(bundle / "key.pem", own)
            _write(bundle / "cert.pem", signed.public_bytes(serialization.Encoding.PEM), 0o644)
            shutil.copyfile(directory / authority / "ca.pem", bundle / "ca.pem")
        _put(fresh, place)
    return place


def issued(directory: Path) -> list[Issued]:
    """What was issued, by kind and name."""
    places = sorted((directory / "issued").glob("[!.]*"))
    return [one for place in places for one in _in(place)]


def holder(certificate: Path) -> str:
    """The common name in a certificate. Raises BackendUnavailable if the file is none."""
    found = _read_certificate(certificate)
    names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _in(place: Path) -> list[Issued]:
    kind, _, name = place.name.partition("-")
    found = []
    for path in sorted(place.rglob("cert.pem")):
        certificate = _read_certificate(path)
        own = Authority(path.parent.name) if path.parent != place else Kind(kind).authorities[0]
        found.append(
            Issued(
                kind=Kind(kind),
                name=name,
                authority=own,
                serial=f"{certificate.serial_number:x}",
                not_after=certificate.not_valid_after_utc,
                directory=str(path.parent),
            )
        )
    return found


def _make_authority(directory: Path, authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"virtkit {authority}")
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, subject, key, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    place = directory / authority
    fresh = _fresh(place)
    _write_key(fresh / "ca.key", key)
    _write(fresh / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    _put(fresh, place)


def _sign(
    kind: Kind, name: str, own: _Key, authority: x509.Certificate, key: _Key, days: int
) -> x509.Certificate:
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH if kind.serves else ExtendedKeyUsageOID.CLIENT_AUTH]
    if kind is Kind.MEMBER:
        # Members of a cluster call one another.
        purposes.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    return (
        _builder(_subject(name), authority.subject, own, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: _Key, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _days_left(authority: x509.Certificate) -> int:
    """What it signs must not outlive it."""
    return max(1, (authority.not_valid_after_utc - datetime.now(UTC)).days)


def _load_authority(directory: Path, authority: Authority) -> tuple[x509.Certificate, _Key]:
    place = directory / authority
    try:
        certificate = _read_certificate(place / "ca.pem")
        key = serialization.load_pem_private_key((place / "ca.key").read_bytes(), None)
    except FileNotFoundError as error:
        raise NotFound(
            f"authority {authority}: {error.filename} is not there. Make it: "
            f"nvctl pki init --directory {directory}."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise BackendUnavailable(
            f"authority {authority}: {place / 'ca.key'} can't be used ({error}). Bring it back "
            "from a copy."
        ) from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return certificate, key


def _read_certificate(path: Path) -> x509.Certificate:
    text = path.read_bytes()
    try:
        return x509.load_pem_x509_certificate(text)
    except ValueError as error:
        raise BackendUnavailable(f"{path} is no certificate ({error}).") from error


def _write_key(path: Path, key: _Key) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, text, 0o600)


def _write(path: Path, text: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _fresh(place: Path) -> Path:
    """An empty directory beside `place`, in place of what a killed process has left."""
    fresh = place.with_name(f".{place.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    return fresh


def _put(fresh: Path, place: Path) -> None:
    """Let `fresh` be `place`; what was there before goes. Killed between, a second run mends it."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BackendUnavailable(
            f"directory {directory} can't be written ({error.strerror}). Run as root, or name "
            "another with --directory."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
