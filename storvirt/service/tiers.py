"""A write-back cache before a pool: laid, shown, and taken away with nothing lost.

Nothing is recorded in the fabric database: the tier is a property of Ceph's osdmap, seen by every
client at once, and each step is decided from it.
"""

import time
from collections.abc import Callable

from storvirt.backends import pools, tiers
from storvirt.backends.cluster import Cluster
from storvirt.backends.pools import PoolFacts
from storvirt.backends.tiers import Limits, TierFacts
from storvirt.model import PoolName
from storvirt.service import catalog
from storvirt.tiering import HitSet, Step, next_setup, next_teardown
from tenancy.backends.fabric import Fabric
from tenancy.errors import NotFound, Refused
from tenancy.names import rough_size

# The share of what the cache pool could hold that it may, if no size is given.
DEFAULT_SHARE = 0.8
# Rounds of flushing that free nothing before clients are named as the reason.
STUCK_ROUNDS = 3
# While flushing takes longer than this, it is said how much is left.
TALK_S = 10

Say = Callable[[str], None]


def create(
    fabric: Fabric,
    cluster: Cluster,
    base: PoolName,
    cache: PoolName,
    *,
    size_bytes: int | None = None,
    hit_set: HitSet = HitSet.NONE,
    say: Say = lambda _sentence: None,
) -> TierFacts:
    """Lay the pool `cache` before the pool `base` in write-back mode; continues what was begun."""
    _refuse_unfit(fabric, pools.describe(cluster, base), pools.describe(cluster, cache))
    tier = tiers.look(cluster, base, cache)
    if not tier.related and tiers.objects(cluster, cache):
        raise Refused(f"pool {cache} is not empty, and a cache must be. Choose another pool.")
    capacity = tiers.capacity_bytes(cluster, cache)
    if not capacity or (size_bytes or 0) > capacity:
        raise Refused(
            f"pool {cache} can hold {rough_size(capacity)}, and a cache that is allowed more fills "
            "its OSDs. Choose a smaller --size, or add OSDs."
        )
    wanted = Limits(size_bytes=size_bytes or int(capacity * DEFAULT_SHARE), hit_set=hit_set)
    begun = tiers.limits(cluster, cache)
    if tier.related and size_bytes is None and begun.size_bytes:
        # What is free has changed since an interrupted run chose.
        wanted = Limits(size_bytes=begun.size_bytes, hit_set=hit_set)
    while step := next_setup(tier, limited=tiers.limits(cluster, cache) == wanted):
        say(f"{cache}: {step}")
        tiers.apply(cluster, step, tier, wanted)
        tier = tiers.look(cluster, base, cache)
    return tiers.facts(cluster, base, cache)


def show(fabric: Fabric, cluster: Cluster, base: PoolName) -> TierFacts:
    """The tier before a pool. Raises NotFound."""
    catalog.pool(fabric, base)
    return tiers.facts(cluster, base, _cache(cluster, base))


def remove(
    fabric: Fabric,
    cluster: Cluster,
    base: PoolName,
    *,
    wait_s: float = 0,
    say: Say = lambda _sentence: None,
) -> None:
    """Take the cache away from a pool once every byte in it is in the base.

    Objects that a client has open can't be evicted: after `wait_s` that is Refused, names the
    clients, and leaves the tier in proxy mode, where nothing is lost. Calling again continues.
    """
    catalog.pool(fabric, base)
    if pools.describe(cluster, base).cache is None and not pools.describe(cluster, base).tagged:
        # Interrupted after its last step but one.
        pools.tag(cluster, base)
        return
    cache = _cache(cluster, base)
    unchanged = tiers.limits(cluster, cache)
    give_up = time.monotonic() + wait_s
    stuck_rounds = 0
    confirmed = False
    told: Step | None = None
    told_at = time.monotonic()
    tier = tiers.look(cluster, base, cache)
    while step := next_teardown(tier):
        if step is not told:
            say(f"{cache}: {step}")
            told, told_at = step, time.monotonic()
        left = tier.objects
        if step is Step.DRAIN:
            if time.monotonic() - told_at > TALK_S:
                say(f"{cache}: {tier.objects} objects left")
                told_at = time.monotonic()
            tiers.drain(cluster, cache)
            confirmed = False
        elif step is Step.CLOSE and not confirmed:
            # It takes seconds, in which clients may come: so look again before closing.
            tiers.confirm_empty(cluster, cache)
            confirmed = True
        else:
            tiers.apply(cluster, step, tier, unchanged)
        tier = tiers.look(cluster, base, cache)
        stuck_rounds = stuck_rounds + 1 if step is Step.DRAIN and tier.objects >= left else 0
        if stuck_rounds >= STUCK_ROUNDS:
            if time.monotonic() >= give_up:
                raise Refused(_stuck(cluster, base, cache))
            time.sleep(1)
    tiers.retag(cluster, cache)


def _cache(cluster: Cluster, base: PoolName) -> PoolName:
    cache = tiers.cache_of(cluster, base)
    if cache is None:
        of = pools.describe(cluster, base).tier_of
        hint = f"It is the cache of {of}: name that." if of else "See `svctl pool list`."
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
    left = tiers.objects(cluster, cache)
    clients = sorted({a for ns, name in left for a in tiers.watchers(cluster, cache, ns, name)})
    opened = (
        f"clients have images open ({', '.join(clients[:5])})" if clients else "they are in use"
    )
    objects = f"{len(left)} object{'s' if len(left) != 1 else ''}"
    return (
        f"tier {cache} before {base}: {objects} cannot be evicted, because {opened}. "
        "It is in proxy mode and nothing is lost. Stop or move those guests, "
        f"and run again: svctl tier remove {base}."
    )
