"""The fabric's daemons in a lab: the database in `ctl`, an agent in every host, their settings."""

import shutil
from pathlib import Path

from lab import ovs, underlay
from lab.daemon import Daemon
from lab.host import CTL, Host
from tenancy.backends import embedded, pki, tls
from tenancy.pki import DEFAULT_DAYS, Kind

_SOCKET = "/run/virtkit/fabric.sock"
_DATABASE = Path("/var/lib/virtkit/fabric.db")
_PORT = 6640
_AGENT_READY = "/run/virtkit/agent.ready"


def database(*, secured: bool) -> Daemon:
    """The fabric database: on a unix socket for `ctl`, on TCP for the hosts, with TLS if asked."""
    own, port = f"punix:{_SOCKET}", f"{_PORT}:{underlay.CTL_ADDRESS}"
    remotes = (own,) if secured else (own, f"ptcp:{port}")
    doors = (f"pssl:{port}",) if secured else ()
    certificates = embedded.DEFAULT_CERTIFICATES if secured else None
    return Daemon(
        name="fabric",
        argv=tuple(embedded.argv(_DATABASE, remotes, Path("/run/virtkit"), certificates)),
        log="/var/log/virtkit/fabric.log",
        before=lambda ctl: ctl.call(lambda: embedded.prepare(_DATABASE, doors)),
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


def certify(ctl: Host, host: Host) -> None:
    """Give a host, or `ctl` as the database's server, its certificates. `ctl` has the authorities,
    and must be the first."""
    authorities = ctl.path(str(pki.DEFAULT_DIRECTORY))
    pki.init(authorities)
    kind = Kind.SERVER if host.name == CTL else Kind.HOST
    issued = pki.issue(authorities, kind, host.name, days=DEFAULT_DAYS)
    shutil.copytree(issued, host.path(str(tls.DEFAULT_DIRECTORY)), dirs_exist_ok=True)


def write_settings(host: Host, *, secured: bool) -> None:
    """Write the host's virtkit.toml, for the agent and the operator commands there."""
    kind = "ssl" if secured else "tcp"
    db = f"unix:{_SOCKET}" if host.name == CTL else f"{kind}:{underlay.CTL_ADDRESS}:{_PORT}"
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
