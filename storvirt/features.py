"""What an image can be made of: features, object size and striping. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from tenancy.errors import InvalidRequest
from tenancy.names import format_size

# The bits of librbd (rbd/features.h) that this project offers, with what each relies on.
BITS = {
    "layering": 1 << 0,
    "striping": 1 << 1,
    "exclusive-lock": 1 << 2,
    "object-map": 1 << 3,
    "fast-diff": 1 << 4,
    "deep-flatten": 1 << 5,
}
RELIES_ON = {"object-map": "exclusive-lock", "fast-diff": "object-map"}
DEFAULT = frozenset({"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"})
# What librbd can switch on an image that exists; deep-flatten only off.
SWITCHED_ON = frozenset({"exclusive-lock", "object-map", "fast-diff"})
SWITCHED_OFF = SWITCHED_ON | {"deep-flatten"}

_SMALLEST_OBJECT, _LARGEST_OBJECT = 4 << 10, 32 << 20
_MOST_STRIPES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an image lies in its objects; None is librbd's choice (4 MiB objects, no striping)."""

    object_size_bytes: int | None = None
    stripe_unit_bytes: int | None = None
    stripe_count: int | None = None
    features: frozenset[str] = field(default=DEFAULT)

    @property
    def order(self) -> int | None:
        """The object size as librbd takes it, its binary logarithm."""
        return self.object_size_bytes.bit_length() - 1 if self.object_size_bytes else None

    @property
    def bits(self) -> int:
        return sum(BITS[name] for name in self.features)


def layout(
    object_size_bytes: int | None,
    stripe_unit_bytes: int | None,
    stripe_count: int | None,
    on: Iterable[str],
    off: Iterable[str],
) -> Layout:
    """The layout that a request means. Raises InvalidRequest."""
    size = object_size_bytes
    if size is not None and not (
        _SMALLEST_OBJECT <= size <= _LARGEST_OBJECT and size & (size - 1) == 0
    ):
        raise InvalidRequest(
            f"object size {format_size(size)} is not a power of two between 4KiB and 32MiB. "
            "Choose one, such as 4MiB."
        )
    if (stripe_unit_bytes is None) != (stripe_count is None):
        raise InvalidRequest("striping needs both --stripe-unit and --stripe-count.")
    if stripe_unit_bytes is not None and stripe_count is not None:
        whole = size or 4 << 20
        if not 512 <= stripe_unit_bytes <= whole or whole % stripe_unit_bytes:
            raise InvalidRequest(
                f"stripe unit {format_size(stripe_unit_bytes)} does not divide the object size "
                f"{format_size(whole)}. Choose one that does, such as {format_size(whole // 8)}."
            )
        if not 1 <= stripe_count <= _MOST_STRIPES:
            raise InvalidRequest(
                f"stripe count {stripe_count} is not between 1 and {_MOST_STRIPES}."
            )
    return Layout(
        object_size_bytes=size,
        stripe_unit_bytes=stripe_unit_bytes,
        stripe_count=stripe_count,
        features=resolve(DEFAULT, on, off),
    )


def resolve(present: Collection[str], on: Iterable[str], off: Iterable[str]) -> frozenset[str]:
    """`present` with these features on and off, if they go together. Raises InvalidRequest.

    Nothing is switched that was not named: what one relies on must be named too.
    """
    on, off = frozenset(on), frozenset(off)
    for name in sorted(on | off):
        if name not in BITS or name == "striping":
            offered = ", ".join(sorted(BITS.keys() - {"striping", "layering"}))
            raise InvalidRequest(f"feature {name!r} is not offered. Choose of: {offered}.")
    both = sorted(on & off)
    if both:
        raise InvalidRequest(f"feature {both[0]} is asked for and forbidden at once. Choose.")
    if "layering" in off:
        raise InvalidRequest("feature layering can't be off: without it there are no clones.")
    wanted = (frozenset(present) | on) - off
    for name in sorted(wanted & RELIES_ON.keys()):
        if RELIES_ON[name] not in wanted:
            raise InvalidRequest(
                f"feature {name} needs {RELIES_ON[name]}. Switch that on too "
                f"(--feature {RELIES_ON[name]}), or {name} off (--no-feature {name})."
            )
    return wanted


def difference(asked: Layout, found: Layout, default: Layout, *, also_features: bool) -> str | None:
    """How an image that lies as `found` differs from one that would be made as `asked`, in words.

    `default` is what librbd chooses where nothing is asked.
    """
    size = asked.object_size_bytes or default.object_size_bytes or 0
    if found.object_size_bytes is not None and found.object_size_bytes != size:
        return f"objects of {format_size(found.object_size_bytes)}, not {format_size(size)}"
    # Not striped is, to librbd, one stripe of a whole object.
    unit = default.stripe_unit_bytes if asked.object_size_bytes is None else size
    wanted = (asked.stripe_unit_bytes or unit, asked.stripe_count or default.stripe_count)
    there = (found.stripe_unit_bytes, found.stripe_count)
    if wanted != there:
        return f"{_striping(*there)}, not {_striping(*wanted)}"
    unlike = (asked.features ^ found.features) - {"striping"}
    if also_features and unlike:
        (name, *_) = sorted(unlike)
        return f"feature {name} {'on' if name in found.features else 'off'}"
    return None


def _striping(unit_bytes: int | None, count: int | None) -> str:
    objects = "one object" if count == 1 else f"{count} objects"
    return f"stripes of {format_size(unit_bytes or 0)} over {objects}"


def switch(
    present: Collection[str], on: Iterable[str], off: Iterable[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """What to switch on and off of an image that has `present`. Raises InvalidRequest."""
    wanted = resolve(present, on, off)
    added, dropped = wanted - frozenset(present), frozenset(present) - wanted
    for name in sorted(added - SWITCHED_ON):
        raise InvalidRequest(
            f"feature {name} can be given to new images only: svctl image create --feature {name}."
        )
    for name in sorted(dropped - SWITCHED_OFF):
        raise InvalidRequest(f"feature {name} can't be taken from an image.")
    return added, dropped


def names(bits: int) -> tuple[str, ...]:
    """The features of these bits, by name; those that this project does not know are left out."""
    return tuple(name for name, bit in BITS.items() if bits & bit)
