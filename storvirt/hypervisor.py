"""What a hypervisor must be told to open a tenant's image, in its own words. Pure.

The key never stands in an argument, where every user of the host could read it in the process
list: QEMU gets the name of a file that holds it.

libvirt's own `<disk type='network'>` has no word for an RBD namespace: libvirt 9.0 passes
`namespace/image` on as the image's name, which QEMU does not find. So a domain gets the same
arguments as a bare QEMU through libvirt's passthrough element (https://libvirt.org/drvqemu.html,
"Pass-through of arbitrary qemu commands").
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID
from xml.sax.saxutils import quoteattr

from storvirt.model import ImagePath


class CacheMode(StrEnum):
    """How QEMU caches a disk, in its and libvirt's words.

    On RBD the host's page cache is never in it. With `none` and
    `directsync` librbd's own cache is off; with `writeback` and `writethrough` it is on. The guest
    sees a disk with a volatile cache that it flushes, or, with `writethrough` and `directsync`, one
    whose writes are safe when they are answered. `unsafe` ignores the guest's flushes: a host that
    dies takes acknowledged data along.
    """

    NONE = "none"
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"

    @property
    def is_direct(self) -> bool:
        """Whether there is no cache on the host."""
        return self in (CacheMode.NONE, CacheMode.DIRECTSYNC)

    @property
    def is_volatile(self) -> bool:
        """Whether the guest is told to flush."""
        return self not in (CacheMode.WRITETHROUGH, CacheMode.DIRECTSYNC)


class DetectZeroes(StrEnum):
    """What becomes of zeros that a guest writes: written, or noted as zeros, or given back."""

    OFF = "off"
    ON = "on"
    UNMAP = "unmap"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """How a guest has a disk. None leaves the cache to QEMU, which is `writeback`.

    With `discard`, what the guest trims is given back to the pool.
    """

    cache: CacheMode | None = None
    discard: bool = True
    detect_zeroes: DetectZeroes = DetectZeroes.OFF
    iothread: bool = False
    read_only: bool = False


DEFAULT_DISK = Disk()


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach an image: the cluster, where in it, and as whom. `secret` is the key, base64.

    `conf_file` is what the client reads as its ceph.conf, if it is not the default one;
    `passphrase_file` holds what an encrypted image (LUKS2) opens with.
    """

    fsid: str
    monitors: Sequence[tuple[str, int]]
    path: ImagePath
    user: str
    secret: str
    image_id: UUID
    conf_file: str | None = None
    passphrase_file: str | None = None

    @property
    def node(self) -> str:
        """The image's name as a QEMU block node; at most 31 characters."""
        return f"virtkit-{self.image_id.hex[:12]}"


def key_file_name(connection: Connection) -> str:
    """The file that QEMU's secret object reads."""
    return f"{connection.user}.key"


def qemu_blockdev(connection: Connection, disk: Disk = DEFAULT_DISK) -> dict[str, object]:
    """The block node, as -blockdev and QMP's blockdev-add take it."""
    conf = {} if connection.conf_file is None else {"conf": connection.conf_file}
    encrypt = {"encrypt": encryption(connection)} if connection.passphrase_file else {}
    return {
        **conf,
        **encrypt,
        "driver": "rbd",
        "node-name": connection.node,
        "pool": connection.path.pool,
        "namespace": connection.path.namespace,
        "image": connection.path.name,
        "user": connection.user,
        "key-secret": f"key-{connection.node}",
        "server": [{"host": host, "port": str(port)} for host, port in connection.monitors],
        "discard": "unmap" if disk.discard else "ignore",
        **_options(disk),
    }


def _options(disk: Disk) -> dict[str, object]:
    options: dict[str, object] = {}
    if disk.cache is not None:
        unsafe = disk.cache is CacheMode.UNSAFE
        options["cache"] = {"direct": disk.cache.is_direct, "no-flush": unsafe}
    if disk.detect_zeroes is not DetectZeroes.OFF:
        options["detect-zeroes"] = str(disk.detect_zeroes)
    if disk.read_only:
        options["read-only"] = True
    return options


def qemu_object(connection: Connection, key_file: str) -> dict[str, str]:
    """The secret, as -object and QMP's object-add take it."""
    return {
        "qom-type": "secret",
        "id": f"key-{connection.node}",
        "format": "base64",
        "file": key_file,
    }


def encryption(connection: Connection) -> dict[str, str]:
    """How QEMU's rbd driver opens an encrypted image."""
    return {"format": "luks2", "key-secret": f"luks-{connection.node}"}


def qemu_passphrase(connection: Connection) -> dict[str, str]:
    """The passphrase's secret, as -object and QMP's object-add take it."""
    assert connection.passphrase_file is not None
    return {
        "qom-type": "secret",
        "id": f"luks-{connection.node}",
        "format": "raw",
        "file": connection.passphrase_file,
    }


def qemu_arguments(
    connection: Connection,
    key_file: str,
    *,
    pci_slot: int | None = None,
    disk: Disk = DEFAULT_DISK,
) -> list[str]:
    """Arguments for qemu-system-* that give the guest the image as a virtio disk.

    Without a slot, QEMU takes the next free one.
    """
    address = "" if pci_slot is None else f",addr={pci_slot:#x}"
    passphrase = (
        ["-object", json.dumps(qemu_passphrase(connection))] if connection.passphrase_file else []
    )
    properties = ""
    if disk.cache is not None:
        # Whether the guest flushes is the device's affair, not the block node's.
        properties += f",write-cache={'on' if disk.cache.is_volatile else 'off'}"
    thread = []
    if disk.iothread:
        name = f"thread-{connection.node}"
        thread = ["-object", json.dumps({"qom-type": "iothread", "id": name})]
        properties += f",iothread={name}"
    return [
        "-object",
        json.dumps(qemu_object(connection, key_file)),
        *passphrase,
        *thread,
        "-blockdev",
        json.dumps(qemu_blockdev(connection, disk)),
        "-device",
        f"virtio-blk-pci,drive={connection.node}{properties}{address}",
    ]


def libvirt_commandline(
    connection: Connection, key_file: str, *, pci_slot: int, disk: Disk = DEFAULT_DISK
) -> str:
    """An element to be put into a libvirt <domain>; it brings its XML namespace along.

    The slot is said, because libvirt gives its own devices the low ones and does not know of this.
    """
    arguments = "".join(
        f"  <qemu:arg value={quoteattr(argument)}/>\n"
        for argument in qemu_arguments(connection, key_file, pci_slot=pci_slot, disk=disk)
    )
    return (
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n"
        f"{arguments}"
        "</qemu:commandline>\n"
    )


def client_conf(connection: Connection, timeout_s: int, osd_timeout_s: int) -> str:
    """A complete ceph.conf, key included, for a short-lived client of this image."""
    return _conf(
        connection.fsid,
        connection.monitors,
        connection.user,
        connection.secret,
        f"client_mount_timeout = {timeout_s}\n"
        f"rados_mon_op_timeout = {timeout_s}\n"
        f"rados_osd_op_timeout = {osd_timeout_s}\n",
    )


def server_conf(
    fsid: str, monitors: Sequence[tuple[str, int]], user: str, secret: str, timeout_s: int
) -> str:
    """A complete ceph.conf, key included, for a process that serves guests.

    Only its start has an end: a guest's disk waits for a cluster that is away, as it does when
    QEMU itself is the client.
    """
    return _conf(fsid, monitors, user, secret, f"client_mount_timeout = {timeout_s}\n")


def _conf(
    fsid: str, monitors: Sequence[tuple[str, int]], user: str, secret: str, bounds: str
) -> str:
    hosts = ",".join(_bracketed(host, port) for host, port in monitors)
    return (
        "[global]\n"
        f"fsid = {fsid}\n"
        f"mon_host = {hosts}\n"
        f"{bounds}"
        "log_to_stderr = false\n"
        f"[client.{user}]\n"
        f"key = {secret}\n"
    )


def _bracketed(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
