"""Images as block devices of the machine that this runs on."""

from pathlib import Path

from storvirt.backends import devices
from storvirt.backends.cluster import Cluster
from storvirt.mapping import Mapping, Method, choose
from storvirt.model import ImageName
from storvirt.service import attaching, catalog
from tenancy.backends.fabric import Fabric
from tenancy.errors import NotFound, Refused


def map_image(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    *,
    method: Method | None = None,
    read_only: bool = False,
    passphrase_file: Path | None = None,
) -> Mapping:
    """The image as a device here; one that is mapped already stays what it is.

    Raises InvalidRequest if this machine can't, and Refused if it is mapped otherwise.
    """
    chosen = choose(devices.lacking(), method)
    if passphrase_file is not None and chosen is not Method.FUSE:
        raise Refused(f"image {name} is encrypted, and only method fuse opens it: --method fuse.")
    connection = attaching.attach(fabric, cluster, tenant, name, passphrase_file=passphrase_file)
    with devices.locked():
        present = devices.mapped().get(connection.image_id)
        if present is None:
            return devices.map_image(connection, tenant, chosen, read_only=read_only)
        if present.read_only != read_only or method not in (None, present.method):
            raise Refused(
                f"image {name} is {present.device} already, by method {present.method}"
                f"{', read-only' if present.read_only else ''}. "
                f"First: svctl image unmap {name} --tenant {tenant}."
            )
        return present


def unmap(fabric: Fabric, tenant: str, name: ImageName) -> None:
    """Take the device away; everything written to it is in the image then. Raises NotFound."""
    entry = catalog.image(fabric, tenant, name)
    with devices.locked():
        present = devices.mapped().get(entry.row.id)
        if present is None:
            # What a killed command or daemon has left.
            devices.clean(entry.row.id)
            raise NotFound(f"image {name} is no device of this machine. See `svctl image mapped`.")
        devices.unmap(entry.row.id, present)


def mapped() -> list[Mapping]:
    """All images that are devices here, by tenant and name."""
    found = devices.mapped().values()
    return sorted(found, key=lambda one: (one.tenant, one.name))
