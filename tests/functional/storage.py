"""`svctl` in a lab, as the storage tests call it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.host import Host

PROBES = Path(__file__).with_name("probes")


@dataclass(frozen=True)
class Refusal:
    """How a command failed."""

    exit_code: int
    sentence: str


class Svctl:
    """Calls give the decoded result and insist on success; `refused` insists on failure."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __call__(self, *arguments: str, timeout_s: float = 120) -> Any:
        done = self.run(*arguments, *_json(arguments), timeout_s=timeout_s)
        assert done.returncode == 0, f"svctl {' '.join(arguments)}: {done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def refused(self, *arguments: str, timeout_s: float = 120) -> Refusal:
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode != 0, f"svctl {' '.join(arguments)} was not refused: {done.stdout}"
        assert "Traceback" not in done.stderr, done.stderr
        return Refusal(done.returncode, done.stderr.strip().splitlines()[-1])

    def run(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return self.host.run(["svctl", *arguments], check=False, timeout_s=timeout_s)

    def probe(self, name: str, *arguments: object, timeout_s: float = 240) -> Any:
        """What a program of `probes/` prints, run beside the cluster."""
        done = self.host.run(probe_command(name, *arguments), timeout_s=timeout_s)
        return json.loads(done.stdout)

    def images(self, tenant: str) -> list[str]:
        return [image["name"] for image in self("image", "list", "--tenant", tenant)]

    def used(self, tenant: str) -> dict[str, int]:
        """The tenant's use of the storage resources."""
        quota = self("tenant", "get", tenant)["quota"]
        return {name: quota[name]["used"] for name in ("images", "bytes", "snapshots")}

    def remove_tenant(self, tenant: str) -> None:
        """Take away a tenant with all its storage, if it is there."""
        if all(found["name"] != tenant for found in self("tenant", "list")):
            return
        self("trash", "purge", "--all", "--tenant", tenant, "--yes")
        for group in self("group", "list", "--tenant", tenant):
            for moment in group["snapshots"]:
                ref = f"{group['name']}@{moment}"
                self("group", "delete-snapshot", ref, "--tenant", tenant, "--yes")
            self("group", "delete", group["name"], "--tenant", tenant, "--yes")
        images = self("image", "list", "--tenant", tenant)
        clones = [image["name"] for image in images if image["parent"]]
        for name in clones:
            self._remove_image(tenant, name)
        for golden in self("golden", "list", "--tenant", tenant):
            self("golden", "delete", golden["name"], "--tenant", tenant, "--yes")
        for name in self.images(tenant):
            self._remove_image(tenant, name)
        for namespace in self("namespace", "list", "--tenant", tenant):
            self("namespace", "delete", tenant, "--pool", namespace["pool"], "--yes")
        self("tenant", "delete", tenant, "--yes")

    def _remove_image(self, tenant: str, name: str) -> None:
        for snapshot in self("snapshot", "list", name, "--tenant", tenant):
            ref = snapshot["snapshot"]
            if snapshot["protected"]:
                self("snapshot", "unprotect", ref, "--tenant", tenant)
            verb = ("backup", "release") if snapshot["held_by"] else ("snapshot", "delete")
            self(*verb, ref, "--tenant", tenant, "--yes")
        self("image", "delete", name, "--tenant", tenant, "--yes")


def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Wait for what is to happen by itself."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def probe_command(name: str, *arguments: object) -> list[str]:
    """The command line of a program of `probes/`."""
    return [sys.executable, str(PROBES / f"{name}.py"), *map(str, arguments)]


# Verbs that print nothing but what they say.
_SILENT = {
    "delete",
    "delete-snapshot",
    "flatten",
    "purge",
    "release",
    "remove",
    "rename",
    "restore",
    "rollback",
    "unfence",
    "unlock",
}


def _json(arguments: tuple[str, ...]) -> tuple[str, ...]:
    shown = arguments[:2] == ("backup", "restore")
    return () if _SILENT & set(arguments[1:2]) and not shown else ("-o", "json")
