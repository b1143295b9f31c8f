"""What `svctl image attach` prints for a clone of a golden image: this host's block server."""

import json
import shlex
from typing import TYPE_CHECKING, Any

from storvirt import golden
from storvirt.cli.common import say
from tenancy.cli import Format, show

if TYPE_CHECKING:
    from storvirt.service.golden_serving import Attachment


def print_attachment(found: "Attachment", *, libvirt: bool, output: Format) -> None:
    """Print how a hypervisor connects. There is no key in it: the socket's mode is the key."""
    blockdev = golden.qemu_blockdev(found.path, found.node, found.socket, found.patience_s)
    arguments = [
        *("-blockdev", json.dumps(blockdev)),
        *("-device", f"virtio-blk-pci,drive={found.node}"),
    ]
    disk = golden.libvirt_disk(found.path, found.socket, found.patience_s, "vda")
    if output is not Format.TABLE:
        document: dict[str, Any] = {
            "image": str(found.path),
            "pool": found.path.pool,
            "namespace": found.path.namespace,
            "name": found.path.name,
            "tier": "golden",
            "socket": found.socket,
            "written": False,
        }
        document |= (
            {"libvirt": {"disk": disk}}
            if libvirt
            else {"qemu": {"blockdev": blockdev, "arguments": arguments}}
        )
        show(document, output)
        return
    print(disk if libvirt else shlex.join(arguments), end="" if libvirt else "\n")
    say(
        "It is read through the host's cache: `svctl golden serve` must run there for "
        f"tenant {found.path.namespace}. --direct attaches it without."
    )
