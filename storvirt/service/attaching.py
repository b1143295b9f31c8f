"""What a hypervisor needs to open an image, gathered from the fabric and the cluster."""

from dataclasses import replace
from pathlib import Path

from storvirt import caps
from storvirt.backends import encryption, keys, osdmaps
from storvirt.backends.cluster import Cluster
from storvirt.hypervisor import Connection
from storvirt.model import ImageName, ImagePath
from storvirt.moving import Phase
from storvirt.service import catalog, placing
from storvirt.service.catalog import ImageEntry
from tenancy.backends.fabric import Fabric
from tenancy.errors import Refused, VerificationFailed


def attach(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    *,
    passphrase_file: Path | None = None,
) -> Connection:
    """The connection of a ready image, as its tenant; an encrypted one's passphrase is tried."""
    entry = catalog.image(fabric, tenant, name)
    # What is copied in the background opens in its new pool already.
    if entry.row["moving"] != Phase.EXECUTE:
        catalog.refuse_unready(entry)
    found = connection(cluster, entry, entry.record.path)
    if passphrase_file is None:
        if entry.record.encryption:
            raise Refused(
                f"image {name} is encrypted ({entry.record.encryption}). Say where the passphrase "
                "is: --passphrase-file."
            )
        return found
    if not entry.record.encryption:
        raise Refused(f"image {name} is not encrypted. Leave --passphrase-file out.")
    secret = encryption.passphrase(passphrase_file)
    encryption.unlock(cluster, entry.record.path, secret)
    return replace(found, passphrase_file=str(passphrase_file.absolute()))


def location(fabric: Fabric, cluster: Cluster, host: str) -> str:
    """The CRUSH host of a client on `host`. Raises NotFound or Refused."""
    return placing.crush_host(fabric, osdmaps.read(cluster), host)


def connection(cluster: Cluster, entry: ImageEntry, path: ImagePath) -> Connection:
    """The connection of `path`, which is the image of `entry` under whatever name."""
    tenant, pool = entry.record.tenant, entry.record.pool
    secret = keys.secret(cluster, caps.entity(tenant))
    if secret is None:
        raise VerificationFailed(
            f"Ceph has lost the key {caps.entity(tenant)}. "
            f"Make it again: svctl namespace repair {tenant} --pool {pool}."
        )
    return Connection(
        fsid=cluster.fsid,
        monitors=cluster.monitors(),
        path=path,
        user=caps.user(tenant),
        secret=secret,
        image_id=entry.row.id,
    )
