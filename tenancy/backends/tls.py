"""TLS to the fabric database: `ssl:IP:PORT` as a remote, with the certificate of this machine.

The `ovs` library speaks it, but lets exceptions of the `ssl` module out where its callers expect
error numbers, so that an agent would end because of a server with the wrong certificate. The
stream here replaces its own. Importing this module is what makes `ssl:` remotes possible.
"""

import errno
import os
import select
import socket
import ssl
from pathlib import Path
from typing import Any

import ovs.socket_util
import ovs.stream

from tenancy.errors import BackendUnavailable, InvalidRequest

DEFAULT_DIRECTORY = Path("/etc/virtkit/tls")
KEY, CERTIFICATE, AUTHORITY = "key.pem", "cert.pem", "ca.pem"
FILES = (KEY, CERTIFICATE, AUTHORITY)
# What an operator can do about a handshake that fails.
HINT = "See `openssl verify -CAfile ca.pem cert.pem` in the directory of its certificates."


def use(directory: Path, remote: str) -> None:
    """Have connections of this process to `remote` use these certificates, if it needs any.

    Raises InvalidRequest if they are not there, or if others may read the key.
    """
    if not any(one.startswith("ssl:") for one in remote.split(",")):
        return
    check(directory)
    _Stream.context = _context(directory)


def check(directory: Path) -> None:
    """Raise InvalidRequest unless `directory` has a key of its owner's alone, with certificates."""
    for name in FILES:
        path = directory / name
        try:
            mode = path.stat().st_mode
            path.open().close()
        except OSError as error:
            raise InvalidRequest(
                f"{path} can't be read ({error.strerror}), and a database over TLS needs it. Put "
                "there what `nvctl pki issue` made for this machine, or name another directory in "
                "virtkit.toml, [tls] directory."
            ) from error
        if name == KEY and mode & 0o077:
            raise InvalidRequest(
                f"{path} may be read by others (mode {mode & 0o777:o}). Keep it to its owner: "
                f"chmod 600 {path}. If others have had access, issue another: nvctl pki issue "
                "--renew."
            )


def server_options(directory: Path) -> list[str]:
    """What an ovsdb-server must be told to serve with these certificates."""
    return [
        f"--private-key={directory / KEY}",
        f"--certificate={directory / CERTIFICATE}",
        f"--ca-cert={directory / AUTHORITY}",
        "--ssl-protocols=TLSv1.2",
    ]


def _context(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Any server that the authority has made one is right; it is found by address, not by name.
    context.check_hostname = False
    try:
        context.load_verify_locations(directory / AUTHORITY)
        context.load_cert_chain(directory / CERTIFICATE, directory / KEY)
    except (ssl.SSLError, OSError) as error:
        raise InvalidRequest(
            f"the certificates in {directory} can't be used ({_reason(error)}). Put there what "
            "`nvctl pki issue` made for this machine."
        ) from error
    return context


class _Stream(ovs.stream.SSLStream):  # type: ignore[misc]
    """A connection over TLS, whose errors are numbers."""

    context: ssl.SSLContext | None = None
    # Why the last handshake of this process failed, for whoever reports it.
    failure: str | None = None

    @staticmethod
    def _open(suffix: str, dscp: int) -> tuple[int, Any]:
        if _Stream.context is None:
            raise BackendUnavailable(
                f"ssl:{suffix} needs certificates, and none were given. See [tls] in virtkit.toml."
            )
        address = ovs.socket_util.inet_parse_active(suffix, 0)
        family, plain = ovs.socket_util.inet_create_socket_active(socket.SOCK_STREAM, address)
        if plain is None:
            return family, None
        secured = _Stream.context.wrap_socket(plain, do_handshake_on_connect=False)
        error = ovs.socket_util.inet_connect_active(secured, address, family, dscp)
        if error:
            secured.close()
            return error, None
        secured.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return 0, secured

    @staticmethod
    def check_connection_completion(sock: socket.socket) -> int:
        # The library's own writes a byte to learn what is wrong, which means nothing before the
        # handshake.
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if poll.poll(0) else errno.EAGAIN

    def connect(self) -> int:
        try:
            error = int(super().connect())
        except ssl.SSLError as failure:
            _Stream.failure = _reason(failure)
            return errno.EPROTO
        except OSError as failure:
            # It was refused or reset between two looks.
            return failure.errno or errno.EPROTO
        if error == 0:
            _Stream.failure = None
        return error

    def recv_wait(self, poller: Any) -> None:
        super().recv_wait(poller)
        # What is decrypted already makes no socket readable.
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            poller.immediate_wake()


def failure() -> str | None:
    """Why the last handshake failed, if it did."""
    return _Stream.failure


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the other side's certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    code = getattr(error, "errno", None)
    return os.strerror(code) if code else str(error)


ovs.stream.Stream.register_method("ssl", _Stream)
