"""Ceph's cache tiers: looking at one, and the single steps of `storvirt.tiers.steps`."""

import errno
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from storvirt import caps
from storvirt.backends import pools
from storvirt.backends.cluster import Cluster, CommandFailed, application_tags
from storvirt.model import PoolName
from storvirt.tiers import settings as tier_settings
from storvirt.tiers.settings import Settings
from storvirt.tiers.steps import Access, HitSet, Mode, Step, Tier
from tenancy.errors import BackendUnavailable, NotFound, VerificationFailed

# The manager's counts follow what happens by some seconds.
STATISTICS_LAG_S = 60
TOOL_TIMEOUT_S = 3600
# A cache may hold millions of objects, and whether there are any shows in the first few.
SAMPLE = 1000
# Placement groups stop or begin to serve within a second.
PEERING_TIMEOUT_S = 30
HOLD_S = 5
# What the agent is given to flush what Ceph's tool gives up, each time.
AGENT_S = 10
_LEAST_RATIO = 1e-06
# No pool of Ceph has more copies.
_MOST_COPIES = 10

_NOT_THERE = re.compile(r"^failed to (?:flush|evict) .*: \(2\)", re.MULTILINE)
_WATCHER = re.compile(r"^watcher=(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFacts:
    """A tier with its figures; `dirty_objects` are those that only the cache has."""

    tier: Tier
    settings: Settings
    stored_bytes: int
    dirty_objects: int


def related(cluster: Cluster) -> Sequence[tuple[PoolName, PoolName]]:
    """Every pool of Ceph that has a cache, with that; also where removing was interrupted."""
    found = cluster.command("osd dump")["pools"]
    by_id = {pool["pool"]: PoolName(pool["pool_name"]) for pool in found}
    pairs = {(PoolName(p["pool_name"]), by_id[p["tiers"][0]]) for p in found if p["tiers"]}
    for pool in found:
        if (hold := _hold(pool)) and hold[0] in by_id.values():
            pairs.add((PoolName(pool["pool_name"]), hold[0]))
    return sorted(pairs)


def cache_of(cluster: Cluster, base: PoolName) -> PoolName | None:
    """The pool that is the cache of `base`, or that is just being parted from it."""
    return dict(related(cluster)).get(base)


def look(cluster: Cluster, base: PoolName, cache: PoolName) -> Tier:
    """The relation between two pools now, with the cache's objects counted by two witnesses.

    One is a listing by its OSDs, the other the statistics of its placement groups, which know of
    the copies that snapshots keep; the greater number counts. The listing stops at SAMPLE. While
    the cache is held, its placement groups are asked alone.
    """
    found = {pool["pool_name"]: pool for pool in cluster.command("osd dump")["pools"]}
    if base not in found or cache not in found:
        raise NotFound(f"pool {cache if base in found else base} does not exist in Ceph.")
    related = found[cache]["tier_of"] == found[base]["pool"]
    held = _hold(found[base]) is not None
    if held and related:
        count = _held_objects(cluster, found[cache])
    elif related:
        listed = len(objects(cluster, cache, most=SAMPLE))
        count = max(listed, counted(cluster, found[cache]))
    else:
        count = 0
    return Tier(
        base=base,
        cache=cache,
        related=related,
        mode=found[cache]["cache_mode"],
        overlay=found[base]["write_tier"] == found[cache]["pool"],
        objects=count,
        access=access(found[base]),
        held=held,
    )


def access(pool: Mapping[str, Any]) -> Access:
    """What tenants may do in a pool of `osd dump`."""
    tags = application_tags(pool, caps.APPLICATION)
    if caps.TAG in tags:
        return Access.OPEN
    return Access.READ_ONLY if caps.READ_ONLY_TAG in tags else Access.CLOSED


def facts(cluster: Cluster, base: PoolName, cache: PoolName) -> TierFacts:
    """The tier with its settings and what the manager counts (seconds old)."""
    stats = {p["name"]: p["stats"] for p in cluster.command("df", detail="detail")["pools"]}[cache]
    return TierFacts(
        tier=look(cluster, base, cache),
        settings=settings(cluster, cache),
        stored_bytes=stats["stored"],
        dirty_objects=stats.get("dirty", 0),
    )


def settings(cluster: Cluster, cache: PoolName) -> Settings:
    """The settings that the pool has now."""
    pool = _pool(cluster, cache)
    hit_set = pool["hit_set_params"]
    on = hit_set["type"] == "bloom"
    return Settings(
        size=pool["target_max_bytes"],
        objects=pool["target_max_objects"],
        dirty_ratio=pool["cache_target_dirty_ratio_micro"] / 1e6,
        dirty_high_ratio=pool["cache_target_dirty_high_ratio_micro"] / 1e6,
        full_ratio=pool["cache_target_full_ratio_micro"] / 1e6,
        flush_age=pool["cache_min_flush_age"],
        evict_age=pool["cache_min_evict_age"],
        hit_set=HitSet.BLOOM if on else HitSet.NONE,
        hit_set_count=pool["hit_set_count"],
        hit_set_period=pool["hit_set_period"],
        hit_set_fpp=round(float(hit_set["false_positive_probability"]), 6) if on else 0.05,
        read_recency=pool["min_read_recency_for_promote"],
        write_recency=pool["min_write_recency_for_promote"],
    )


def objects(
    cluster: Cluster, pool: PoolName, *, most: int | None = None
) -> Sequence[tuple[str, str]]:
    """Namespace and name of the pool's objects, listed from its OSDs; of the first `most` only.

    By Ceph's own tool: librados' Python iterator takes an error for the end of the list, and an
    OSD that does not answer would make a full cache look empty.
    """
    if most is None:
        done = _rados(cluster, "--pool", pool, "ls", "--all")
        lines, code, errors = done.stdout.splitlines(), done.returncode, done.stderr
    else:
        lines, code, errors = _first_lines(
            cluster.tool("rados", "--pool", pool, "ls", "--all"), most
        )
    if code:
        raise BackendUnavailable(f"pool {pool}: its objects can't be listed: {errors.strip()}.")
    found = [line.split("\t") for line in lines]
    return [(words[0], words[1]) for words in found if len(words) > 1]


def counted(cluster: Cluster, pool: Mapping[str, Any]) -> int:
    """How many objects the placement groups of a pool of `osd dump` count, at this moment."""
    return sum(map(_objects_of, _ask_groups(cluster, pool)))


def apply(cluster: Cluster, step: Step, tier: Tier, wanted: Settings) -> None:
    """Do one step other than DRAIN."""
    base, cache = PoolName(tier.base), PoolName(tier.cache)
    command: dict[Step, Callable[[], object]] = {
        Step.ADD: lambda: _add(cluster, base, cache),
        Step.LIMIT: lambda: _set(cluster, cache, wanted),
        Step.WRITEBACK: lambda: _set_mode(cluster, cache, Mode.WRITEBACK),
        Step.READONLY: lambda: _set_mode(cluster, cache, Mode.READONLY),
        Step.PROXY: lambda: _set_mode(cluster, cache, Mode.PROXY),
        Step.LAY: lambda: cluster.raw_command("osd tier set-overlay", pool=base, overlaypool=cache),
        Step.SEAL: lambda: pools.seal(cluster, base),
        Step.HOLD: lambda: _begin_hold(cluster, base, cache),
        Step.UNLAY: lambda: cluster.raw_command("osd tier remove-overlay", pool=base),
        Step.REMOVE: lambda: _remove(cluster, base, cache),
        Step.RELEASE: lambda: _end_hold(cluster, base, tier),
        Step.OPEN: lambda: pools.tag(cluster, base),
    }
    command[step]()


def can_hold(cluster: Cluster, cache: PoolName) -> bool:
    """Whether `HOLD` is possible: it asks for more copies than the cluster has places for.

    Where there are ten or more, such as hosts, Ceph would make those copies instead of waiting.
    """
    rules = {rule["rule_id"]: rule for rule in cluster.command("osd crush rule dump")}
    steps = rules[_pool(cluster, cache)["crush_rule"]]["steps"]
    kind = [step["type"] for step in steps if step["op"].startswith("choose")][-1]
    places = [node for node in cluster.command("osd tree")["nodes"] if node["type"] == kind]
    return len(places) < _MOST_COPIES


def release_laid(cluster: Cluster, base: PoolName, cache: PoolName) -> None:
    """Let a cache serve again that is held and that clients are led to, if that is so."""
    tier = look(cluster, base, cache)
    if tier.held and tier.overlay:
        _end_hold(cluster, base, tier)


def await_others_hold(cluster: Cluster, base: PoolName, cache: PoolName) -> None:
    """Return when no other command is just about to part the two pools, or has died over it.

    Such a command, or its guard, needs less than HOLD_S; a hold that lasts longer is nobody's.
    """
    give_up = time.monotonic() + HOLD_S
    while time.monotonic() < give_up:
        pool = _pool(cluster, base)
        if _hold(pool) is None or pool["write_tier"] != _pool(cluster, cache)["pool"]:
            return
        time.sleep(0.2)


def drain(cluster: Cluster, cache: PoolName) -> None:
    """Flush and evict all that can be; what clients have open stays. Ceph's tool does it.

    The tool takes an object's snapshot copies before the object, and gives the object up when the
    OSD does not have one of them in the cache (ENOENT), which is usual. Such objects are left to
    the tiering agent, which goes by what is there: for a moment it is told that nothing may stay.
    """
    # It ends with 1 when some object stayed; the caller looks for itself.
    done = _rados(cluster, "--pool", cache, "cache-flush-evict-all")
    if _NOT_THERE.search(done.stderr):
        _let_agent_drain(cluster, cache)


def _let_agent_drain(cluster: Cluster, cache: PoolName) -> None:
    before = settings(cluster, cache)
    pool = _pool(cluster, cache)
    hurry = replace(
        before,
        objects=pool["pg_num"],
        dirty_ratio=_LEAST_RATIO,
        dirty_high_ratio=_LEAST_RATIO,
        full_ratio=_LEAST_RATIO,
        flush_age=0,
        evict_age=0,
    )
    _set(cluster, cache, hurry)
    try:
        give_up = time.monotonic() + AGENT_S
        while counted(cluster, pool) and time.monotonic() < give_up:
            time.sleep(0.5)
            _rados(cluster, "--pool", cache, "cache-flush-evict-all")
    finally:
        _set(cluster, cache, before)


def trim_again(cluster: Cluster, cache: PoolName) -> None:
    """Let the OSDs drop what deleted snapshots have left in the cache.

    A copy that is brought into the cache while its snapshot is being trimmed in the base misses
    the cache's own trimming, and can be flushed no more (ENOENT) once the base has none. OSDs
    look for such copies only when they are told to.
    """
    for osd in serving_osds(cluster, cache):
        cluster.osd_command(osd, "scrub_purged_snaps")


def serving_osds(cluster: Cluster, pool: PoolName) -> Sequence[int]:
    """The OSDs that keep the placement groups of a pool."""
    found = cluster.command("pg ls-by-pool", poolstr=pool)
    return sorted({osd for group in found["pg_stats"] for osd in group["acting"]})


def sweep(cluster: Cluster, cache: PoolName) -> int:
    """Remove what lies in a pool that has just stopped to be a cache, and say how much it was.

    A request that waited in the cache while it was held has been sent again to the base, and is
    answered from there; when the pool serves again, it carries out its copy too.
    """
    strays = objects(cluster, cache)
    for namespace, name in strays:
        _rados(cluster, "--pool", cache, "--namespace", namespace, "rm", name)
    return len(strays)


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


def _begin_hold(cluster: Cluster, base: PoolName, cache: PoolName) -> None:
    """Let no placement group of the cache serve anybody: it asks for copies that can't be.

    Clients wait, as they do while an OSD restarts, and send again to the base once they are led
    there. What the pool had is noted on the base first, so that whoever comes can give it back.
    """
    pool = _pool(cluster, cache)
    pools.note(cluster, base, caps.HOLD_NOTE, f"{cache}:{pool['size']}:{pool['min_size']}")
    for variable in ("size", "min_size"):
        _set_variable(cluster, cache, variable, str(_MOST_COPIES))
    epoch = cluster.command("osd dump")["epoch"]
    _wait_for_groups(
        cluster,
        pool,
        lambda state, known: known >= epoch and "peered" in state,
        f"pool {cache}: its placement groups still serve clients",
    )


def _end_hold(cluster: Cluster, base: PoolName, tier: Tier) -> None:
    hold = _hold(_pool(cluster, base))
    if hold is None:
        return
    cache, size, min_size = hold
    if not tier.related:
        # The base's tag is still on it, and a client that has not heard would be served here.
        pools.tag(cluster, cache)
    _set_variable(cluster, cache, "min_size", min_size)
    _set_variable(cluster, cache, "size", size)
    epoch = cluster.command("osd dump")["epoch"]
    _wait_for_groups(
        cluster,
        _pool(cluster, cache),
        lambda state, known: known >= epoch and "active" in state,
        f"pool {cache}: its placement groups don't serve again",
    )
    if not tier.related:
        sweep(cluster, cache)
    pools.remove_note(cluster, base, caps.HOLD_NOTE)


def _hold(pool: Mapping[str, Any]) -> tuple[PoolName, str, str] | None:
    text = application_tags(pool, caps.APPLICATION).get(caps.HOLD_NOTE)
    if text is None:
        return None
    cache, size, min_size = text.split(":")
    return PoolName(cache), size, min_size


def _held_objects(cluster: Cluster, pool: Mapping[str, Any]) -> int:
    """What is in a cache that is held; one more if it is not yet, so that it is not parted."""
    groups = _ask_groups(cluster, pool)
    serving = any("peered" not in state for state, _, _ in groups)
    return sum(map(_objects_of, groups)) + serving


def _objects_of(group: tuple[str, int, Mapping[str, int]]) -> int:
    # Hit sets are kept as objects too, which hold nothing of anybody's.
    return group[2]["num_objects"] - group[2]["num_objects_hit_set_archive"]


def _wait_for_groups(
    cluster: Cluster, pool: Mapping[str, Any], reached: Callable[[str, int], bool], what: str
) -> None:
    give_up = time.monotonic() + PEERING_TIMEOUT_S
    while not all(reached(state, epoch) for state, epoch, _ in _ask_groups(cluster, pool)):
        if time.monotonic() > give_up:
            raise VerificationFailed(
                f"{what} after {PEERING_TIMEOUT_S} s. See `ceph -s`, and run the command again."
            )
        time.sleep(0.05)


def _ask_groups(
    cluster: Cluster, pool: Mapping[str, Any]
) -> Sequence[tuple[str, int, Mapping[str, int]]]:
    """State, osdmap and statistics of each placement group, from its primary OSD itself."""

    def ask(number: int) -> tuple[str, int, Mapping[str, int]]:
        found = cluster.group_query(f"{pool['pool']}.{number:x}")
        return found["state"], found["epoch"], found["info"]["stats"]["stat_sum"]

    with ThreadPoolExecutor(max_workers=8) as workers:
        return list(workers.map(ask, range(pool["pg_num"])))


def _first_lines(command: Sequence[str], most: int) -> tuple[list[str], int, str]:
    """Up to `most` lines of what a program prints, its exit code (0 if it had more to say)."""
    try:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as program:
            assert program.stdout is not None and program.stderr is not None
            lines = []
            for line in program.stdout:
                lines.append(line.rstrip("\n"))
                if len(lines) >= most:
                    program.kill()
                    return lines, 0, ""
            errors = program.stderr.read()
    except FileNotFoundError as error:
        raise _not_installed() from error
    return lines, program.returncode, errors


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
        raise _not_installed() from error
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailable(
            f"rados {arguments[2]} did not end within {TOOL_TIMEOUT_S} s. Run the command again."
        ) from error


def _not_installed() -> BackendUnavailable:
    return BackendUnavailable(
        "the program rados is not installed. Install it: apt-get install ceph-common."
    )


def _pool(cluster: Cluster, name: PoolName) -> dict[str, Any]:
    for pool in cluster.command("osd dump")["pools"]:
        if pool["pool_name"] == name:
            return dict(pool)
    raise NotFound(f"pool {name} does not exist in Ceph.")


def _remove(cluster: Cluster, base: PoolName, cache: PoolName) -> None:
    cluster.raw_command("osd tier remove", pool=base, tierpool=cache)
    for pool in (base, cache):
        pools.let_osds_copy(cluster, pool, False)


def _add(cluster: Cluster, base: PoolName, cache: PoolName) -> None:
    for pool in (base, cache):
        pools.let_osds_copy(cluster, pool, True)
    # Ceph asks the manager's counts whether the cache is empty, and they lag behind.
    _retried(
        lambda: cluster.raw_command("osd tier add", pool=base, tierpool=cache),
        lambda error: error.code == errno.ENOTEMPTY and not objects(cluster, cache, most=1),
    )


def _set_mode(cluster: Cluster, cache: PoolName, mode: Mode) -> None:
    sure = {"yes_i_really_mean_it": True} if mode is Mode.READONLY else {}
    # Ceph refuses some changes while objects are dirty, and asks the manager, who lags behind.
    _retried(
        lambda: cluster.raw_command("osd tier cache-mode", pool=cache, mode=mode, **sure),
        lambda error: (
            error.code in (errno.EBUSY, errno.EINVAL)
            and mode is not Mode.PROXY
            and not objects(cluster, cache, most=1)
        ),
    )


def _retried(act: Callable[[], object], lags: Callable[[CommandFailed], bool]) -> None:
    give_up = time.monotonic() + STATISTICS_LAG_S
    while True:
        try:
            act()
            return
        except CommandFailed as error:
            if not lags(error) or time.monotonic() > give_up:
                raise
        time.sleep(1)


def _set(cluster: Cluster, cache: PoolName, wanted: Settings) -> None:
    present = tier_settings.as_ceph(settings(cluster, cache))
    for variable, value in tier_settings.as_ceph(wanted).items():
        if present.get(variable) != value:
            _set_variable(cluster, cache, variable, value)


def _set_variable(cluster: Cluster, pool: PoolName, variable: str, value: str) -> None:
    cluster.raw_command("osd pool set", pool=pool, var=variable, val=value)
