"""A host's block server of golden images, as the tests start, kill and ask it."""

import contextlib
import subprocess
from pathlib import Path
from typing import IO, Any

from lab.host import Host
from tests.functional.storage import Svctl, until


class BlockServer:
    """`svctl golden serve` for one tenant in one host of a lab; ended when the `with` ends."""

    def __init__(self, host: Host, tenant: str, log: Path, *options: str) -> None:
        self.host = host
        self.tenant = tenant
        self.socket = f"/run/virtkit/golden/{tenant}/socket"
        self._log = log
        self._options = options
        self._process: subprocess.Popen[Any] | None = None
        self._before: int | None = None

    def __enter__(self) -> "BlockServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        self._before = self.status().get("process")
        with self._log.open("a") as log:
            self._process = self._popen(log)
        # The socket is there from the beginning; the process is noted when it begins to serve.
        until(self._serves, timeout_s=60)

    def _popen(self, log: IO[str]) -> subprocess.Popen[Any]:
        return self.host.popen(
            ["svctl", "golden", "serve", "--tenant", self.tenant, *self._options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _serves(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        found = self.status()
        # What a server has counted stays behind it.
        return found.get("state") == "running" and found.get("process") not in (None, self._before)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
            self._process.kill()
            self._process.wait()

    def status(self) -> dict[str, Any]:
        """What `svctl golden status` says of this tenant's server."""
        found = Svctl(self.host)("golden", "status")
        for server in found["servers"]:
            if server["tenant"] == self.tenant:
                return dict(server)
        return {}

    def disk(self, image: str, **options: str) -> str:
        """A clone as QEMU's tools take it with --image-opts."""
        words = {
            "driver": "nbd",
            "server.type": "unix",
            "server.path": self.socket,
            "export": f"vms/{image}",
            **options,
        }
        return ",".join(f"{key}={value}" for key, value in words.items())

    @property
    def chunks(self) -> list[Path]:
        """The chunks' files in the host's cache, by names that work for us."""
        return sorted(
            file
            for file in self.host.path("/run/virtkit/golden/chunks").glob("*/*")
            if not file.name.startswith(".")
        )
