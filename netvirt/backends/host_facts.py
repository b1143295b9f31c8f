"""What is to be known of this host's links and its agent for a check-up. Nothing is changed."""

import re
import socket
import subprocess
from pathlib import Path
from uuid import UUID

from pyroute2 import IPRoute, NetlinkError

from netvirt.checks.hosts import Link
from netvirt.model import PortId
from tenancy.errors import BackendUnavailable

_ALIAS = re.compile(r"virtkit ([a-z]+) ([0-9a-f-]{36})")
_CONNECT_S = 2.0


def own_links() -> tuple[Link, ...]:
    """The links that say by their alias that they are a port's."""
    try:
        with IPRoute() as here:
            found = [
                (link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_IFALIAS") or "")
                for link in here.get_links()
            ]
    except (NetlinkError, OSError) as error:
        raise BackendUnavailable(f"links: the kernel refuses ({error}). Run as root.") from error
    return tuple(
        Link(name=name, port=PortId(UUID(match[2])), maker=match[1])
        for name, alias in found
        if (match := _ALIAS.fullmatch(alias))
    )


def agent_answers(run_dir: Path) -> bool:
    """Whether somebody listens where this host's agent does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_S)
        try:
            connection.connect(str(run_dir / "cni.sock"))
        except OSError:
            return False
    return True


def namespace_exists(path: str) -> bool:
    """Whether a container's network namespace is still there."""
    return Path(path).exists()


def switch_version() -> str | None:
    """What ovs-vswitchd says it is; None if it does not answer."""
    argv = ["ovs-appctl", "--timeout=3", "-t", "ovs-vswitchd", "version"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # "ovs-vswitchd (Open vSwitch) 3.1.0"
    words = done.stdout.split()
    return words[3] if done.returncode == 0 and len(words) > 3 else None
