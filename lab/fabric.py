"""The fabric's daemons in a lab: the database in `ctl`, an agent in every host, their settings."""

from pathlib import Path

from lab import ovs, underlay
from lab.daemon import Daemon
from lab.host import CTL, Host
from tenancy.backends import embedded

_SOCKET = "/run/virtkit/fabric.sock"
_DATABASE = Path("/var/lib/virtkit/fabric.db")
_PORT = 6640
_AGENT_READY = "/run/virtkit/agent.ready"


def database() -> Daemon:
    """The fabric database: on a unix socket for `ctl`, on TCP for the hosts."""
    remotes = (f"punix:{_SOCKET}", f"ptcp:{_PORT}:{underlay.CTL_ADDRESS}")
    return Daemon(
        name="fabric",
        argv=tuple(embedded.argv(_DATABASE, remotes, Path("/run/virtkit"))),
        log="/var/log/virtkit/fabric.log",
        before=lambda ctl: ctl.call(lambda: embedded.prepare(_DATABASE)),
        ready=lambda ctl: ovs.accepts(ctl, _SOCKET),
    )


def agent() -> Daemon:
    """The node agent; ready when its first synchronisation is done."""
    return Daemon(
        name="agent",
        argv=("nvctl", "agent", "run"),
        log="/var/log/virtkit/agent.log",
        stale=(_AGENT_READY,),
        ready=lambda host: host.path(_AGENT_READY).exists(),
    )


def write_settings(host: Host) -> None:
    """Write the host's virtkit.toml, for the agent and the operator commands there."""
    db = f"unix:{_SOCKET}" if host.name == CTL else f"tcp:{underlay.CTL_ADDRESS}:{_PORT}"
    host.path("/etc/virtkit/virtkit.toml").write_text(
        f'''db = "{db}"

[host]
name = "{host.name}"
tunnel_ip = "{host.address}"

[ceph]
conf = "/etc/ceph/ceph.conf"
user = "admin"
'''
    )
