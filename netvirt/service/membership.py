"""Making a machine a host of the fabric, and taking that back.

`prepare` writes who this machine is, after everything that can be wrong was looked at; `enter`
starts the agent and waits until the fabric knows it; `leave` takes both back. Each step may be
repeated, and continues what was cut off.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import msgspec

from netvirt.backends import host_switch, links, node_files, service_manager
from netvirt.backends.datapath import USERSPACE, datapath_type
from netvirt.model import Host
from netvirt.service import hosts
from tenancy import settings
from tenancy.backends import pki, tls
from tenancy.backends.fabric import Fabric
from tenancy.errors import BackendUnavailable, Conflict, InvalidRequest, NotFound, Refused
from tenancy.names import validate_name, validate_remotes
from tenancy.settings import Settings

BRIDGE = "br-int"
# VXLAN over IPv4 takes 50 bytes, GRE 42; a container with IPv6 needs 1280 (RFC 8200).
SMALLEST_UNDERLAY_MTU = 1280 + 50
RUN_DIR = Path("/run/virtkit")
_POLL_S = 0.3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Who this machine is to be. `certificates` is what `nvctl pki issue host NAME` made."""

    name: str
    tunnel_ip: IPv4Address
    db: str
    certificates: Path | None = None


def prepare(
    wish: Wish,
    *,
    file: Path = settings.DEFAULT_FILE,
    replace: bool = False,
) -> dict[Path, bool]:
    """Write virtkit.toml and the certificates; by path, whether the file had to be written.

    Everything is looked at before anything is written. Raises InvalidRequest or Refused if this
    machine can't be that host, BackendUnavailable if its switch or the database does not answer.
    """
    validate_name("host", wish.name)
    present = settings.load(file=file, environment={})
    wanted = msgspec.structs.replace(
        present,
        db=validate_remotes(wish.db),
        host=msgspec.structs.replace(present.host, name=wish.name, tunnel_ip=str(wish.tunnel_ip)),
    )
    if file.exists() and wanted != present and not replace:
        raise Refused(
            f"{file} says that this machine is host {present.host.name} with tunnel IP "
            f"{present.host.tunnel_ip or 'none'} and database {present.db}. Give --replace to "
            f"write it anew; what it says now is kept as {_before(file)}."
        )
    files = _certificates(wish, Path(wanted.tls.directory))
    _check_underlay(wish.tunnel_ip)
    _check_fabric(wish, Path(wanted.tls.directory))
    if wanted != present or not file.exists():
        if file.exists():
            node_files.put(_before(file), file.read_bytes(), 0o644)
        files[file] = (settings.as_toml(wanted).encode(), 0o644)
    written = {}
    for path, (contents, mode) in files.items():
        written[path] = not node_files.is_as_wanted(path, contents, mode)
        if written[path]:
            node_files.put(path, contents, mode)
    return written


def enter(fabric: Fabric, own: Settings, *, wait_s: float, say: Say = lambda _: None) -> Host:
    """Start the agent, where systemd runs, and wait until it has reported and has no problems.

    Raises BackendUnavailable with what the agent complains of, or that it is silent, after
    `wait_s`. Without systemd the agent is somebody else's to start.
    """
    name = own.host.name
    if own.host.tunnel_ip is None:
        raise InvalidRequest(f"host {name} is not prepared. First: nvctl host init.")
    _refuse_double(fabric, name, IPv4Address(own.host.tunnel_ip))
    host_switch.bridges()
    if service_manager.runs():
        service_manager.start(service_manager.AGENT)
    elif not node_files.agent_answers(RUN_DIR):
        say("no systemd here: have `nvctl agent run` run as your supervisor runs services")
    give_up = time.monotonic() + wait_s
    while not (_is_in(fabric, own) and node_files.agent_answers(RUN_DIR)):
        if time.monotonic() > give_up:
            raise BackendUnavailable(_missing(fabric, own, wait_s))
        time.sleep(_POLL_S)
    return hosts.get(fabric, name)


def leave(
    fabric: Fabric,
    own: Settings,
    *,
    force: bool = False,
    purge: bool = False,
    file: Path = settings.DEFAULT_FILE,
    say: Say = lambda _: None,
) -> None:
    """Stop the agent, forget the host, and take its bridge away, with its tunnels.

    Refused while ports are bound here, unless by `force`: those of containers go then, and the
    others are unbound. With `purge` the host's settings and certificates go too.
    """
    name = own.host.name
    bound = hosts.bound_ports(fabric).get(name, 0)
    if bound and not force:
        raise Refused(
            f"host {name} holds {bound} bound port{'s' if bound > 1 else ''}. Move its VMs and "
            "containers away first, or give --force and they lose their network."
        )
    if service_manager.runs():
        service_manager.stop(service_manager.AGENT)
    elif node_files.agent_answers(RUN_DIR):
        raise Refused(
            f"the agent of host {name} runs, and would enter it again. Stop it where it was "
            "started, then run the same command."
        )
    try:
        # The agent is stopped here, however lately it has reported.
        hosts.delete(fabric, name, now_s=int(time.time()) + hosts.ALIVE_S, force=force)
        say(f"host {name} is forgotten by the fabric")
    except NotFound:
        say(f"host {name} is not in the fabric")
    if host_switch.remove_bridge(BRIDGE):
        say(f"bridge {BRIDGE} is removed")
    if purge:
        directory = Path(own.tls.directory)
        for path in (*(directory / one for one in tls.FILES), file):
            if node_files.remove(path):
                say(f"{path} is removed")


def _certificates(wish: Wish, directory: Path) -> dict[Path, tuple[bytes, int]]:
    """The files that the certificates become; none if they are not given."""
    if wish.certificates is None:
        return {}
    tls.check(wish.certificates)
    holder = pki.holder(wish.certificates / tls.CERTIFICATE)
    if holder != wish.name:
        raise InvalidRequest(
            f"the certificate in {wish.certificates} is {holder}'s, and the database would take "
            f"this host for that. Issue one: nvctl pki issue host {wish.name}."
        )
    return {
        directory / one: (
            (wish.certificates / one).read_bytes(),
            0o600 if one == tls.KEY else 0o644,
        )
        for one in tls.FILES
    }


def _check_underlay(tunnel_ip: IPv4Address) -> None:
    link, mtu_bytes = links.underlay_mtu(tunnel_ip)
    if mtu_bytes < SMALLEST_UNDERLAY_MTU:
        raise InvalidRequest(
            f"{link}, which has the tunnel IP {tunnel_ip}, has MTU {mtu_bytes}, too small for an "
            f"overlay: at least {SMALLEST_UNDERLAY_MTU}, better 1550 or more. Raise it: ip link "
            f"set {link} mtu 9000, here, on the other hosts and on the switch between."
        )
    found = host_switch.bridges()
    if datapath_type() == USERSPACE and link not in found:
        raise Refused(
            f"this kernel has no Open vSwitch, so tunnels are made in userspace, and those leave "
            f"only by a bridge of Open vSwitch; {tunnel_ip} is on {link}, which is none. Load the "
            "module openvswitch, or put the uplink into a bridge and the address on that "
            '(docs/hosts.md, "Without the kernel\'s datapath").'
        )


def _check_fabric(wish: Wish, installed: Path) -> None:
    # With what is to be installed, not with what is there.
    tls.use(wish.certificates or installed, wish.db)
    with Fabric.connect(wish.db) as fabric:
        _refuse_double(fabric, wish.name, wish.tunnel_ip)


def _refuse_double(fabric: Fabric, name: str, tunnel_ip: IPv4Address) -> None:
    now_s = int(time.time())
    for host in hosts.list_all(fabric):
        if host.name != name and host.tunnel_ip == tunnel_ip:
            raise Conflict(
                f"host {host.name} has tunnel IP {tunnel_ip} already. Give this machine another, "
                f"or forget that one: nvctl host delete {host.name}."
            )
        other = host.tunnel_ip not in (None, tunnel_ip)
        if host.name == name and other and hosts.is_alive(host, now_s):
            raise Conflict(
                f"host {name} is in the fabric with tunnel IP {host.tunnel_ip}, and its agent "
                f"reported {max(0, now_s - host.heartbeat_s)} s ago. Choose another --name, or "
                "stop that agent first."
            )


def _is_in(fabric: Fabric, own: Settings) -> bool:
    try:
        host = hosts.get(fabric, own.host.name)
    except NotFound:
        return False
    alive = hosts.is_alive(host, int(time.time()))
    return alive and not host.problems and str(host.tunnel_ip) == own.host.tunnel_ip


def _missing(fabric: Fabric, own: Settings, wait_s: float) -> str:
    name = own.host.name
    try:
        problems = sorted(hosts.get(fabric, name).problems)
    except NotFound:
        problems = []
    if problems:
        return f"host {name} is in the fabric, but its agent says: {'; '.join(problems)}."
    return (
        f"the agent of host {name} has not reported to the fabric within {wait_s:g} s. See its "
        "log (`journalctl -u virtkit-agent`), and run the same command again."
    )


def _before(file: Path) -> Path:
    return file.with_name(f"{file.name}.before")
