"""A host is lost: nothing on it writes any more, and its guests' disks are free for others.

First the host's addresses as a whole are blocklisted, so that what comes back or starts there later
is refused too. Then, image by image, whoever has the exclusive lock from there is blocklisted as
one client, for that outlasts `unfence`, and the lock is broken. Killed anywhere and called again,
it goes on: a client is fenced before its lock, by which it is found, is broken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from storvirt.backends import fencing, images
from storvirt.backends.cluster import Cluster
from storvirt.model import State
from storvirt.service import catalog, parallel
from storvirt.service.catalog import ImageEntry
from storvirt.service.parallel import Progress, Step, no_progress
from tenancy.backends.fabric import Fabric
from tenancy.errors import InvalidRequest, NotFound, VerificationFailed, VirtkitError


@dataclass(frozen=True, slots=True, kw_only=True)
class FreedImage:
    """An image that clients on the host had; `error` is why it is not free, if it is not."""

    tenant: str
    image: str
    clients: tuple[str, ...]
    error: VirtkitError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FencedHost:
    """What fencing a host came to."""

    addresses: tuple[str, ...]
    images: tuple[FreedImage, ...]


def fence(
    fabric: Fabric,
    cluster: Cluster,
    host: str,
    addresses: Sequence[str] = (),
    *,
    progress: Progress = no_progress,
) -> FencedHost:
    """Cut the host off and free its guests' images.

    Returns when the monitors have committed it, every OSD that is up refuses the host, and each
    image's lock is gone. Those of its own OSDs that do not answer are marked down first, or images
    whose objects they lead would wait until the others miss them. Raises NotFound, InvalidRequest,
    and VerificationFailed.
    """
    wanted, osds = _addresses(fabric, cluster, host, addresses)
    if own := sorted(wanted & fencing.own_addresses(cluster)):
        raise InvalidRequest(
            f"host {host} has address {own[0]}, from which this command speaks to Ceph. "
            "Run it on another host."
        )
    fencing.fence(cluster, [fencing.whole(address) for address in wanted])
    fencing.mark_silent_down(cluster, osds)
    fencing.wait_for_osds(cluster)
    entries = [
        entry for entry in catalog.images(fabric) if entry.record.state is not State.CREATING
    ]
    held: dict[str, tuple[str, ...]] = {}

    def free(entry: ImageEntry) -> tuple[str, ...]:
        return _free(cluster, entry, wanted)

    def note(
        freed: Sequence[tuple[ImageEntry, tuple[str, ...]]],
    ) -> list[parallel.Failure[ImageEntry]]:
        held.update({str(entry.row.id): clients for entry, clients in freed if clients})
        return []

    steps: list[Step[ImageEntry]] = [Step(work=free, record=note)]
    failures = parallel.run(entries, steps, progress=progress) if entries else []
    failed = {
        # An image that Ceph does not have is nobody's: `svctl status` names it.
        failure.item.row.id: failure.error
        for failure in failures
        if not isinstance(failure.error, NotFound)
    }
    return FencedHost(
        addresses=tuple(sorted(wanted)),
        images=tuple(
            FreedImage(
                tenant=entry.record.tenant,
                image=entry.record.name,
                clients=held.get(str(entry.row.id), ()),
                error=failed.get(entry.row.id),
            )
            for entry in entries
            if str(entry.row.id) in held or entry.row.id in failed
        ),
    )


def unfence(
    fabric: Fabric, cluster: Cluster, host: str, addresses: Sequence[str] = ()
) -> list[str]:
    """Let clients on the host in again, and return its addresses that were fenced.

    Those that held locks when it was fenced stay out, one by one.
    """
    wanted, _ = _addresses(fabric, cluster, host, addresses)
    return sorted(address for address in wanted if fencing.lift(cluster, fencing.whole(address)))


def _free(cluster: Cluster, entry: ImageEntry, addresses: set[str]) -> tuple[str, ...]:
    """Break what the host's clients hold of an image; who they were."""
    path = entry.record.path
    facts = images.describe(cluster, path)
    found = {
        client
        for client in (*facts.users, *([facts.lock_owner] if facts.lock_owner else []))
        if fencing.host_of(client) in addresses
    }
    if not found:
        return ()
    fencing.fence(cluster, found)
    images.break_lock_of(cluster, path, found)
    # librbd has blocklisted the owner once more, and for an hour only.
    fencing.fence(cluster, found)
    owner = images.describe(cluster, path).lock_owner
    if owner is not None and fencing.host_of(owner) in addresses:
        raise VerificationFailed(
            f"image {path} is still locked by {owner} after its lock was broken. Don't start its "
            "guest elsewhere yet."
        )
    return tuple(sorted(found))


def _addresses(
    fabric: Fabric, cluster: Cluster, host: str, given: Sequence[str]
) -> tuple[set[str], list[int]]:
    """What the host's clients come from, and which OSDs are on it."""
    row = fabric.find("Host", name=host)
    osds = fencing.osds_of(cluster, str(row["crush_host"] or host) if row else host)
    found = set(osds.values())
    if row and row["tunnel_ip"]:
        found.add(str(row["tunnel_ip"]))
    try:
        wanted = {str(ip_address(one)) for one in given} or found
    except ValueError as error:
        raise InvalidRequest(f"{error}. Give an IP address.") from error
    if not wanted:
        raise NotFound(
            f"host {host} is not known, neither here nor as a host of OSDs. See `nvctl host list`, "
            "or say what address it has: --address."
        )
    return wanted, sorted(osds)
