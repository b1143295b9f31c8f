"""A cache before a pool: laid, changed, shown, and taken away with nothing lost.

The tier itself is not recorded in the fabric database: it is a property of Ceph's osdmap, seen by
every client at once, and each step is decided from it. What is recorded is the promise that
tenants only read in a pool, because admitting a new image must know it.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from storvirt.backends import hold_guard, pools, tier_counters, tiers
from storvirt.backends.cluster import Cluster
from storvirt.backends.pools import PoolFacts
from storvirt.backends.tier_counters import Activity
from storvirt.backends.tiers import TierFacts
from storvirt.model import PoolName
from storvirt.service import catalog, read_only_pools
from storvirt.tiers import settings as tier_settings
from storvirt.tiers.plan import Plan, plan
from storvirt.tiers.settings import Settings
from storvirt.tiers.steps import Mode, Step, Tier, next_setup, next_teardown
from tenancy.backends.fabric import Fabric
from tenancy.errors import NotFound, Refused

# The share of what the cache pool could hold that it may, if no size is given.
DEFAULT_SHARE = 0.8
# Rounds of flushing that free nothing before clients are named as the reason.
STUCK_ROUNDS = 3
# Moments in which requests waited for nothing, because somebody had come in before.
MOST_HOLDS = 20
# While flushing takes longer than this, it is said how much is left.
TALK_S = 10
# A client that only watches hears of a new map with its next ping, after 5 s.
SETTLE_S = 6.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a tier would mean, and for whom: tenants' images in the pool, clients that use it."""

    plan: Plan
    images: tuple[str, ...]
    clients: tuple[str, ...]


def create(
    fabric: Fabric,
    cluster: Cluster,
    base: PoolName,
    cache: PoolName,
    *,
    mode: Mode = Mode.WRITEBACK,
    changes: Mapping[str, object] | None = None,
    say: Say = lambda _sentence: None,
) -> TierFacts:
    """Lay the pool `cache` before the pool `base`; continues what was begun."""
    tier = _fit(fabric, cluster, base, cache)
    # A removal that was interrupted leaves proxy mode, and may be followed by beginning anew.
    if tier.overlay and tier.mode in {Mode.WRITEBACK, Mode.READONLY} - {mode} and not tier.held:
        raise Refused(
            f"pool {base} has the cache {cache} in mode {tier.mode}. "
            f"Change that: svctl tier set {base} --mode {mode}."
        )
    wanted = _settings(cluster, tier, mode, changes or {})
    return _reach(fabric, cluster, tier, mode, wanted, say)


def change(
    fabric: Fabric,
    cluster: Cluster,
    base: PoolName,
    *,
    mode: Mode | None = None,
    changes: Mapping[str, object] | None = None,
    say: Say = lambda _sentence: None,
) -> TierFacts:
    """Give a tier another mode or other settings, over states that lose nothing."""
    catalog.pool(fabric, base)
    cache = _cache(cluster, base)
    tier = tiers.look(cluster, base, cache)
    if tier.mode not in set(Mode) or not tier.overlay or tier.held:
        raise Refused(
            f"tier {cache} before {base} is not complete. Finish it: svctl tier create {base} "
            f"--cache {cache}, or take it away: svctl tier remove {base}."
        )
    new_mode = mode or Mode(tier.mode)
    wanted = _settings(cluster, tier, new_mode, changes or {})
    return _reach(fabric, cluster, tier, new_mode, wanted, say)


def outlook(
    fabric: Fabric,
    cluster: Cluster,
    base: PoolName,
    cache: PoolName | None = None,
    *,
    mode: Mode | None = None,
    changes: Mapping[str, object] | None = None,
) -> Outlook:
    """What a tier does, or would do if it were made or changed like this. Changes nothing."""
    catalog.pool(fabric, base)
    front = cache or _cache(cluster, base)
    tier = _fit(fabric, cluster, base, front)
    meant = mode or (Mode(tier.mode) if tier.mode in set(Mode) else Mode.WRITEBACK)
    if meant is Mode.READONLY:
        read_only_pools.refuse_unfit(fabric, cluster, base)
    found = [e.record for e in catalog.images(fabric) if e.record.pool == base]
    return Outlook(
        plan=plan(
            _settings(cluster, tier, meant, changes or {}),
            meant,
            base=base,
            cache=front,
            replicas=pools.describe(cluster, front).replicas,
            can_hold=tiers.can_hold(cluster, front),
        ),
        images=tuple(str(image.path) for image in found),
        clients=read_only_pools.users(cluster, [image.path for image in found]),
    )


def show(
    fabric: Fabric, cluster: Cluster, base: PoolName, *, window_s: float = 1
) -> tuple[TierFacts, Activity]:
    """The tier before a pool, and what went on during the next `window_s`. Raises NotFound."""
    catalog.pool(fabric, base)
    cache = _cache(cluster, base)
    activity = tier_counters.measure(cluster, cache, window_s)
    return tiers.facts(cluster, base, cache), activity


def list_all(fabric: Fabric, cluster: Cluster) -> list[TierFacts]:
    """All tiers before pools that virtkit knows, by base."""
    known = {pool.name for pool in catalog.pools(fabric)}
    return [tiers.facts(cluster, *pair) for pair in tiers.related(cluster) if pair[0] in known]


def remove(
    fabric: Fabric,
    cluster: Cluster,
    base: PoolName,
    *,
    wait_s: float = 0,
    settle_s: float = SETTLE_S,
    say: Say = lambda _sentence: None,
) -> None:
    """Take the cache away from a pool once every byte in it is in the base.

    Objects that a client has open can't be evicted: after `wait_s` that is Refused, names the
    clients, and leaves the tier in proxy mode, where nothing is lost. Calling again continues.
    """
    row = catalog.pool(fabric, base)
    if tiers.cache_of(cluster, base) is None and (
        row["access"] is not None or not pools.describe(cluster, base).tagged
    ):
        # Interrupted after its last step but one.
        pools.tag(cluster, base)
        read_only_pools.forget(fabric, base)
        return
    cache = _cache(cluster, base)
    give_up = time.monotonic() + wait_s
    tiers.await_others_hold(cluster, base, cache)
    try:
        _take_away(cluster, base, cache, give_up, settle_s, say)
    finally:
        # Whatever happened: nobody is to wait for a pool that is held.
        _release(cluster, base, cache, say)
    pools.tag(cluster, cache)
    read_only_pools.forget(fabric, base)


def _take_away(
    cluster: Cluster, base: PoolName, cache: PoolName, give_up: float, settle_s: float, say: Say
) -> None:
    with ExitStack() as guards:
        _part(cluster, base, cache, give_up, settle_s, say, guards)


def _part(
    cluster: Cluster,
    base: PoolName,
    cache: PoolName,
    give_up: float,
    settle_s: float,
    say: Say,
    guards: ExitStack,
) -> None:
    unchanged = tiers.settings(cluster, cache)
    can_hold = tiers.can_hold(cluster, cache)
    stuck_rounds = holds = 0
    guarded = False
    told: Step | None = None
    told_at = time.monotonic()
    tier = tiers.look(cluster, base, cache)
    while step := next_teardown(tier, can_hold=can_hold, stuck=stuck_rounds > 0):
        if step is not told:
            say(f"{cache}: {step}")
            told, told_at = step, time.monotonic()
        left = tier.objects
        if step is Step.DRAIN:
            if time.monotonic() - told_at > TALK_S:
                say(f"{cache}: {tier.objects} objects left")
                told_at = time.monotonic()
            tiers.drain(cluster, cache)
        else:
            if step is Step.REMOVE:
                time.sleep(settle_s)
            if step is Step.HOLD and not guarded:
                guarded = True
                guards.enter_context(hold_guard.standing_by(cluster, base, cache))
            tiers.apply(cluster, step, tier, unchanged)
        holds += step is Step.HOLD
        tier = tiers.look(cluster, base, cache)
        if step is Step.DRAIN:
            stuck_rounds = stuck_rounds + 1 if tier.objects >= left else 0
            if stuck_rounds == 1:
                tiers.trim_again(cluster, cache)
        if stuck_rounds >= STUCK_ROUNDS or holds > MOST_HOLDS:
            if time.monotonic() >= give_up:
                raise Refused(_stuck(cluster, base, cache))
            holds = 0
            time.sleep(1)


def _release(cluster: Cluster, base: PoolName, cache: PoolName, say: Say) -> None:
    tier = tiers.look(cluster, base, cache)
    if tier.held:
        say(f"{cache}: {Step.RELEASE}")
        tiers.apply(cluster, Step.RELEASE, tier, tiers.settings(cluster, cache))


def _reach(
    fabric: Fabric, cluster: Cluster, tier: Tier, mode: Mode, wanted: Settings, say: Say
) -> TierFacts:
    """Step by step to a tier of this mode and these settings."""
    base, cache = PoolName(tier.base), PoolName(tier.cache)
    if tier.held:
        tiers.await_others_hold(cluster, base, cache)
        tier = tiers.look(cluster, base, cache)
    if mode is Mode.READONLY:
        read_only_pools.claim(fabric, cluster, base)
    stuck_rounds = 0
    while step := next_setup(tier, mode, limited=tiers.settings(cluster, cache) == wanted):
        say(f"{cache}: {step}")
        left = tier.objects
        if step is Step.DRAIN:
            tiers.drain(cluster, cache)
        else:
            tiers.apply(cluster, step, tier, wanted)
        if step is Step.SEAL:
            read_only_pools.refuse_late_writers(fabric, cluster, base)
        tier = tiers.look(cluster, base, cache)
        stuck_rounds = stuck_rounds + 1 if step is Step.DRAIN and tier.objects >= left else 0
        if stuck_rounds == 1:
            tiers.trim_again(cluster, cache)
        if stuck_rounds >= STUCK_ROUNDS:
            raise Refused(_stuck(cluster, base, cache))
    if mode is not Mode.READONLY:
        read_only_pools.forget(fabric, base)
    return tiers.facts(cluster, base, cache)


def _fit(fabric: Fabric, cluster: Cluster, base: PoolName, cache: PoolName) -> Tier:
    """The relation of two pools that are, or can become, base and cache."""
    _refuse_unfit(fabric, pools.describe(cluster, base), pools.describe(cluster, cache))
    tier = tiers.look(cluster, base, cache)
    if not tier.related and not tier.held and tiers.objects(cluster, cache, most=1):
        raise Refused(f"pool {cache} is not empty, and a cache must be. Choose another pool.")
    return tier


def _settings(cluster: Cluster, tier: Tier, mode: Mode, changes: Mapping[str, object]) -> Settings:
    """What the cache pool's settings shall be: what it has, the defaults, and the changes."""
    cache = PoolName(tier.cache)
    capacity = tiers.capacity_bytes(cluster, cache)
    if not capacity:
        raise Refused(f"pool {cache} can hold nothing: no OSD is in it. See `ceph osd df`.")
    present = tiers.settings(cluster, cache)
    if tier.related and present.size:
        # A run that was interrupted may have set some of them only.
        before = present if tier.overlay else Settings(size=present.size)
        # What is free has changed since an interrupted run chose.
        capacity = max(capacity, present.size if "size" not in changes else 0)
    else:
        before = Settings(size=int(capacity * DEFAULT_SHARE))
    wanted = tier_settings.changed(before, changes)
    pg_num = pools.describe(cluster, cache).pg_num
    tier_settings.check(wanted, mode, pg_num=pg_num, capacity_bytes=capacity, cache=cache)
    return wanted


def _cache(cluster: Cluster, base: PoolName) -> PoolName:
    cache = tiers.cache_of(cluster, base)
    if cache is None:
        of = pools.describe(cluster, base).tier_of
        hint = f"It is the cache of {of}: name that." if of else "See `svctl tier list`."
        raise NotFound(f"pool {base} has no cache tier. {hint}")
    return cache


def _refuse_unfit(fabric: Fabric, base: PoolFacts, cache: PoolFacts) -> None:
    held = [e.record.tenant for e in catalog.namespaces(fabric) if e.record.pool == cache.name]
    reason = None
    if base.name == cache.name:
        reason = "a pool can't be its own cache. Choose another"
    elif not cache.replicated:
        reason = f"{cache.name} is erasure-coded, and a cache must be replicated. Choose another"
    elif not base.replicated:
        reason = (
            f"{base.name} is erasure-coded, and image headers can't be flushed to it. Lay the "
            "cache before the replicated pool that holds the headers"
        )
    elif cache.replicas < min(base.replicas, 2):
        reason = (
            f"{cache.name} keeps {cache.replicas} copies, and acknowledged writes live only "
            "there until they are flushed. Choose a pool with at least 2"
        )
    elif held:
        reason = f"{cache.name} holds a namespace of {held[0]}. Choose a pool without tenants"
    elif base.cache not in (None, cache.name):
        reason = f"it has the cache {base.cache} already. First: svctl tier remove {base.name}"
    elif cache.tier_of not in (None, base.name):
        reason = f"{cache.name} is the cache of {cache.tier_of} already. Choose another pool"
    elif base.tier_of or cache.cache:
        reason = "tiers can't be stacked. Choose pools that are in none"
    if reason:
        raise Refused(f"pool {base.name}: {reason}.")
    catalog.pool(fabric, base.name)
    catalog.pool(fabric, cache.name)


def _stuck(cluster: Cluster, base: PoolName, cache: PoolName) -> str:
    left = tiers.objects(cluster, cache, most=tiers.SAMPLE)
    clients = sorted({a for ns, name in left for a in tiers.watchers(cluster, cache, ns, name)})
    opened = (
        f"clients have images open ({', '.join(clients[:5])})" if clients else "they are in use"
    )
    number = f"{tiers.SAMPLE} and more" if len(left) >= tiers.SAMPLE else f"{len(left)}"
    return (
        f"tier {cache} before {base}: {number} object{'s' if len(left) != 1 else ''} cannot be "
        f"evicted, because {opened}. "
        "It is in proxy mode and nothing is lost. Stop or move those guests, "
        f"and run again: svctl tier remove {base}."
    )
