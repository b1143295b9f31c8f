"""The order in which a cache tier is laid before a pool and taken away again. Pure.

Ceph accepts every step in every order and returns 0; with dirty objects in the cache it then
drops them, acknowledged writes included. So the next step is always decided anew from what is
there now, and the steps that lose bytes are reached only while the cache holds no object. That
also makes an interrupted run continue where it stopped.

Where acknowledged bytes live: in the cache pool, on its replicas, until the tiering agent has
flushed them. Losing the cache pool loses them.
"""

from dataclasses import dataclass
from enum import StrEnum


class HitSet(StrEnum):
    """Whether the cache remembers what was read, which decides where a first write goes.

    `none`: every write lands in the cache first, which is what one expects of a write-back
    cache. `bloom`: a write to an object that is not in the cache goes *through* to the base, and
    the object comes into the cache when it is used often: reads profit, bursts of writes do not.
    """

    NONE = "none"
    BLOOM = "bloom"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A cache tier as it is.

    `objects` counts what the cache pool holds, whiteouts included. `closed` means that tenants
    can't reach base and cache: a client that opens an image brings its header into the cache,
    which must not happen between the last look and the parting.
    """

    base: str
    cache: str
    related: bool
    mode: str
    overlay: bool
    objects: int
    closed: bool


class Step(StrEnum):
    """One change; each is safe to repeat."""

    ADD = "make the cache a tier of the base"
    WRITEBACK = "set write-back mode"
    LIMIT = "set the cache's size and hit sets"
    LAY = "lead clients to the cache"
    PROXY = "let the cache take in nothing new"
    DRAIN = "flush and evict what the cache holds"
    CLOSE = "keep tenants out for a moment"
    UNLAY = "lead clients to the base"
    REMOVE = "part the cache from the base"
    OPEN = "let tenants in again"


def next_setup(tier: Tier, *, limited: bool) -> Step | None:
    """What to do next so that clients write to the cache; None when they do.

    `limited` says that the cache's size and hit sets are as wanted: a cache without a limit would
    fill its OSDs, and a full pool makes every client wait.
    """
    if tier.closed:
        return Step.OPEN
    if not tier.related:
        return Step.ADD
    if not limited:
        return Step.LIMIT
    if tier.mode != "writeback":
        return Step.WRITEBACK
    if not tier.overlay:
        return Step.LAY
    return None


def next_teardown(tier: Tier) -> Step | None:
    """What to do next so that the base stands alone, complete; None when it does."""
    if not tier.related:
        return Step.OPEN if tier.closed else None
    if tier.mode not in ("proxy", "none"):
        return Step.PROXY
    if tier.objects:
        # Somebody came in just before it was closed: let them work, and begin again.
        return Step.OPEN if tier.closed else Step.DRAIN
    if not tier.closed:
        return Step.CLOSE
    return Step.UNLAY if tier.overlay else Step.REMOVE
