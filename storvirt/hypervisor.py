"""What a hypervisor must be told to open a tenant's image, in its own words. Pure.

The key never stands in an argument, where every user of the host could read it in the process
list: QEMU gets the name of a file that holds it, libvirt a secret that is set through its API.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import NAMESPACE_URL, UUID, uuid5
from xml.sax.saxutils import escape, quoteattr

from storvirt.model import ImagePath


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach an image: the cluster, where in it, and as whom. `secret` is the key, base64."""

    fsid: str
    monitors: Sequence[tuple[str, int]]
    path: ImagePath
    user: str
    secret: str
    image_id: UUID

    @property
    def secret_id(self) -> UUID:
        """The same for one tenant of one cluster always, so that a host defines it once."""
        return uuid5(NAMESPACE_URL, f"ceph://{self.fsid}/{self.user}")

    @property
    def node(self) -> str:
        """The image's name as QEMU block node and libvirt alias; at most 31 characters."""
        return f"virtkit-{self.image_id.hex[:12]}"


def key_file_name(connection: Connection) -> str:
    """The file that QEMU's secret object reads."""
    return f"{connection.user}.key"


def qemu_blockdev(connection: Connection) -> dict[str, object]:
    """The block node, as -blockdev and QMP's blockdev-add take it."""
    return {
        "driver": "rbd",
        "node-name": connection.node,
        "pool": connection.path.pool,
        "namespace": connection.path.namespace,
        "image": connection.path.name,
        "user": connection.user,
        "key-secret": f"key-{connection.node}",
        "server": [{"host": host, "port": str(port)} for host, port in connection.monitors],
        "discard": "unmap",
    }


def qemu_object(connection: Connection, key_file: str) -> dict[str, str]:
    """The secret, as -object and QMP's object-add take it."""
    return {
        "qom-type": "secret",
        "id": f"key-{connection.node}",
        "format": "base64",
        "file": key_file,
    }


def qemu_arguments(connection: Connection, key_file: str) -> list[str]:
    """Arguments for qemu-system-* that give the guest the image as a virtio disk."""
    return [
        "-object",
        json.dumps(qemu_object(connection, key_file)),
        "-blockdev",
        json.dumps(qemu_blockdev(connection)),
        "-device",
        f"virtio-blk-pci,drive={connection.node}",
    ]


def libvirt_secret(connection: Connection) -> str:
    """For `virsh secret-define`; the value goes through `virsh secret-set-value`."""
    return (
        "<secret ephemeral='no' private='yes'>\n"
        f"  <uuid>{connection.secret_id}</uuid>\n"
        "  <usage type='ceph'>\n"
        f"    <name>{escape(f'client.{connection.user} {connection.fsid}')}</name>\n"
        "  </usage>\n"
        "</secret>\n"
    )


def libvirt_disk(connection: Connection) -> str:
    """The <disk> element of a domain."""
    path = connection.path
    hosts = "".join(
        f"    <host name={quoteattr(host)} port='{port}'/>\n" for host, port in connection.monitors
    )
    return (
        "<disk type='network' device='disk'>\n"
        "  <driver name='qemu' type='raw' discard='unmap'/>\n"
        f"  <auth username={quoteattr(connection.user)}>\n"
        f"    <secret type='ceph' uuid='{connection.secret_id}'/>\n"
        "  </auth>\n"
        f"  <source protocol='rbd' name={quoteattr(str(path))}>\n"
        f"{hosts}"
        "  </source>\n"
        "  <target dev='vda' bus='virtio'/>\n"
        f"  <serial>{connection.image_id.hex[:20]}</serial>\n"
        "</disk>\n"
    )


def client_conf(connection: Connection, timeout_s: int, osd_timeout_s: int) -> str:
    """A complete ceph.conf, key included, for a short-lived client of this image."""
    monitors = ",".join(_bracketed(host, port) for host, port in connection.monitors)
    return (
        "[global]\n"
        f"fsid = {connection.fsid}\n"
        f"mon_host = {monitors}\n"
        f"client_mount_timeout = {timeout_s}\n"
        f"rados_mon_op_timeout = {timeout_s}\n"
        f"rados_osd_op_timeout = {osd_timeout_s}\n"
        "log_to_stderr = false\n"
        f"[client.{connection.user}]\n"
        f"key = {connection.secret}\n"
    )


def _bracketed(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
