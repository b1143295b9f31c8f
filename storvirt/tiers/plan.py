"""What a cache tier means for the bytes behind it, in sentences that hold. Pure.

Each follows from the mode, the settings and the cluster's figures, and is shown by a test that
writes and then looks where the objects are (tests/functional/test_storage_tier_plan.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from storvirt.tiers.settings import Settings
from storvirt.tiers.steps import HitSet, Mode
from tenancy.names import rough_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`dirty_limit_bytes` is how much the cache alone may hold before writers wait."""

    first_write: str
    next_writes: str
    reads: str
    acknowledged_bytes: str
    cost_of_loss: str
    dirty_limit_bytes: int
    flushing: str
    teardown: str


def plan(
    settings: Settings, mode: Mode, *, base: str, cache: str, replicas: int, can_hold: bool
) -> Plan:
    """What the tier `cache` before `base` would do, or does."""
    first, following = _writes(settings, mode, base)
    return Plan(
        first_write=first,
        next_writes=following,
        reads=_reads(settings, mode),
        acknowledged_bytes=_acknowledged(settings, mode, base, cache, replicas),
        cost_of_loss=_loss(settings, mode, base, cache),
        dirty_limit_bytes=settings.size if mode is Mode.WRITEBACK else 0,
        flushing=_flushing(settings, mode),
        teardown=_teardown(mode, base, can_hold=can_hold),
    )


def _writes(settings: Settings, mode: Mode, base: str) -> tuple[str, str]:
    if mode is Mode.READONLY:
        return ("tenants' are refused by Ceph", "tenants' are refused by Ceph")
    if mode is Mode.PROXY:
        kept = "to the cache while the object is still in it, else through it to the base"
        return (f"through the cache to pool {base}", kept)
    if settings.hit_set is HitSet.NONE:
        return ("to the cache", "to the cache")
    if settings.write_recency == 0:
        return ("to the cache, once the object has been brought there", "to the cache")
    return (
        f"through the cache to pool {base}, until the object is in {settings.write_recency} of "
        f"{settings.hit_set_count} hit sets of {settings.hit_set_period} s",
        "to the cache once the object is there",
    )


def _reads(settings: Settings, mode: Mode) -> str:
    if mode is Mode.PROXY:
        return "from the cache what is in it, the rest through it from the base"
    if mode is Mode.WRITEBACK and settings.hit_set is HitSet.BLOOM and settings.read_recency:
        return (
            "from the cache what is in it; the rest through it from the base, and brought into "
            f"it when it is in {settings.read_recency} of {settings.hit_set_count} hit sets"
        )
    return "from the cache; what is not in it is brought into it first"


def _acknowledged(settings: Settings, mode: Mode, base: str, cache: str, replicas: int) -> str:
    if mode is Mode.READONLY:
        return (
            f"in pool {base}. Only the operator's notes on golden images (which clones a "
            f"snapshot has) may be in pool {cache} until they are flushed"
        )
    if mode is Mode.PROXY:
        return f"in pool {base}, but for objects that were in the cache before and are still there"
    where = f"in pool {cache} alone, in {replicas} copies, until they are flushed to {base}"
    if settings.hit_set is HitSet.NONE:
        return where
    return f"of objects that are in the cache, {where}; of others, in pool {base}"


def _loss(settings: Settings, mode: Mode, base: str, cache: str) -> str:
    if mode is Mode.READONLY:
        return f"no tenant's byte: pool {base} has them all"
    if mode is Mode.PROXY:
        return f"what pool {cache} still holds dirty from before; nothing once that is flushed"
    return (
        f"every acknowledged write that is not yet flushed, up to {rough_size(settings.size)}; "
        "and with image headers among it, whole images"
    )


def _flushing(settings: Settings, mode: Mode) -> str:
    if mode is not Mode.WRITEBACK:
        return "nothing gets dirty" if mode is Mode.READONLY else "what is dirty still is flushed"
    begins = settings.dirty_ratio * settings.size
    hurries = settings.dirty_high_ratio * settings.size
    evicts = settings.full_ratio * settings.size
    young = f", of what is older than {settings.flush_age} s," if settings.flush_age else ""
    return (
        f"begins{young} at {rough_size(int(begins))} dirty and hurries at "
        f"{rough_size(int(hurries))}; clean objects are evicted from {rough_size(int(evicts))} "
        f"on, and at {rough_size(settings.size)} writers wait"
    )


def _teardown(mode: Mode, base: str, *, can_hold: bool) -> str:
    parts: Sequence[str] = (
        "drained in proxy mode",
        "verified empty by a listing and by its placement groups",
        "requests wait a moment while it is parted"
        if can_hold
        else "tenants may only read for a moment while it is parted, and can't open disks",
    )
    kept = (
        "guests may go on reading"
        if mode is Mode.READONLY
        else f"every image of pool {base} must be closed"
    )
    return f"{', '.join(parts)}; {kept}"
