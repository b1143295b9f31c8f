"""Ceph in a lab: monitor and manager in `ctl`, and one BlueStore OSD in every host.

The cluster's first maps and keys are written before any daemon runs, so it needs no command to
come into being: monitor and OSDs are initialised at the same time, and OSDs join as they come.
What is in `ceph.conf`, and why, is in `lab.ceph_conf`.
"""

import json
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

from lab import ceph_conf, waiting
from lab.daemon import Daemon
from lab.host import Host

OSD = "ceph-osd"
MONITOR = "ceph-mon"
MANAGER = "ceph-mgr"

_MON_ID = "ctl"
_MON_DATA = Path("/var/lib/ceph/mon/ceph-ctl")
_MGR_DATA = Path("/var/lib/ceph/mgr/ceph-ctl")
_SEED = Path("/var/lib/ceph/seed")
_LOG_TO_STDERR = ("--log-to-stderr=true", "--log-to-file=false")
_CLUSTER_TIMEOUT_S = 90.0


def osd_id(host: str) -> int:
    """The OSD of `hN`: N-1."""
    return int(host.removeprefix("h")) - 1


def control_daemons() -> tuple[Daemon, ...]:
    """Monitor and manager, for `ctl`."""
    return (
        Daemon(
            name=MONITOR,
            argv=("ceph-mon", "-f", "--id", _MON_ID),
            log="/var/log/ceph/ceph-mon.stderr",
            ready=lambda ctl: _ask(ctl, f"mon.{_MON_ID}", "mon_status").get("state") == "leader",
        ),
        Daemon(
            name=MANAGER,
            argv=("ceph-mgr", "-f", "--id", _MON_ID),
            log="/var/log/ceph/ceph-mgr.stderr",
            ready=lambda ctl: bool(_ask(ctl, f"mgr.{_MON_ID}", "mgr_status")),
        ),
    )


def osd_daemon(host: str) -> Daemon:
    """The OSD of a host; ready when it takes part in the cluster."""
    number = osd_id(host)
    return Daemon(
        name=OSD,
        argv=("ceph-osd", "-f", "--id", str(number)),
        log="/var/log/ceph/ceph-osd.stderr",
        ready=lambda osd_host: _ask(osd_host, f"osd.{number}", "status").get("state") == "active",
        timeout_s=_CLUSTER_TIMEOUT_S,
    )


def create_monitor(ctl: Host, hosts: Sequence[str], conf: str, keys: ceph_conf.Keys) -> None:
    """Write `ctl`'s Ceph configuration and the monitor's first maps; idempotent."""
    write_client(ctl, conf, keys)
    _write(ctl, _MGR_DATA / "keyring", ceph_conf.keyring({"mgr.ctl": keys.manager}))
    seed = {
        "keyring": keys.monitor_keyring(),
        "crush.txt": ceph_conf.crush_map(hosts),
    }
    ctl.path(_MON_DATA).mkdir(parents=True, exist_ok=True)
    for name, text in seed.items():
        _write(ctl, _SEED / name, text)
    crush, osdmap = str(_SEED / "crush"), str(_SEED / "osdmap")
    ctl.run(["crushtool", "--compile", str(_SEED / "crush.txt"), "--outfn", crush])
    ctl.run(["osdmaptool", "--clobber", "--createsimple", str(len(hosts)), osdmap])
    ctl.run(["osdmaptool", osdmap, "--import-crush", crush])
    ctl.run(
        [
            *("ceph-mon", "--mkfs", "--id", _MON_ID, *_LOG_TO_STDERR),
            *("--keyring", str(_SEED / "keyring"), "--osdmap", osdmap),
        ]
    )


def create_osd(host: Host, conf: str, keys: ceph_conf.Keys) -> None:
    """Write a host's Ceph configuration and make its OSD's disk."""
    write_client(host, conf, keys)
    number = osd_id(host.name)
    data = Path(f"/var/lib/ceph/osd/ceph-{number}")
    _write(host, data / "keyring", ceph_conf.keyring({f"osd.{number}": keys.osds[number]}))
    host.run(["ceph-osd", "--mkfs", "--no-mon-config", "--id", str(number), *_LOG_TO_STDERR])


def write_client(host: Host, conf: str, keys: ceph_conf.Keys) -> None:
    """Let the commands of a host use the cluster as `client.admin`."""
    _write(host, Path("/etc/ceph/ceph.conf"), conf)
    admin = ceph_conf.keyring({"client.admin": keys.admin})
    _write(host, Path("/etc/ceph/ceph.client.admin.keyring"), admin)


def wait_until_healthy(ctl: Host, osds: int) -> None:
    """Return when the manager reports and all OSDs are up and in."""
    status: dict[str, object] = {}

    def healthy() -> bool:
        answer = ctl.run(["ceph", "status", "--format", "json"], check=False)
        if answer.returncode != 0:
            return False
        status.update(json.loads(answer.stdout))
        osdmap = status["osdmap"]
        mgrmap = status["mgrmap"]
        assert isinstance(osdmap, dict) and isinstance(mgrmap, dict)
        ready = osdmap["num_up_osds"] == osdmap["num_in_osds"] == osds
        return bool(ready and mgrmap["available"])

    waiting.until(
        healthy,
        what=f"ctl: Ceph has not all of {osds} OSDs up and a manager",
        timeout_s=_CLUSTER_TIMEOUT_S,
        explain=lambda: f"    {status.get('osdmap')} {status.get('mgrmap')}",
    )


def _write(host: Host, file: Path, text: str) -> None:
    outside = host.path(file)
    outside.parent.mkdir(parents=True, exist_ok=True)
    outside.write_text(text)


def _ask(host: Host, entity: str, command: str) -> dict[str, object]:
    """A daemon's answer on its admin socket, or nothing while it gives none.

    The protocol is a JSON request that ends in NUL, and an answer after its length; the `ceph
    daemon` command speaks the same, at a quarter of a second of processor time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5.0)
        try:
            connection.connect(str(host.path(f"/run/ceph/ceph-{entity}.asok")))
            connection.sendall(json.dumps({"prefix": command}).encode() + b"\0")
            with connection.makefile("rb") as answer:
                (length,) = struct.unpack(">I", answer.read(4))
                found = json.loads(answer.read(length))
        except (OSError, struct.error, json.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) else {}
