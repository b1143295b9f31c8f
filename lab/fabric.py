"""The fabric's daemons in a lab: the database in `ctl`, or in some hosts as members of a cluster,
an agent in every host, and their settings."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lab import ovs, underlay
from lab.daemon import Daemon
from lab.host import CTL, Host
from tenancy.backends import cluster, embedded, pki, tls
from tenancy.backends import member as in_cluster
from tenancy.errors import BackendUnavailable
from tenancy.pki import DEFAULT_DAYS, Kind

_SOCKET = "/run/virtkit/fabric.sock"
_DATABASE = Path("/var/lib/virtkit/fabric.db")
_PORT, _RAFT_PORT = 6640, 6643
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


def member(name: str, members: Sequence[str]) -> Daemon:
    """A member of the clustered database: the first one makes it, the others join it."""
    address = underlay.address_of(name)
    own = _raft_address(name)
    others = [_raft_address(other) for other in members if other != name]

    def make() -> None:
        if name == members[0]:
            cluster.make_first(_DATABASE, own, source=None, election_ms=cluster.DEFAULT_ELECTION_MS)
        else:
            cluster.make_joining(_DATABASE, own, others)

    return Daemon(
        name="fabric",
        argv=tuple(
            embedded.argv(
                _DATABASE, (f"punix:{_SOCKET}", f"ptcp:{_PORT}:{address}"), Path("/run/virtkit")
            )
        ),
        log="/var/log/virtkit/fabric.log",
        before=lambda host: host.call(make),
        ready=lambda host: ovs.accepts(host, _SOCKET),
    )


def settle(host: Host) -> None:
    """Return when a host's member has been taken in, and the fabric knows its name."""
    if not in_cluster.settle(
        host.path("/run/virtkit"), name=host.name, doors=(), timeout_s=cluster.JOIN_S
    ):
        raise BackendUnavailable(
            f"{host.name}: its member of the fabric database is not taken in\n"
            + host.log_tail("fabric")
        )


def _raft_address(name: str) -> str:
    return f"tcp:{underlay.address_of(name)}:{_RAFT_PORT}"


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


def write_settings(host: Host, *, secured: bool, members: Sequence[str] = ()) -> None:
    """Write the host's virtkit.toml, for the agent and the operator commands there."""
    kind = "ssl" if secured else "tcp"
    db = f"unix:{_SOCKET}" if host.name == CTL else f"{kind}:{underlay.CTL_ADDRESS}:{_PORT}"
    if members:
        db = ",".join(f"tcp:{underlay.address_of(name)}:{_PORT}" for name in members)
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
