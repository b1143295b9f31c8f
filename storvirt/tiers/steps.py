"""The order in which a cache tier is laid before a pool, changed and taken away again. Pure.

Ceph accepts every step in every order and returns 0; with dirty objects in the cache it then
drops them, acknowledged writes included. So the next step is always decided anew from what is
there now, and the steps that lose bytes are reached only while the cache holds no object. That
also makes an interrupted run continue where it stopped.
"""

from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """What a cache before a pool is for; the names are Ceph's."""

    WRITEBACK = "writeback"
    READONLY = "readonly"
    PROXY = "proxy"


class HitSet(StrEnum):
    """Whether the cache remembers what was used, which decides where a first write goes.

    `none`: every write lands in the cache first, which is what one expects of a write-back
    cache. `bloom`: a write to an object that is not in the cache goes *through* to the base, and
    the object comes into the cache when it is used often: reads profit, bursts of writes do not.
    """

    NONE = "none"
    BLOOM = "bloom"


class Access(StrEnum):
    """What tenants may do in a pool, by the tag that it carries (see `storvirt.caps`)."""

    OPEN = "read and write"
    READ_ONLY = "read"
    CLOSED = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """A cache tier as it is.

    `objects` counts what the cache pool holds, whiteouts and snapshots' copies included. `held`
    says that its placement groups serve nobody: requests wait, and are sent to the base as soon
    as clients are led there.
    """

    base: str
    cache: str
    related: bool
    mode: str
    overlay: bool
    objects: int
    access: Access
    held: bool


class Step(StrEnum):
    """One change; each is safe to repeat."""

    ADD = "make the cache a tier of the base"
    LIMIT = "set the cache's size, thresholds and hit sets"
    WRITEBACK = "set write-back mode"
    READONLY = "set read-only mode"
    PROXY = "let the cache take in nothing new"
    LAY = "lead clients to the cache"
    SEAL = "let tenants only read"
    DRAIN = "flush and evict what the cache holds"
    HOLD = "let requests to the cache wait for a moment"
    UNLAY = "lead clients to the base"
    REMOVE = "part the cache from the base"
    RELEASE = "let the former cache serve again"
    OPEN = "let tenants read and write"


_SET_MODE = {Mode.WRITEBACK: Step.WRITEBACK, Mode.PROXY: Step.PROXY}


def next_setup(tier: Tier, wanted: Mode, *, limited: bool) -> Step | None:
    """What to do next so that clients are led to a cache of mode `wanted`; None when they are.

    `limited` says that the cache's settings are as wanted: a cache without a limit would fill its
    OSDs, and a full pool makes every client wait. Whoever writes is kept out before a mode that
    can't take writes begins, and let in only after it has ended.
    """
    if tier.held:
        return Step.RELEASE
    read_only = wanted is Mode.READONLY
    if read_only and tier.access is not Access.READ_ONLY:
        return Step.SEAL
    if not tier.related:
        return Step.ADD
    if not limited:
        return Step.LIMIT
    if tier.mode != wanted:
        if not read_only:
            return _SET_MODE[wanted]
        if tier.mode == Mode.WRITEBACK or (tier.objects and tier.mode != Mode.PROXY):
            return Step.PROXY
        # What was written before must be in the base before Ceph takes the cache for a copy.
        return Step.DRAIN if tier.objects else Step.READONLY
    if not read_only and tier.access is not Access.OPEN:
        return Step.OPEN
    return None if tier.overlay else Step.LAY


def next_teardown(tier: Tier, *, can_hold: bool = True, stuck: bool = False) -> Step | None:
    """What to do next so that the base stands alone, complete; None when it does.

    Between the last look into the cache and the parting, nobody may come in: requests are held
    for that moment, or, where the cluster can't do that, tenants are kept from writing. `stuck`
    says that draining has freed nothing lately: somebody came in before the door was shut, and
    must be let work.
    """
    if not tier.related:
        if tier.held:
            return Step.RELEASE
        return Step.OPEN if tier.access is not Access.OPEN else None
    if tier.held and tier.overlay and (tier.objects or tier.mode != Mode.PROXY):
        return Step.RELEASE
    if tier.mode not in (Mode.PROXY, "none"):
        return Step.PROXY
    if tier.objects:
        return _after_intrusion(tier, stuck=stuck)
    if not tier.overlay:
        return Step.REMOVE
    if can_hold:
        return Step.UNLAY if tier.held else Step.HOLD
    return Step.SEAL if tier.access is Access.OPEN else Step.UNLAY


def _after_intrusion(tier: Tier, *, stuck: bool) -> Step:
    if tier.held:
        return Step.RELEASE
    return Step.OPEN if stuck and tier.access is not Access.OPEN else Step.DRAIN
