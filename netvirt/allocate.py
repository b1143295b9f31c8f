"""Choices among what is free: segment ids, MAC addresses, IP addresses. Pure: what is taken comes
in, the choice goes out; the fabric database's unique indexes decide races.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from hashlib import blake2b
from itertools import chain

from netvirt.model import SEGMENT_IDS, AddressRange, IPAddress, IPNetwork, Mac, NetworkId
from tenancy.errors import Refused


class PoolExhausted(Refused):
    """A subnet has no free address left."""


def segment_id(taken: Collection[int], start: int) -> int | None:
    """The first free segment id from `start` on, round the end; None when all are taken."""
    first, last = SEGMENT_IDS[0], SEGMENT_IDS[-1]
    start = start if start in SEGMENT_IDS else first
    candidates = chain(range(start, last + 1), range(first, start))
    return next((candidate for candidate in candidates if candidate not in taken), None)


def mac_of(address: IPAddress) -> Mac:
    """A locally administered unicast address, the same for the same IP address.

    Whoever is given an address that somebody else had before is then found under it at once:
    nobody's neighbour cache is stale. An IPv4 address is in it as it is, of IPv6 32 bits of a
    digest are.
    """
    if address.version == 4:
        return Mac.from_bytes(b"\x0a\x58" + address.packed)
    return Mac.from_bytes(b"\x0a\x59" + blake2b(address.packed, digest_size=4).digest())


def mac(network: NetworkId, port: str, attempt: int) -> Mac:
    """A locally administered unicast address, the same for the same port name.

    40 bits are a digest, so that a port that is deleted and made again keeps its MAC and nobody's
    neighbour cache goes stale.
    """
    digest = blake2b(f"{network}/{port}/{attempt}".encode(), digest_size=5).digest()
    return Mac(int.from_bytes(b"\x0a" + digest, "big"))


def addresses_from(
    cidr: IPNetwork,
    gateway: IPAddress,
    pools: Iterable[AddressRange],
    after: IPAddress | None,
) -> Iterator[IPAddress]:
    """Every address that may be allocated, once, beginning behind `after` and going round.

    Going round means that an address just given back is the last to be given out again. Addresses
    are made as they are asked for: an IPv6 subnet has more than anybody could count.
    """
    ordered = sorted(pools, key=lambda pool: int(pool.first))
    base = cidr.network_address
    start = after if after is not None else base

    def usable(low: int, high: int) -> Iterator[IPAddress]:
        for pool in ordered:
            for number in range(max(int(pool.first), low), min(int(pool.last), high) + 1):
                address = base + (number - int(base))
                if address != gateway:
                    yield address

    yield from usable(int(start) + 1, int(cidr.broadcast_address))
    yield from usable(int(base) + 1, int(start))


def address(
    candidates: Iterator[IPAddress],
    is_taken: Callable[[IPAddress], bool],
    all_taken: Callable[[], Collection[IPAddress]],
    probes: int = 4,
) -> IPAddress | None:
    """The first free candidate, or None.

    In a pool with room the first probe nearly always succeeds, so a few single look-ups come
    first; only then is everything that is taken asked for.
    """
    for _, candidate in zip(range(probes), candidates, strict=False):
        if not is_taken(candidate):
            return candidate
    taken: Collection[IPAddress] | None = None
    for candidate in candidates:
        if taken is None:
            taken = all_taken()
        if candidate not in taken:
            return candidate
    return None
