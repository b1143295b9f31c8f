"""The settings of a cache pool: what they are called, what they may be, and which go together.
Pure.

Ceph takes any number for any of them and any combination; what comes of a wrong one is a cache
that fills its OSDs, or one whose agent never flushes. See
https://docs.ceph.com/en/pacific/rados/operations/cache-tiering/.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from storvirt.tiers.steps import HitSet, Mode
from tenancy.errors import InvalidRequest
from tenancy.names import parse_size, rough_size, shortened

# A placement group works towards its share of the pool's size; below one object it can't.
_SMALLEST_SHARE_BYTES = 4 << 20
_LONGEST_S = 10 * 365 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much a cache may hold, when it flushes and evicts, and what it remembers.

    The ratios are shares of the size (and of the number of objects): the agent flushes when more
    than `dirty_ratio` is dirty, hurries above `dirty_high_ratio`, evicts above `full_ratio`, and
    lets writers wait at 1. Ages are in seconds: what is younger is not flushed or evicted unless
    the cache is full. Hit sets are `hit_set_count` records of `hit_set_period` seconds each; an
    object is promoted when it is in as many of the latest as the recency says.
    """

    size: int
    objects: int = 0
    dirty_ratio: float = 0.4
    dirty_high_ratio: float = 0.6
    full_ratio: float = 0.8
    flush_age: int = 0
    evict_age: int = 0
    hit_set: HitSet = HitSet.NONE
    hit_set_count: int = 0
    hit_set_period: int = 0
    hit_set_fpp: float = 0.05
    read_recency: int = 0
    write_recency: int = 0


# Ceph's names, in the order in which Ceph takes them: the rate belongs to the kind of hit set.
VARIABLES = {
    "size": "target_max_bytes",
    "objects": "target_max_objects",
    "dirty_ratio": "cache_target_dirty_ratio",
    "dirty_high_ratio": "cache_target_dirty_high_ratio",
    "full_ratio": "cache_target_full_ratio",
    "flush_age": "cache_min_flush_age",
    "evict_age": "cache_min_evict_age",
    "hit_set": "hit_set_type",
    "hit_set_count": "hit_set_count",
    "hit_set_period": "hit_set_period",
    "hit_set_fpp": "hit_set_fpp",
    "read_recency": "min_read_recency_for_promote",
    "write_recency": "min_write_recency_for_promote",
}
_BLOOM = {"hit_set_count": 4, "hit_set_period": 1200, "read_recency": 1, "write_recency": 1}
_RATIOS = ("dirty_ratio", "dirty_high_ratio", "full_ratio", "hit_set_fpp")


def parse(words: list[str]) -> dict[str, object]:
    """`key=value` words as changes to Settings. Raises InvalidRequest."""
    changes: dict[str, object] = {}
    for word in words:
        key, equals, text = word.partition("=")
        name = key.replace("-", "_")
        if not equals or name not in VARIABLES:
            known = ", ".join(one.replace("_", "-") for one in VARIABLES)
            raise InvalidRequest(
                f"{shortened(word)!r} is not a setting of a cache. Write KEY=VALUE; keys: {known}."
            )
        if name in changes:
            raise InvalidRequest(f"{key} is set twice. Say it once.")
        changes[name] = _value(key, name, text)
    return changes


def changed(settings: Settings, changes: Mapping[str, object]) -> Settings:
    """`settings` with `changes`; a kind of hit set brings what else it needs along."""
    kind = changes.get("hit_set", settings.hit_set)
    implied: dict[str, object] = {}
    if kind is HitSet.NONE:
        implied = dict.fromkeys(_BLOOM, 0) | {"hit_set_fpp": 0.05}
    elif settings.hit_set is HitSet.NONE:
        implied = dict(_BLOOM)
    return replace(settings, **{**implied, **changes})  # type: ignore[arg-type]


def check(settings: Settings, mode: Mode, *, pg_num: int, capacity_bytes: int, cache: str) -> None:
    """Refuse what would not work or would endanger bytes. Raises InvalidRequest."""
    smallest = pg_num * _SMALLEST_SHARE_BYTES
    reason = None
    if settings.size > capacity_bytes:
        reason = (
            f"it can hold {rough_size(capacity_bytes)}, and a cache that is allowed more fills "
            "its OSDs. Choose a smaller size, or add OSDs"
        )
    elif settings.size < smallest:
        reason = (
            f"size {rough_size(settings.size)} is less than one object for each of its {pg_num} "
            f"placement groups. Choose at least {rough_size(smallest)}"
        )
    elif 0 < settings.objects < pg_num:
        reason = (
            f"{settings.objects} objects are less than one for each of its {pg_num} placement "
            f"groups. Choose at least {pg_num}, or 0 for no limit"
        )
    elif settings.dirty_high_ratio < settings.dirty_ratio:
        reason = (
            f"dirty-high-ratio {settings.dirty_high_ratio:g} is below dirty-ratio "
            f"{settings.dirty_ratio:g}, where flushing begins. Choose a higher one"
        )
    elif settings.full_ratio < settings.dirty_high_ratio:
        reason = (
            f"full-ratio {settings.full_ratio:g} is below dirty-high-ratio "
            f"{settings.dirty_high_ratio:g}: what is dirty can't be evicted, and writers would "
            "wait. Choose a higher one"
        )
    elif settings.hit_set is HitSet.NONE:
        reason = _without_hit_sets(settings)
    else:
        reason = _with_hit_sets(settings, mode)
    if reason:
        raise InvalidRequest(f"cache {cache}: {reason}.")


def as_ceph(settings: Settings) -> dict[str, str]:
    """The settings under Ceph's names, as it takes them."""
    values = {VARIABLES[name]: _text(value) for name, value in asdict(settings).items()}
    if settings.hit_set is HitSet.NONE:
        # Refused without hit sets.
        del values["hit_set_fpp"]
    return values


def _text(value: object) -> str:
    # Ceph does not read exponents everywhere.
    return f"{value:.6f}".rstrip("0") + "0" if isinstance(value, float) else f"{value}"


def as_words(settings: Settings) -> dict[str, object]:
    """The settings under the names that `parse` takes."""
    return {
        field.name.replace("_", "-"): str(value)
        if isinstance(value := getattr(settings, field.name), HitSet)
        else value
        for field in fields(settings)
    }


def _without_hit_sets(settings: Settings) -> str | None:
    for name in _BLOOM:
        if getattr(settings, name):
            return f"{name.replace('_', '-')} needs hit sets. Set hit-set=bloom also"
    return None


def _with_hit_sets(settings: Settings, mode: Mode) -> str | None:
    if mode is Mode.READONLY:
        return "a read-only cache keeps no hit sets, it promotes what is read. Set hit-set=none"
    if not settings.hit_set_count or not settings.hit_set_period:
        return "hit-set=bloom needs a hit-set-count and a hit-set-period above 0"
    for name in ("read_recency", "write_recency"):
        if (recency := getattr(settings, name)) > settings.hit_set_count:
            return (
                f"{name.replace('_', '-')} {recency} is more than the {settings.hit_set_count} "
                "hit sets that are kept: nothing would ever be promoted. Choose a smaller one"
            )
    return None


def _value(key: str, name: str, text: str) -> object:
    if name == "size":
        return parse_size(key, text)
    if name == "hit_set":
        try:
            return HitSet(text)
        except ValueError as error:
            raise InvalidRequest(f"{key} {shortened(text)!r} is neither none nor bloom.") from error
    if name in _RATIOS:
        return _ratio(key, text)
    limit = {"hit_set_count": 64, "read_recency": 64, "write_recency": 64}.get(name, _LONGEST_S)
    if name == "objects":
        limit = 1 << 48
    if not text.isascii() or not text.isdigit() or int(text) > limit:
        raise InvalidRequest(
            f"{key} {shortened(text)!r} is not a whole number from 0 to {limit}. Choose one."
        )
    return int(text)


def _ratio(key: str, text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0 < ratio <= (0.5 if key == "hit-set-fpp" else 1):
        raise InvalidRequest(
            f"{key} {shortened(text)!r} is not a share above 0 and up to "
            f"{'0.5' if key == 'hit-set-fpp' else '1'}. Choose one, such as 0.4."
        )
    # Ceph keeps millionths.
    return round(ratio, 6)
