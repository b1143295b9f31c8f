"""What `nvctl` says to what a user got wrong: one sentence, an exit code, and nothing changed."""

import json
from collections.abc import Iterator

import pytest

from tenancy.backends.fabric import Fabric
from tests.conftest import Command, command_on, serve

TABLES = ("Tenant", "Quota", "Network", "Subnet", "Port", "Address", "Host")


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One database for all of them: what must change nothing can share it."""
    yield from serve(tmp_path_factory)


@pytest.fixture(scope="module")
def command(remote: str) -> Command:
    command = command_on(remote)
    for line in (
        "nvctl tenant create red --quota networks=3 --quota ports=2",
        "nvctl network create front --tenant red --cidr 10.1.0.0/24 --segment-id 4711",
        "nvctl port create web-1 --tenant red --network front --ip 10.1.0.7",
        "nvctl tenant create green",
        "nvctl network create dual --tenant green --cidr 10.1.0.0/24 --cidr fd00:1::/64",
        "nvctl port create one --tenant green --network dual --ip fd00:1::7",
    ):
        done = command(line)
        assert done.returncode == 0, done.stderr
    return command


@pytest.fixture
def fabric(remote: str) -> Iterator[Fabric]:
    with Fabric.connect(remote) as connected:
        yield connected


def everything(fabric: Fabric) -> list:
    found = fabric.select_many([(table, {}) for table in TABLES])
    return [
        sorted((str(row.id), repr(sorted(row.columns.items(), key=str))) for row in rows)
        for rows in found
    ]


NETWORK = "nvctl network create back --tenant red"
PORT = "nvctl port create web-2 --tenant red --network front"
DUAL = "nvctl port create two --tenant green --network dual"


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (f"{NETWORK} --cidr 10.1.0.0/33", 2, "network back: '10.1.0.0/33' is not a CIDR."),
        (f"{NETWORK} --cidr banana", 2, "network back: 'banana' is not a CIDR."),
        (f"{NETWORK} --cidr 10.1.0.5/24", 2, "Did you mean 10.1.0.0/24?"),
        (f"{NETWORK} --cidr 10.1.0.0/30", 2, "prefix length 30. Choose /8 to /29."),
        (f"{NETWORK} --cidr fd00::1/64", 2, "Did you mean fd00::/64?"),
        (f"{NETWORK} --cidr fd00::/47", 2, "prefix length 47. Choose /48 to /124."),
        (f"{NETWORK} --cidr fd00::/127", 2, "prefix length 127. Choose /48 to /124."),
        (f"{NETWORK} --cidr fe80::/64", 2, "fe80::/64 is in fe80::/10, link-local"),
        (f"{NETWORK} --cidr ff05::/64", 2, "ff05::/64 is in ff00::/8, multicast space"),
        (f"{NETWORK} --cidr fec0::/64", 2, "site-local space, which is deprecated"),
        (f"{NETWORK} --cidr ::/64", 2, "loopback and IPv4-mapped addresses"),
        (f"{NETWORK} --cidr ::ffff:10.1.0.0/120", 2, "loopback and IPv4-mapped addresses"),
        (f"{NETWORK} --cidr fd00::/64 --cidr FD01::/64", 2, "fd01::/64 are both IPv6. Give one"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --cidr 10.3.0.0/24", 2, "10.3.0.0/24 are both IPv4"),
        (f"{NETWORK} --cidr fd00::/64 --gateway fd01::1", 2, "gateway fd01::1 is not a host"),
        (f"{NETWORK} --cidr fd00::/64 --gateway fd00::", 2, "Choose one of fd00::1 to fd00::ff"),
        (f"{NETWORK} --cidr fd00::/64 --gateway 10.1.0.1", 2, "no IPv4 subnet (fd00::/64)"),
        (f"{NETWORK} --cidr fd00::/64 --gateway fd00::1 --gateway fd00::2", 2, "are both gateways"),
        (f"{NETWORK} --cidr fd00::/64 --pool 10.1.0.1-10.1.0.9", 2, "has no IPv4 subnet"),
        (f"{NETWORK} --cidr fd00::/64 --pool fd00::9-10.1.0.9", 2, "is empty or not inside"),
        (f"{NETWORK} --cidr fd00::/64 --pool fd00::-fd00::9", 2, "within fd00::1-fd00::ffff:"),
        (f"{NETWORK} --cidr fd00::/64 --dns 10.1.0.53", 2, "DNS server has the address 10.1.0.53"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --dns fd00::53%eth0", 2, "names an interface"),
        (f"{NETWORK} --cidr fd00::/64 --mtu 1279", 2, "allows 1280 to 1450 for IPv6"),
        ("nvctl network set dual --tenant green --mtu 1000", 2, "allows 1280 to 1450 for IPv6"),
        ("nvctl network set front --tenant red --dns fd00::53", 2, "no IPv6 subnet (10.1.0.0/24)"),
        (f"{NETWORK} --cidr 2001:db8::/64 --cidr", 2, "requires an argument"),
        (f"{NETWORK} --cidr 127.0.0.0/24", 2, "loopback"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --gateway 10.3.0.1", 2, "gateway 10.3.0.1 is not a host"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --pool 10.2.0.9-10.2.0.3", 2, "is empty or not inside"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --dns nowhere", 2, "'nowhere' is not an IP address"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --mtu 1480", 2, "MTU 1480 does not fit. The underlay's"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --segment-id 0", 2, "segment id 0 is out of range"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --segment-id 16777216", 2, "Choose 1 to 16777215"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --segment-id 4711", 1, "segment id 4711 is taken"),
        (f"{NETWORK} --cidr 10.2.0.0/24 --overlay geneve", 2, "geneve"),
        ("nvctl network create Back! --tenant red --cidr 10.2.0.0/24", 2, "'Back!' is not usable"),
        ("nvctl network create front --tenant red --cidr 10.2.0.0/24", 1, "exists already"),
        (
            "nvctl network create n --tenant blue --cidr 10.2.0.0/24",
            1,
            "tenant blue does not exist",
        ),
        (f"{PORT} --ip 10.9.0.7", 2, "port web-2: address 10.9.0.7 is outside network front"),
        (f"{PORT} --ip 10.1.0.7", 1, "port web-2: address 10.1.0.7 is taken in network front"),
        (f"{PORT} --ip 10.1.0.1", 2, "is network front's own"),
        (f"{PORT} --ip 10.1.0.255", 2, "is network front's own"),
        (f"{PORT} --ip ten", 2, "'ten' is not an IP address"),
        (f"{PORT} --ip fd00::7", 2, "address fd00::7 is outside network front (10.1.0.0/24)"),
        (f"{PORT} --ip 10.1.0.8 --ip 10.1.0.9", 2, "10.1.0.8 and 10.1.0.9 are both in 10.1.0.0/24"),
        (f"{DUAL} --ip fd00:2::7", 2, "is outside network dual (10.1.0.0/24, fd00:1::/64)"),
        (f"{DUAL} --ip FD00:01::0:7", 1, "port two: address fd00:1::7 is taken in network dual"),
        (f"{DUAL} --ip 10.1.0.9 --ip fd00:1::7", 1, "address fd00:1::7 is taken in network dual"),
        (f"{DUAL} --ip fd00:1::", 2, "own (subnet-router anycast or gateway)"),
        (f"{DUAL} --ip fd00:1::1", 2, "own (subnet-router anycast or gateway)"),
        (f"{DUAL} --ip fd00:1::9%eth0", 2, "Write the address alone: fd00:1::9."),
        (f"{DUAL} --ip fe80::9", 2, "address fe80::9 is outside network dual"),
        (f"{PORT} --mac 01:00:00:00:00:01", 2, "is a group address"),
        (f"{PORT} --mac zz", 2, "MAC address 'zz' is not one"),
        ("nvctl port create web-1 --tenant red --network front", 1, "exists already"),
        ("nvctl port create web/2 --tenant red --network front", 2, "'web/2' is not usable"),
        ("nvctl port create web-2 --tenant red --network none", 1, "network none of tenant red"),
        (
            "nvctl port create web-2 --tenant red",
            2,
            "of which network? Give --tenant and --network",
        ),
        ("nvctl port get web-9 --tenant red --network front", 1, "port web-9 of network front"),
        ("nvctl port plug web-1 --tenant red --network front", 2, "Give either --netns or --tap"),
        ("nvctl tenant create a_b", 2, "tenant name 'a_b' is not usable"),
        ("nvctl tenant create blue --quota ports=many", 2, "quota ports=many is not a number"),
        ("nvctl tenant create blue --quota cows=1", 2, "quota 'cows' is not a resource"),
        ("nvctl tenant create blue --quota ports", 2, "quota 'ports' is not KEY=VALUE"),
        ("nvctl tenant set red --quota ports=0", 1, "below the 1 in use"),
        ("nvctl tenant delete red --yes", 1, "tenant red still has 1 network, 1 port. Delete"),
        ("nvctl tenant delete red", 2, "There is no terminal to ask on: give --yes"),
        ("nvctl tenant delete blue --yes", 1, "tenant blue does not exist"),
        ("nvctl network delete front --tenant red --yes", 1, "still has 1 port. Delete them first"),
        ("nvctl host get h9", 1, "host h9 does not exist"),
        ("nvctl host create h9 --tunnel-ip x", 2, "'x' is not an IP address"),
        ("nvctl host create h9 --tunnel-ip fd00::9", 2, "tunnels run over IPv4 only"),
        ("nvctl agent run --tunnel-ip fd00::9", 2, "tunnels run over IPv4 only"),
        ("nvctl --db tcp:host:port tenant list", 2, "'tcp:host:port' is not an address of one"),
        ("nvctl --db foo agent run --tunnel-ip 10.0.0.1", 2, "'foo' is not an address of one"),
        ("nvctl agent run --tunnel-ip 10.0.0.1 --datapath x", 2, "Choose system or netdev"),
        ("nvctl db start --run-dir /proc/x --listen foo", 2, "'foo' is nothing to listen on"),
        ("nvctl db start --run-dir /proc/x", 1, "can't be written"),
        ("nvctl network create", 2, ""),
        ("nvctl cow", 2, ""),
    ],
)
def test_bad_input(command: Command, fabric: Fabric, line: str, code: int, says: str) -> None:
    before = everything(fabric)

    done = command(line)

    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    if says:
        assert done.stdout == ""
    assert everything(fabric) == before


def test_a_database_that_is_down(command: Command) -> None:
    done = command("nvctl --db unix:/nowhere/fabric.sock tenant list")

    assert done.returncode == 1
    assert "fabric database unix:/nowhere/fabric.sock does not answer" in done.stderr
    assert "nvctl db start" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_a_port_is_given(command: Command) -> None:
    done = command(f"{PORT} -o json")

    port = json.loads(done.stdout)
    assert port["addresses"] == ["10.1.0.2"]
    assert port["mac"].startswith("0a:")
    assert port["mtu"] == 1450
    assert port["host"] is None


def test_what_users_wrote_is_no_markup(command: Command) -> None:
    done = command("nvctl tenant set red --label a=[/b]:cat: -o table")

    assert done.returncode == 0, done.stderr
    assert "a=[/b]:cat:" in done.stdout
    assert command("nvctl tenant set red --label owner=me").returncode == 0


def test_a_quota_is_refused_at_its_limit(command: Command, fabric: Fabric) -> None:
    before = everything(fabric)

    done = command("nvctl port create web-3 --tenant red --network front")

    assert done.returncode == 1
    assert done.stderr.startswith("tenant red: its quota of ports does not admit 1 more.")
    assert everything(fabric) == before


def test_all_of_it_can_be_deleted_again(command: Command, fabric: Fabric) -> None:
    for line in (
        "nvctl port delete web-2 --tenant red --network front --yes",
        "nvctl port delete web-1 --tenant red --network front --yes",
        "nvctl network delete front --tenant red --yes",
        "nvctl port delete one --tenant green --network dual --yes",
        "nvctl network delete dual --tenant green --yes",
        "nvctl tenant delete green --yes",
    ):
        assert command(line).returncode == 0
    shown = json.loads(command("nvctl tenant get red -o json").stdout)
    assert {resource: one["used"] for resource, one in shown["quota"].items()} == dict.fromkeys(
        shown["quota"], 0
    )

    assert command("nvctl tenant delete red --yes").returncode == 0

    assert everything(fabric) == [[] for _ in TABLES]
