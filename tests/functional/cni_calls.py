"""Calling a CNI program as runtimes do: environment and standard input, answer and exit status.

Nothing here knows virtkit: the reference plugins are called in the same way. A configuration is
the one that a plugin gets, not the list in which an operator writes it; see "Deriving execution
configuration from plugin configuration" in the CNI specification.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Config = Mapping[str, Any]

REFERENCE = Path("/usr/lib/cni")
TIMEOUT_S = 60.0


class Place(Protocol):
    """Where programs run: a `lab.host.Host`, or `Here`."""

    def popen(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> "subprocess.Popen[bytes]":
        """A program started there, with these variables besides the caller's."""
        ...


class Here:
    """This machine itself, no lab."""

    def popen(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None,
        stdin: int,
        stdout: int,
        stderr: int,
    ) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            argv,
            env={**os.environ, **(environment or {})},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What a call is about: one interface of one container."""

    id: str
    netns: str
    interface: str = "eth0"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CNI_CONTAINERID": self.id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.interface,
        }

    @property
    def listed(self) -> dict[str, str]:
        """How GC is told that it is in use."""
        return {"containerID": self.id, "ifname": self.interface}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A program that has ended."""

    status: int
    stdout: bytes
    stderr: bytes

    def document(self) -> dict[str, Any]:
        """The object on standard output, whatever it means."""
        found = json.loads(self.stdout)
        assert isinstance(found, dict), self
        return found

    def result(self) -> dict[str, Any]:
        """What a call answered that succeeded."""
        assert self.status == 0, self
        return self.document()

    def succeeded(self) -> bool:
        """Whether it ended well and had nothing to say, as all verbs but ADD and VERSION must."""
        return (self.status, self.stdout) == (0, b"")


class Plugin:
    """A CNI program in some place."""

    def __init__(self, program: str | Path, place: Place, *, path: str | Path = REFERENCE) -> None:
        """`path` is where it finds the programs that it calls itself."""
        self.program = str(program)
        self._place = place
        self._path = str(path)

    def call(self, environment: Mapping[str, str], stdin: bytes | Config) -> Answer:
        """Any call, the broken ones also. No variable is added, CNI_PATH neither."""
        assert not any(name.startswith("CNI_") for name in os.environ)
        text = stdin if isinstance(stdin, bytes) else json.dumps(dict(stdin)).encode()
        process = self._place.popen(
            [self.program],
            environment=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            stdout, stderr = process.communicate(text, timeout=TIMEOUT_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return Answer(status=process.returncode, stdout=stdout, stderr=stderr)

    def environment(
        self, verb: str, about: Container | None = None, args: str | None = None
    ) -> dict[str, str]:
        """The variables that a runtime sets for a call."""
        return {
            "CNI_COMMAND": verb,
            "CNI_PATH": self._path,
            **(about.environment if about else {}),
            **({} if args is None else {"CNI_ARGS": args}),
        }

    def add(self, config: Config, about: Container, *, args: str | None = None) -> Answer:
        return self.call(self.environment("ADD", about, args), config)

    def delete(
        self, config: Config, about: Container, *, previous: Any = None, args: str | None = None
    ) -> Answer:
        """DEL; with `previous`, what ADD answered, as runtimes pass it since 0.4.0."""
        return self.call(self.environment("DEL", about, args), _with(config, previous))

    def check(
        self, config: Config, about: Container, previous: Any, *, args: str | None = None
    ) -> Answer:
        return self.call(self.environment("CHECK", about, args), _with(config, previous))

    def collect(self, config: Config, valid: Sequence[Container]) -> Answer:
        """GC, `valid` being the attachments that are in use. libcni writes both keys."""
        listed = [container.listed for container in valid]
        keys = {"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}
        return self.call(self.environment("GC"), {**config, **keys})

    def status(self, config: Config) -> Answer:
        return self.call(self.environment("STATUS"), config)

    def version(self, version: str) -> Answer:
        return self.call({"CNI_COMMAND": "VERSION"}, {"cniVersion": version})


def _with(config: Config, previous: Any) -> Config:
    return config if previous is None else {**config, "prevResult": previous}
