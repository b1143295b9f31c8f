"""Ceph's cache tiers: looking at one, and the single steps of `storvirt.tiering`."""

import errno
import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from storvirt import caps
from storvirt.backends import pools
from storvirt.backends.cluster import Cluster, CommandFailed, application_tags
from storvirt.model import PoolName
from storvirt.tiering import HitSet, Step, Tier
from tenancy.errors import BackendUnavailable, NotFound, Refused

# The manager's counts follow what happens by some seconds.
STATISTICS_LAG_S = 60
TOOL_TIMEOUT_S = 3600

_WATCHER = re.compile(r"^watcher=(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a cache may hold, and which hit sets it keeps."""

    size_bytes: int
    hit_set: HitSet


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFacts:
    """A tier with its figures; dirty bytes are those that only the cache has."""

    tier: Tier
    limits: Limits
    stored_bytes: int
    dirty_objects: int


def cache_of(cluster: Cluster, base: PoolName) -> PoolName | None:
    """The pool that is the cache of `base`, if one is."""
    return pools.describe(cluster, base).cache


def look(cluster: Cluster, base: PoolName, cache: PoolName) -> Tier:
    """The relation between two pools now, with the cache's objects counted one by one."""
    found = {pool["pool_name"]: pool for pool in cluster.command("osd dump")["pools"]}
    if base not in found or cache not in found:
        raise NotFound(f"pool {cache if base in found else base} does not exist in Ceph.")
    related = found[cache]["tier_of"] == found[base]["pool"]
    return Tier(
        base=base,
        cache=cache,
        related=related,
        mode=found[cache]["cache_mode"],
        overlay=found[base]["write_tier"] == found[cache]["pool"],
        objects=len(objects(cluster, cache)) if related else 0,
        closed=caps.TAG not in application_tags(found[base], caps.APPLICATION),
    )


def facts(cluster: Cluster, base: PoolName, cache: PoolName) -> TierFacts:
    """The tier with its limits and what the manager counts (seconds old)."""
    found = {pool["pool_name"]: pool for pool in cluster.command("osd dump")["pools"]}[cache]
    stats = {p["name"]: p["stats"] for p in cluster.command("df", detail="detail")["pools"]}[cache]
    return TierFacts(
        tier=look(cluster, base, cache),
        limits=_limits(found),
        stored_bytes=stats["stored"],
        dirty_objects=stats.get("dirty", 0),
    )


def limits(cluster: Cluster, cache: PoolName) -> Limits:
    """The limits that are set now."""
    found = {pool["pool_name"]: pool for pool in cluster.command("osd dump")["pools"]}[cache]
    return _limits(found)


def objects(cluster: Cluster, pool: PoolName) -> Sequence[tuple[str, str]]:
    """Namespace and name of every object in the pool, listed from its OSDs.

    By Ceph's own tool: librados' Python iterator takes an error for the end of the list, and an
    OSD that does not answer would make a full cache look empty.
    """
    done = _rados(cluster, "--pool", pool, "ls", "--all", "--format", "json")
    if done.returncode:
        raise BackendUnavailable(
            f"pool {pool}: its objects can't be listed: {done.stderr.strip()}."
        )
    return [(found["namespace"], found["name"]) for found in json.loads(done.stdout)]


def apply(cluster: Cluster, step: Step, tier: Tier, wanted: Limits) -> None:
    """Do one step other than DRAIN."""
    base, cache = PoolName(tier.base), PoolName(tier.cache)
    command: dict[Step, Callable[[], object]] = {
        Step.ADD: lambda: _add(cluster, base, cache),
        Step.WRITEBACK: lambda: _set_mode(cluster, cache, "writeback"),
        Step.LIMIT: lambda: _set_limits(cluster, cache, wanted),
        Step.LAY: lambda: cluster.raw_command("osd tier set-overlay", pool=base, overlaypool=cache),
        Step.PROXY: lambda: _set_mode(cluster, cache, "proxy"),
        Step.CLOSE: lambda: pools.untag(cluster, base),
        Step.OPEN: lambda: pools.tag(cluster, base),
        Step.UNLAY: lambda: cluster.raw_command("osd tier remove-overlay", pool=base),
        Step.REMOVE: lambda: cluster.raw_command("osd tier remove", pool=base, tierpool=cache),
    }
    command[step]()


def retag(cluster: Cluster, cache: PoolName) -> None:
    """Give a former cache its own tag again; Ceph had given it the base's."""
    pools.tag(cluster, cache)


def drain(cluster: Cluster, cache: PoolName) -> None:
    """Flush and evict all that can be; what clients have open stays. Ceph's tool does it."""
    # It ends with 1 when some object stayed; the caller looks for itself.
    _rados(cluster, "--pool", cache, "cache-flush-evict-all")


def confirm_empty(cluster: Cluster, cache: PoolName) -> None:
    """Wait until the manager, too, counts nothing in the cache: a second, independent witness.

    Its counts include snapshots' copies of objects, which a listing does not name.
    """
    give_up = time.monotonic() + STATISTICS_LAG_S
    while True:
        stats = {pool["name"]: pool["stats"] for pool in cluster.command("df")["pools"]}
        counted = stats[cache]["objects"]
        if counted == 0:
            return
        if time.monotonic() > give_up:
            raise Refused(
                f"pool {cache} lists no objects, and Ceph still counts {counted} in it. The tier "
                "stays in proxy mode and nothing is lost; run the command again."
            )
        drain(cluster, cache)
        time.sleep(1)


def capacity_bytes(cluster: Cluster, cache: PoolName) -> int:
    """What the pool could hold now. Waits for the manager's first figures of a new pool."""
    give_up = time.monotonic() + STATISTICS_LAG_S
    while True:
        found = pools.describe(cluster, cache)
        if found.available_bytes or time.monotonic() > give_up:
            return found.stored_bytes + found.available_bytes
        time.sleep(0.5)


def watchers(cluster: Cluster, pool: PoolName, namespace: str, name: str) -> Sequence[str]:
    """The addresses of the clients that have an object open."""
    done = _rados(cluster, "--pool", pool, "--namespace", namespace, "listwatchers", name)
    return sorted(_WATCHER.findall(done.stdout))


def _rados(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            cluster.tool("rados", *arguments),
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "the program rados is not installed. Install it: apt-get install ceph-common."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailable(
            f"rados {arguments[2]} did not end within {TOOL_TIMEOUT_S} s. Run the command again."
        ) from error


def _add(cluster: Cluster, base: PoolName, cache: PoolName) -> None:
    # Ceph asks the manager's counts whether the cache is empty, and they lag behind.
    give_up = time.monotonic() + STATISTICS_LAG_S
    while True:
        try:
            cluster.raw_command("osd tier add", pool=base, tierpool=cache)
            return
        except CommandFailed as error:
            if error.code != errno.ENOTEMPTY or objects(cluster, cache):
                raise
            if time.monotonic() > give_up:
                raise
        time.sleep(1)


def _set_mode(cluster: Cluster, cache: str, mode: str) -> None:
    cluster.raw_command("osd tier cache-mode", pool=cache, mode=mode)


def _set_limits(cluster: Cluster, cache: str, wanted: Limits) -> None:
    settings = {"target_max_bytes": str(wanted.size_bytes), "hit_set_type": "none"}
    if wanted.hit_set is HitSet.BLOOM:
        settings |= {
            "hit_set_type": "bloom",
            "hit_set_count": "4",
            "hit_set_period": "1200",
            "min_read_recency_for_promote": "1",
            "min_write_recency_for_promote": "1",
        }
    for key, value in settings.items():
        cluster.raw_command("osd pool set", pool=cache, var=key, val=value)


def _limits(pool: dict[str, object]) -> Limits:
    hit_set = pool["hit_set_params"]
    assert isinstance(hit_set, dict)
    return Limits(
        size_bytes=int(str(pool["target_max_bytes"])),
        hit_set=HitSet.BLOOM if hit_set["type"] == "bloom" else HitSet.NONE,
    )
