"""Cutting a client off: what it still sends to the OSDs is refused from then on.

A lock says who may write, but OSDs don't look at it when a write comes in: a guest that was paused
goes on with the writes that it had in mind. What stops it is the blocklist in the osdmap, and only
as long as its entry is there. Ceph's entries last for an hour; ours long enough that a host which
slept through them has been noticed.
"""

from collections.abc import Iterable

from storvirt.backends.cluster import Cluster
from tenancy.errors import VerificationFailed

# Not by `rbd_blocklist_expire_seconds`: with it, librbd 16.2 breaks no lock at all.
FENCE_S = 30 * 24 * 3600


def fence(cluster: Cluster, addresses: Iterable[str]) -> None:
    """Blocklist these clients (`IP:PORT/NONCE`), and see that the osdmap says so.

    Returns when the monitors have committed it; OSDs refuse from the moment they have that map, and
    whoever opens the image next brings it to them. Raises VerificationFailed.
    """
    wanted = sorted(set(addresses))
    for address in wanted:
        cluster.raw_command("osd blocklist", blocklistop="add", addr=address, expire=float(FENCE_S))
    held = set(cluster.command("osd dump")["blocklist"])
    if missing := [address for address in wanted if address not in held]:
        raise VerificationFailed(
            f"{', '.join(missing)} is not in Ceph's blocklist after it was put there. "
            "Don't start the guest elsewhere; look at `ceph osd blocklist ls`."
        )
