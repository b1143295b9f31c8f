"""Cutting a client off: what it still sends to the OSDs is refused from then on.

A lock says who may write, but OSDs don't look at it when a write comes in: a guest that was paused
goes on with the writes that it had in mind. What stops it is the blocklist in the osdmap, and only
as long as its entry is there. Ceph's entries last for an hour; ours long enough that a host which
slept through them has been noticed.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

from storvirt.backends.cluster import Cluster, CommandFailed
from tenancy.errors import BackendUnavailable, VerificationFailed

# Not by `rbd_blocklist_expire_seconds`: with it, librbd 16.2 breaks no lock at all.
FENCE_S = 30 * 24 * 3600
# An OSD that is paused is noticed by its peers after 20 s (osd_heartbeat_grace), and some.
OSD_TIMEOUT_S = 60.0
# An OSD that is asked how it is answers at once, if it is there.
ANSWER_S = 6
THREADS = 32
POLL_S = 0.2


def whole(address: str) -> str:
    """How the blocklist writes every client at an IP address."""
    return f"[{address}]:0/0" if ":" in address else f"{address}:0/0"


def host_of(client: str) -> str:
    """The IP address of a client, `IP:PORT/NONCE`."""
    return str(ip_address(client.rpartition(":")[0].strip("[]")))


def own_addresses(cluster: Cluster) -> set[str]:
    """The addresses from which this process speaks to Ceph."""
    return {host_of(one) for one in cluster.own_addresses()}


def osds_of(cluster: Cluster, crush_host: str) -> dict[int, str]:
    """The OSDs on a CRUSH host, each with its address towards clients; those that have one."""
    nodes = cluster.command("osd tree")["nodes"]
    below = {
        osd
        for node in nodes
        if node["type"] == "host" and node["name"] == crush_host
        for osd in node["children"]
    }
    return {
        one["osd"]: host_of(one["public_addr"])
        for one in cluster.command("osd dump")["osds"]
        if one["osd"] in below and one["public_addr"] not in ("", ":/0", "-")
    }


def mark_silent_down(cluster: Cluster, osds: Iterable[int]) -> None:
    """Let the others take over at once from those OSDs that do not answer.

    Not from one that does: it would come back, and end itself after the fifth time in ten minutes
    (osd_max_markdown_count).
    """
    wanted = sorted(osds)
    with _impatient(cluster) as asking, ThreadPoolExecutor(THREADS) as pool:
        maps = list(pool.map(lambda osd: _newest_map(asking, osd), wanted))
    if silent := [str(osd) for osd, newest in zip(wanted, maps, strict=True) if newest is None]:
        cluster.raw_command("osd down", ids=silent)


def wait_for_osds(cluster: Cluster) -> None:
    """Return when every OSD that is up has the osdmap of this moment, and so who is fenced.

    Raises VerificationFailed if one does not get it in time.
    """
    epoch = cluster.command("osd dump")["epoch"]
    give_up = time.monotonic() + OSD_TIMEOUT_S
    has: set[int] = set()
    with _impatient(cluster) as asking, ThreadPoolExecutor(THREADS) as pool:
        while True:
            up = {one["osd"] for one in cluster.command("osd dump")["osds"] if one["up"]}
            waited_for = sorted(up - has)
            maps = pool.map(lambda osd: _newest_map(asking, osd), waited_for)
            # One that does not answer is marked down by its peers at last.
            has |= {
                osd for osd, newest in zip(waited_for, maps, strict=True) if (newest or 0) >= epoch
            }
            if up <= has:
                return
            if time.monotonic() > give_up:
                missing = ", ".join(f"osd.{osd}" for osd in sorted(up - has))
                raise VerificationFailed(
                    f"{missing} does not say that it knows who is fenced, and may still take "
                    "writes. Don't start guests elsewhere; see `ceph osd tree`, and run the same "
                    "again."
                )
            time.sleep(POLL_S)


def _impatient(cluster: Cluster) -> Cluster:
    """Another connection, which gives an OSD little time."""
    return Cluster.connect(
        cluster.conf, cluster.user, timeout_s=cluster.timeout_s, osd_timeout_s=ANSWER_S
    )


def _newest_map(cluster: Cluster, osd: int) -> int | None:
    """The epoch of the osdmap that an OSD has; None if it does not answer."""
    try:
        return int(cluster.osd_command(osd, "status")["newest_map"])
    except (BackendUnavailable, CommandFailed):
        return None


def lift(cluster: Cluster, address: str) -> bool:
    """Take one entry out of the blocklist; whether it was there."""
    if address not in cluster.command("osd dump")["blocklist"]:
        return False
    cluster.raw_command("osd blocklist", blocklistop="rm", addr=address)
    return True


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
