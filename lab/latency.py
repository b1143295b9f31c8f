"""Distance between the hosts of a lab: a program that holds each frame for a set time.

The kernel's own netem is a module that many kernels lack. Here each host's uplink ends not on the
switch, but on a link that `relay.c` carries to the switch: what the host sends is held, what it
receives is not, so a frame between two hosts is held once. It is a daemon of `ctl`, one for each
host, and is killed, started again and taken down like any other.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from lab.daemon import Daemon
from tenancy.errors import BackendUnavailable

_SOURCE = Path(__file__).with_name("relay.c")
_BUILD = Path(__file__).resolve().parents[1] / "build"
_COMPILE = ("cc", "-std=c17", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror")
_COMPILE_TIMEOUT_S = 60.0


def near_link(host: str) -> str:
    """The link of `ctl` at which the host's uplink ends."""
    return f"{host}-near"


def far_link(host: str) -> str:
    """The link of `ctl` that leads to the host's port of the switch."""
    return f"{host}-far"


def relay_name(host: str) -> str:
    """The daemon that carries the host's frames."""
    return f"relay-{host}"


def relay(host: str, latency_us: int) -> Daemon:
    """The daemon between a host and the switch; ready when it has both links open."""
    ready = f"/run/virtlab/{relay_name(host)}.ready"
    return Daemon(
        name=relay_name(host),
        argv=(str(_program_path()), str(latency_us), near_link(host), far_link(host), ready),
        log=f"/var/log/virtkit/{relay_name(host)}.log",
        before=lambda _: build(),
        stale=(ready,),
        ready=lambda ctl: ctl.path(ready).exists(),
    )


def build() -> None:
    """Have the program of this source compiled. Safe against a second builder and being killed.

    Raises BackendUnavailable if there is no C compiler.
    """
    program = _program_path()
    if program.exists():
        return
    program.parent.mkdir(parents=True, exist_ok=True)
    # Each host's relay may be the first, and hosts are made by threads of one process.
    handle, draft = tempfile.mkstemp(prefix=f"{program.name}.", dir=program.parent)
    os.close(handle)
    try:
        subprocess.run(
            [*_COMPILE, "-o", draft, str(_SOURCE)],
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT_S,
            check=True,
        )
        Path(draft).chmod(0o755)
        Path(draft).rename(program)
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "no C compiler (cc) for the lab's relay. Install one: apt-get install gcc libc6-dev."
        ) from error
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise BackendUnavailable(f"{_SOURCE} can't be compiled: {reason}") from error
    finally:
        Path(draft).unlink(missing_ok=True)


def _program_path() -> Path:
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    return _BUILD / f"virtlab-relay-{digest}"
