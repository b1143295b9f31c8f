"""Commands to a running guest, over the unix socket of its virtio-serial port.

The other side is guest_files/root/sbin/control; the two agree on one line in, and two marker
lines around the output back. The port needs no network in the guest. One connection at a time:
QEMU serves the next one when this one is closed.

`python -m lab.guest_shell SOCKET COMMAND...` runs one command in a guest by hand.
"""

import base64
import secrets
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tenancy.errors import BackendUnavailable

# How much longer than the guest itself we wait: the guest ends a command that takes too long.
GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class Result:
    """How a command in the guest ended, and what it wrote to stdout and stderr, in order."""

    exit_code: int
    output: str


class GuestShell:
    """A connection to the guest's control port, opened at the first command."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def run(self, command: str, timeout_s: float = 30.0, *, grace_s: float = GRACE_S) -> Result:
        """Run `command` in the guest's shell, as root, and wait for its end.

        A command that takes longer than `timeout_s` is killed, with all it started: exit code
        137. Raises BackendUnavailable when the guest itself does not answer for `grace_s` more.
        """
        token = secrets.token_hex(8)
        deadline = time.monotonic() + timeout_s + grace_s
        received = bytearray()
        try:
            port = self._connected()
            port.settimeout(max(deadline - time.monotonic(), 0.001))
            port.sendall(request(token, command, timeout_s))
            while (result := answer(bytes(received), token)) is None:
                port.settimeout(max(deadline - time.monotonic(), 0.001))
                chunk = port.recv(65536)
                if not chunk:
                    raise ConnectionError("the port was closed")
                received += chunk
        except OSError as error:
            self.close()
            raise BackendUnavailable(
                f"guest at {self.path}: no answer to `{command}`: {error}"
            ) from error
        return result

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(str(self.path))
        return self._socket


def request(token: str, command: str, timeout_s: float) -> bytes:
    """The line that asks the guest to run `command`."""
    script = base64.b64encode(command.encode()).decode()
    return f"{token} {timeout_s:g} {script}\n".encode()


def answer(received: bytes, token: str) -> Result | None:
    """The answer to request `token`, or None while it is not complete.

    What stands before it, the rest of an answer nobody waited for, is passed over.
    """
    _, begin, rest = received.partition(f"{token} begin\n".encode())
    output, end, tail = rest.partition(f"\n{token} end ".encode())
    code, newline, _ = tail.partition(b"\n")
    if not (begin and end and newline):
        return None
    return Result(int(code), output.decode(errors="replace"))


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print("usage: python -m lab.guest_shell SOCKET COMMAND...", file=sys.stderr)
        return 2
    path, *command = arguments
    try:
        with GuestShell(Path(path)) as shell:
            result = shell.run(" ".join(command))
    except BackendUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    print(result.output, end="")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
