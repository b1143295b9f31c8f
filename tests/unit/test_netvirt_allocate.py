"""Addresses are given out one after the other, from pools of any size."""

from ipaddress import IPv4Network, IPv6Network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netvirt import allocate
from netvirt.admit import usable_range
from netvirt.model import AddressRange, IPNetwork

subnets = st.one_of(
    st.builds(
        lambda number, length: IPv4Network((number, length), strict=False),
        st.integers(0x0A000000, 0x0AFFFFFF),
        st.integers(8, 29),
    ),
    st.builds(
        lambda number, length: IPv6Network((number, length), strict=False),
        st.integers(0xFD00 << 112, (0xFE00 << 112) - 1),
        st.integers(48, 124),
    ),
)


@given(subnets, st.data())
def test_the_next_address_is_near_however_large_the_subnet(
    cidr: IPNetwork, data: st.DataObject
) -> None:
    usable = usable_range(cidr)
    offsets = st.integers(0, int(usable.last) - int(usable.first))
    after = usable.first + data.draw(offsets)
    gateway = usable.first + data.draw(offsets)
    following = allocate.addresses_from(cidr, gateway, [usable], after)

    found = list(islice(following, 300))

    size = int(usable.last) - int(usable.first) + 1
    assert len(found) == len(set(found)) == min(300, size - 1)
    assert gateway not in found
    assert all(int(usable.first) <= int(address) <= int(usable.last) for address in found)
    behind = [address for address in found if address > after]
    assert behind == sorted(behind)
    assert found[: len(behind)] == behind


@pytest.mark.parametrize(
    ("cidr", "first", "last"),
    [
        ("10.1.0.0/24", "10.1.0.1", "10.1.0.254"),
        ("fd00::/64", "fd00::1", "fd00::ffff:ffff:ffff:ffff"),
        ("fd00::10/124", "fd00::11", "fd00::1f"),
    ],
)
def test_what_hosts_may_have(cidr: str, first: str, last: str) -> None:
    network: IPNetwork = IPv6Network(cidr) if ":" in cidr else IPv4Network(cidr)

    assert str(usable_range(network)) == f"{first}-{last}"


def test_pools_are_gone_through_in_order_and_round() -> None:
    cidr = IPv6Network("fd00::/64")
    pools = [
        AddressRange(first=cidr[0x100], last=cidr[0x101]),
        AddressRange(first=cidr[5], last=cidr[6]),
    ]

    found = list(allocate.addresses_from(cidr, cidr[1], pools, cidr[0x100]))

    assert found == [cidr[0x101], cidr[5], cidr[6], cidr[0x100]]
