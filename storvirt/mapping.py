"""An image as a block device of this machine: which way there is, and what is on record. Pure.

The kernel's own client is the fastest, `rbd-nbd` needs the module nbd, and where neither is,
`qemu-storage-daemon` shows the image as a file (FUSE) that a loop device takes for a disk.
"""

import json
from collections.abc import Mapping as Dictionary
from dataclasses import dataclass
from enum import StrEnum

from storvirt.hypervisor import Connection, qemu_blockdev, qemu_object, qemu_passphrase
from tenancy.errors import InvalidRequest

EXPORT = "disk"
# Names in the directory of a mapping.
KEY, CONF, DISK, CONTROL, PID = "key", "ceph.conf", "disk", "control.sock", "pid"


class Method(StrEnum):
    """How an image becomes a device, the fastest first."""

    KERNEL = "kernel"
    NBD = "nbd"
    FUSE = "fuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """An image that is a device here, as it is on record."""

    tenant: str
    name: str
    method: Method
    device: str
    read_only: bool


def choose(lacking: Dictionary[Method, str], wanted: Method | None) -> Method:
    """The method wanted, or the fastest that lacks nothing. Raises InvalidRequest."""
    possible = [method for method in Method if method not in lacking]
    if wanted in possible:
        return wanted
    if wanted is not None:
        others = ", ".join(possible) or "none"
        raise InvalidRequest(
            f"method {wanted} is not possible here: {lacking[wanted]}. Possible: {others}."
        )
    if not possible:
        reasons = "; ".join(f"{method}: {reason}" for method, reason in lacking.items())
        raise InvalidRequest(f"no image can become a device of this machine ({reasons}).")
    return possible[0]


def daemon_arguments(connection: Connection, directory: str, *, read_only: bool) -> list[str]:
    """What qemu-storage-daemon is told to show an image as the file `DISK` of a directory.

    See qemu-storage-daemon(1). No secret is in an argument.
    """
    node = {**qemu_blockdev(connection), "read-only": read_only}
    export = {
        "type": "fuse",
        "id": EXPORT,
        "node-name": connection.node,
        "mountpoint": f"{directory}/{DISK}",
        "writable": not read_only,
    }
    passphrase = (
        ["--object", json.dumps(qemu_passphrase(connection))] if connection.passphrase_file else []
    )
    return [
        *("--object", json.dumps(qemu_object(connection, f"{directory}/{KEY}"))),
        *passphrase,
        *("--blockdev", json.dumps(node)),
        *("--export", json.dumps(export)),
        *("--chardev", f"socket,id=control,path={directory}/{CONTROL},server=on,wait=off"),
        *("--monitor", "chardev=control"),
        *("--pidfile", f"{directory}/{PID}"),
        "--daemonize",
    ]
