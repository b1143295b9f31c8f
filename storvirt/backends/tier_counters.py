"""What cache tiers do in a stretch of time, from the counters of the OSDs.

The counters are each OSD's own and know no pools: they hold for all cache tiers that share these
OSDs. Ceph's statistics by pool follow some seconds later, too late for a short look.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from storvirt.backends.cluster import Cluster
from storvirt.backends.tiers import serving_osds
from storvirt.model import PoolName

_HITS = "op_cache_hit"
_MISSES = ("tier_proxy_read", "tier_proxy_write", "tier_promote")
_FLUSHES = ("tier_flush", "tier_try_flush")


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Requests that found their object in a cache, as a share of all (None: there were none),
    and objects flushed, promoted and evicted per second."""

    window_s: float
    hit_ratio: float | None
    flushed_per_s: float
    promoted_per_s: float
    evicted_per_s: float


def measure(cluster: Cluster, cache: PoolName, window_s: float) -> Activity:
    """What the OSDs that serve `cache` do with tiers during `window_s`, which this call lasts."""
    osds = serving_osds(cluster, cache)
    before, began = _totals(cluster, osds), time.monotonic()
    time.sleep(window_s)
    after, lasted = _totals(cluster, osds), time.monotonic() - began
    grown = {name: max(after[name] - before[name], 0) for name in after}
    asked = grown[_HITS] + sum(grown[name] for name in _MISSES)
    return Activity(
        window_s=round(lasted, 1),
        hit_ratio=round(grown[_HITS] / asked, 3) if asked else None,
        flushed_per_s=round(sum(grown[name] for name in _FLUSHES) / lasted, 1),
        promoted_per_s=round(grown["tier_promote"] / lasted, 1),
        evicted_per_s=round((grown["tier_evict"] + grown["agent_evict"]) / lasted, 1),
    )


def _totals(cluster: Cluster, osds: Sequence[int]) -> dict[str, int]:
    names = (_HITS, *_MISSES, *_FLUSHES, "tier_evict", "agent_evict")
    totals = dict.fromkeys(names, 0)
    for osd in osds:
        counters = cluster.osd_command(osd, "perf dump", logger="osd")["osd"]
        for name in names:
            totals[name] += counters[name]
    return totals
