"""A DHCP lease as the guest notes it."""

from ipaddress import IPv4Address, IPv4Interface

from lab.vm import Lease, parse_lease


def test_lease_holds_what_the_guest_was_told() -> None:
    note = (
        "address=10.0.0.5/24\nmtu=1450\nrouter=10.0.0.1\n"
        "dns=10.0.0.2 10.0.0.3\nserver=10.0.0.1\nseconds=3600\n"
    )
    assert parse_lease(note) == Lease(
        address=IPv4Interface("10.0.0.5/24"),
        mtu_bytes=1450,
        router=IPv4Address("10.0.0.1"),
        dns=(IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")),
        server=IPv4Address("10.0.0.1"),
        seconds=3600,
    )


def test_what_the_server_left_out_is_absent() -> None:
    note = "address=10.0.0.5/24\nmtu=\nrouter=\ndns=\nserver=\nseconds=\n"
    assert parse_lease(note) == Lease(
        address=IPv4Interface("10.0.0.5/24"),
        mtu_bytes=None,
        router=None,
        dns=(),
        server=None,
        seconds=None,
    )
