"""Open vSwitch in a host: its two daemons, and `br-phy`, the bridge that holds the uplink.

`br-int` is not made here: it is the virtkit agent's.
"""

import socket
import time
from ipaddress import ip_address

from lab import underlay
from lab.daemon import Daemon
from lab.host import Host

PHYSICAL_BRIDGE = "br-phy"

_DATABASE = "/etc/openvswitch/conf.db"
_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
_SOCKET = "/run/openvswitch/db.sock"


def daemons(mtu_bytes: int) -> tuple[Daemon, ...]:
    """The database of the switch, and the switch."""
    return (
        Daemon(
            name="ovsdb-server",
            argv=(
                *("ovsdb-server", _DATABASE, f"--remote=punix:{_SOCKET}"),
                *("--remote=db:Open_vSwitch,Open_vSwitch,manager_options", "--pidfile"),
            ),
            log="/var/log/openvswitch/ovsdb-server.log",
            before=_create_database,
            ready=lambda host: accepts(host, _SOCKET),
        ),
        Daemon(
            name="ovs-vswitchd",
            argv=("ovs-vswitchd", f"unix:{_SOCKET}", "--pidfile"),
            log="/var/log/openvswitch/ovs-vswitchd.log",
            ready=_has_applied_its_configuration,
            after=lambda host: _set_up_physical_bridge(host, mtu_bytes),
        ),
    )


def accepts(host: Host, path: str) -> bool:
    """Whether a server accepts connections on this unix socket of the host."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(host.path(path)))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True


def _create_database(host: Host) -> None:
    if not host.path(_DATABASE).exists():
        host.run(["ovsdb-tool", "create", _DATABASE, _SCHEMA])


def _has_applied_its_configuration(host: Host) -> bool:
    # A change makes ovs-vsctl wait until the switch has done all that the database says.
    change = f"external_ids:virtlab-started={time.monotonic_ns()}"
    command = ["ovs-vsctl", "--timeout=5", "set", "Open_vSwitch", ".", change]
    return host.run(command, check=False).returncode == 0


def _set_up_physical_bridge(host: Host, mtu_bytes: int) -> None:
    """Make `br-phy`, or complete it: its link, a tap, is gone when the switch has ended, and with
    it the address that an operating system would give it again."""
    host.run(
        [
            *("ovs-vsctl", "--timeout=20"),
            *("set", "Open_vSwitch", ".", f"external_ids:system-id={host.name}"),
            *("--", "--may-exist", "add-br", PHYSICAL_BRIDGE),
            *("--", "set", "Bridge", PHYSICAL_BRIDGE, "datapath_type=netdev"),
            *("fail_mode=standalone", f"other-config:hwaddr={_mac_of(host)}"),
            *("--", "--may-exist", "add-port", PHYSICAL_BRIDGE, underlay.UPLINK),
            *("--", "set", "Interface", underlay.UPLINK, f"mtu_request={mtu_bytes}"),
            *("--", "set", "Interface", PHYSICAL_BRIDGE, f"mtu_request={mtu_bytes}"),
        ]
    )
    underlay.set_address(host, PHYSICAL_BRIDGE)


def _mac_of(host: Host) -> str:
    """A fixed address, locally administered, so that neighbours need not learn a new one when
    the switch, and the link with it, has been away."""
    return "02:00:" + ":".join(f"{part:02x}" for part in ip_address(host.address).packed)
