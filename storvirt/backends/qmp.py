"""QEMU's control socket (QMP), for a few commands on block devices.

https://www.qemu.org/docs/master/interop/qmp-spec.html. Events are passed over: states are asked
for, because an event that came before the connection would be missed.
"""

import json
import socket
from pathlib import Path
from typing import Any, Self

from tenancy.errors import BackendUnavailable, Refused

TIMEOUT_S = 20.0


class QmpError(Refused):
    """QEMU refused a command. `kind` is its class, such as DeviceNotFound."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Qmp:
    """One connection. Get one from `connect`."""

    def __init__(self, connection: socket.socket, path: Path) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        self._path = path

    @classmethod
    def connect(cls, path: Path) -> Self:
        """Raises BackendUnavailable if nobody, or nobody who speaks QMP, answers there."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
            found = cls(connection, path)
            if "QMP" not in found._receive():
                raise ValueError("no greeting")
        except (OSError, ValueError) as error:
            connection.close()
            raise BackendUnavailable(
                f"no QEMU answers on {path} ({error}). Name the QMP socket of the guest that has "
                "the image; it serves one client at a time."
            ) from error
        found("qmp_capabilities")
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def __call__(self, command: str, **arguments: object) -> Any:
        """The answer to a command; underscores in names stand for dashes. Raises QmpError."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = {"execute": command, "arguments": named}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._receive()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    error = answer["error"]
                    raise QmpError(f"QEMU refuses {command}: {error['desc']}.", error["class"])
        except (OSError, ValueError) as error:
            raise BackendUnavailable(
                f"QEMU on {self._path} has gone while it did {command} ({error})."
            ) from error

    def _receive(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise ValueError("it closed the connection")
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("it speaks something else")
        return found
