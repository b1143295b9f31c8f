"""Limits of what an image may do per second, as librbd's settings know them. Pure.

librbd itself holds its user back, by token buckets: a limit binds whoever opens the image through
librbd and minds the image's settings, which a tenant's own program need not.
"""

from collections.abc import Mapping

from tenancy.errors import InvalidRequest

# What a limit is called here, and in librbd: `rbd_qos_<name>_limit`, and `..._burst`.
LIMITS = ("iops", "bps", "read-iops", "read-bps", "write-iops", "write-bps")
_LEAST = {"iops": 10, "bps": 64 << 10}
_MOST = {"iops": 10_000_000, "bps": 1 << 40}
PREFIX = "conf_"


def settings(limits: Mapping[str, int], bursts: Mapping[str, int]) -> dict[str, str | None]:
    """The image's settings for these limits; 0 lifts one (None). Raises InvalidRequest."""
    wanted: dict[str, str | None] = {}
    for name, value in limits.items():
        _refuse_senseless(name, value)
        wanted[key(name)] = str(value) if value else None
        if not value:
            wanted[key(name, "burst")] = None
    for name, value in bursts.items():
        limit = limits.get(name)
        if value and not limit:
            raise InvalidRequest(f"--{name}-burst goes with --{name}-limit. Give both.")
        if value and limit and value < limit:
            raise InvalidRequest(
                f"--{name}-burst {value} is below --{name}-limit {limit}. Choose a higher one."
            )
        wanted[key(name, "burst")] = str(value) if value else None
    return wanted


def key(name: str, part: str = "limit") -> str:
    """The key of librbd's setting in an image's metadata."""
    return f"{PREFIX}rbd_qos_{name.replace('-', '_')}_{part}"


def read(metadata: Mapping[str, str]) -> dict[str, int]:
    """The limits, by name, in an image's metadata."""
    return {name: int(metadata[key(name)]) for name in LIMITS if key(name) in metadata}


def _refuse_senseless(name: str, value: int) -> None:
    kind = name.rpartition("-")[2]
    if value and not _LEAST[kind] <= value <= _MOST[kind]:
        unit = "operations" if kind == "iops" else "bytes"
        raise InvalidRequest(
            f"--{name}-limit {value} is not between {_LEAST[kind]} and {_MOST[kind]} {unit} per "
            "second: below, a guest's disk times out. Choose one between, or 0 for no limit."
        )
