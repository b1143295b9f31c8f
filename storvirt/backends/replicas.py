"""Letting replicas answer reads: the image's policy, and groups that are ready for it.

A replica refuses to answer for an object while the last write to it may still be undone, which it
learns only with the writes that follow. In a group that nobody writes to any more, a golden
image's for instance, that moment never comes by itself: two more writes to anything in the group
bring it.
"""

from collections.abc import Iterable, Mapping
from itertools import count

from storvirt.backends.cluster import Cluster, translated
from storvirt.model import PoolName
from storvirt.placement.osdmap import PoolMap, seeds

# RADOS namespace of objects that exist only while a group is made ready.
NAMESPACE = "virtkit-settle"
# Two make what was there readable; the third removes the object that they wrote.
_WRITES = 2
_AT_ONCE = 256
_NAMES_AT_ONCE = 4096


def settle(cluster: Cluster, pool: PoolMap, groups: Iterable[int]) -> int:
    """Write twice to each of these groups of a pool, and remove what was written.

    Returns how many groups that were. Safe to be killed: what is left has known names, is empty,
    and is removed by the next run. Raises BackendUnavailable if an OSD stays silent.
    """
    names = _names(pool, set(groups))
    with (
        translated(f"pool {pool.name}"),
        cluster.pool(PoolName(pool.name), NAMESPACE) as context,
    ):
        ordered = sorted(names.values())
        for start in range(0, len(ordered), _AT_ONCE):
            some = ordered[start : start + _AT_ONCE]
            for _ in range(_WRITES):
                for completion in [context.aio_write_full(name, b"") for name in some]:
                    completion.wait_for_complete_and_cb()
            for completion in [context.aio_remove(name) for name in some]:
                completion.wait_for_complete_and_cb()
    return len(names)


def _names(pool: PoolMap, groups: set[int]) -> Mapping[int, str]:
    """An object name for each group."""
    found: dict[int, str] = {}
    for start in count(step=_NAMES_AT_ONCE):
        missing = groups - found.keys()
        if not missing:
            break
        names = [f"settle.{number}" for number in range(start, start + _NAMES_AT_ONCE)]
        for name, seed in zip(names, seeds(pool, NAMESPACE, names), strict=True):
            if seed in missing:
                found.setdefault(seed, name)
    return found
