"""What ADD answers, version by version; what it makes; and what CHECK finds wrong."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any
from uuid import UUID

import pytest

from netvirt.allocate import PoolExhausted
from netvirt.cni import errors, result
from netvirt.cni.call import VERSIONS, Call, DnsKeys, Verb, WantedRoute
from netvirt.cni.errors import CniError, Code
from netvirt.cni.result import Plan
from netvirt.model import (
    Mac,
    Network,
    NetworkId,
    Overlay,
    Port,
    PortId,
    PortKind,
    Subnet,
    SubnetId,
)
from netvirt.observed import LinkState
from tenancy.errors import (
    AlreadyExists,
    BackendUnavailable,
    Conflict,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    Refused,
    VerificationFailed,
    VirtkitError,
)
from tenancy.model import TenantId

TENANT, NETWORK = TenantId(UUID(int=1)), NetworkId(UUID(int=2))
MAC = "0a:58:0a:01:00:07"
HOST_SIDE = {"name": "vk00000000000", "mac": "fe:58:0a:01:00:07"}


def subnet(cidr: str, *, dns: tuple[str, ...] = ()) -> Subnet:
    net = ip_network(cidr)
    return Subnet(
        id=SubnetId(UUID(int=net.version)),
        network=NETWORK,
        cidr=net,
        gateway=net[1],
        pools=(),
        dns=tuple(map(ip_address, dns)),
    )


V4, V6 = subnet("10.1.0.0/24"), subnet("fd00::/64")


def network(*subnets: Subnet, host_access: bool = False) -> Network:
    return Network(
        id=NETWORK,
        tenant=TENANT,
        name="front",
        overlay=Overlay.VXLAN,
        segment_id=5,
        mtu_bytes=1450,
        subnets=subnets,
        host_access=host_access,
    )


def port(*addresses: str) -> Port:
    return Port(
        id=PortId(UUID(int=3)),
        tenant=TENANT,
        network=NETWORK,
        name="web",
        mac=Mac.parse(MAC),
        kind=PortKind.CONTAINER,
        addresses=tuple(map(ip_address, addresses)),
    )


def call(version: str = "1.1.0", **changes: Any) -> Call:
    of_add = Call(
        verb=Verb.ADD,
        version=version,
        conflist="list",
        container="c1",
        interface="eth0",
        netns="/run/netns/c1",
        tenant="red",
        network="front",
    )
    return replace(of_add, **changes)


def route(destination: str, via: str | None = None) -> WantedRoute:
    return WantedRoute(destination=ip_network(destination), via=via and ip_address(via))


FROM_V4, FROM_V6 = route("0.0.0.0/0", "10.1.0.1"), route("::/0", "fd00::1")


# Plan


def plan(of: Call, on: Network, *addresses: str, has_default_route: bool = False) -> Plan:
    return result.plan(of, on, port(*addresses), has_default_route=has_default_route)


def test_an_interface_follows_from_its_network() -> None:
    assert plan(call(), network(V4), "10.1.0.7") == Plan(
        mtu_bytes=1450, addresses=(ip_interface("10.1.0.7/24"),), routes=()
    )


def test_an_interface_of_both_families_has_both_addresses_and_default_routes() -> None:
    wanted = plan(call(), network(V4, V6, host_access=True), "10.1.0.7", "fd00::7")

    assert wanted.addresses == (ip_interface("10.1.0.7/24"), ip_interface("fd00::7/64"))
    assert wanted.routes == (FROM_V4, FROM_V6)


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("host_access", [True, False])
@pytest.mark.parametrize("has_default_route", [True, False])
def test_the_first_network_with_a_way_out_gets_the_default_route(
    said: bool | None, host_access: bool, has_default_route: bool
) -> None:
    """Unless the configuration says which does."""
    wanted = plan(
        call(default_route=said),
        network(V4, host_access=host_access),
        "10.1.0.7",
        has_default_route=has_default_route,
    )

    expected = said if said is not None else host_access and not has_default_route
    assert wanted.routes == ((FROM_V4,) if expected else ())


def test_a_default_route_of_the_configuration_is_the_only_one() -> None:
    own = route("0.0.0.0/0", "10.1.0.99")

    wanted = plan(call(routes=(own,)), network(V4, V6, host_access=True), "10.1.0.7", "fd00::7")

    assert wanted.routes == (own, FROM_V6)


def test_routes_of_the_configuration_come_first_and_as_they_are() -> None:
    own = (route("10.9.0.0/16", "10.1.0.9"), route("10.8.0.0/16"))

    wanted = plan(call(routes=own), network(V4, host_access=True), "10.1.0.7")

    assert wanted.routes == (*own, FROM_V4)


@pytest.mark.parametrize("mtu", [576, 1400, 1450])
def test_a_lower_mtu_may_be_asked_for(mtu: int) -> None:
    assert plan(call(mtu_bytes=mtu), network(V4), "10.1.0.7").mtu_bytes == mtu


def test_a_higher_mtu_than_the_network_carries_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"mtu 1451 .* front .* 1450"):
        plan(call(mtu_bytes=1451), network(V4), "10.1.0.7")


# Result


def rendered(of: Call, on: Network, *addresses: str) -> dict[str, Any]:
    wanted = plan(of, on, *addresses)
    return result.render(of, on, port(*addresses), wanted, *HOST_SIDE.values())


INSIDE = {"name": "eth0", "mac": MAC, "sandbox": "/run/netns/c1"}


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_a_result_before_1_0_0_says_of_what_family_an_address_is(version: str) -> None:
    on = network(subnet("10.1.0.0/24", dns=("10.1.0.53",)), V6, host_access=True)

    assert rendered(call(version), on, "10.1.0.7", "fd00::7") == {
        "cniVersion": version,
        "interfaces": [HOST_SIDE, INSIDE],
        "ips": [
            {"version": "4", "address": "10.1.0.7/24", "gateway": "10.1.0.1", "interface": 1},
            {"version": "6", "address": "fd00::7/64", "gateway": "fd00::1", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}, {"dst": "::/0", "gw": "fd00::1"}],
        "dns": {"nameservers": ["10.1.0.53"]},
    }


def test_a_result_of_1_0_0_does_not() -> None:
    assert rendered(call("1.0.0"), network(V4, host_access=True), "10.1.0.7") == {
        "cniVersion": "1.0.0",
        "interfaces": [HOST_SIDE, INSIDE],
        "ips": [{"address": "10.1.0.7/24", "gateway": "10.1.0.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        "dns": {},
    }


def test_a_result_of_1_1_0_has_the_mtu() -> None:
    assert rendered(call(mtu_bytes=1400), network(V4), "10.1.0.7") == {
        "cniVersion": "1.1.0",
        "interfaces": [HOST_SIDE, {**INSIDE, "mtu": 1400}],
        "ips": [{"address": "10.1.0.7/24", "interface": 1}],
        "routes": [],
        "dns": {},
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_a_route_over_the_interface_itself_has_no_gateway(version: str) -> None:
    routes = (route("10.8.0.0/16"),)

    shown = rendered(call(version, routes=routes), network(V4), "10.1.0.7")

    assert shown["routes"] == [{"dst": "10.8.0.0/16"}]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_goes_on_with_that_of_earlier_plugins(version: str) -> None:
    lo = {"name": "lo", "sandbox": "/run/netns/c1"}
    earlier = {
        "cniVersion": version,
        "interfaces": [lo],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"domain": "shop"},
    }

    shown = rendered(call(version, previous=earlier), network(V4, host_access=True), "10.1.0.7")

    assert [one["name"] for one in shown["interfaces"]] == ["lo", HOST_SIDE["name"], "eth0"]
    assert [(one["address"], one["interface"]) for one in shown["ips"]] == [
        ("127.0.0.1/8", 0),
        ("10.1.0.7/24", 2),
    ]
    assert [one["dst"] for one in shown["routes"]] == ["192.0.2.0/24", "0.0.0.0/0"]
    assert shown["dns"] == {"domain": "shop"}


@pytest.mark.parametrize("earlier", [{}, {"interfaces": None, "ips": [], "dns": None}])
def test_a_result_of_nothing_adds_nothing(earlier: Any) -> None:
    on = network(V4)
    assert rendered(call(previous=earlier), on, "10.1.0.7") == rendered(call(), on, "10.1.0.7")


def test_an_earlier_result_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prevResult"):
        plan(call(previous={"interfaces": [5]}), network(V4), "10.1.0.7")


def test_name_servers_are_the_configurations_if_it_has_any() -> None:
    on = network(subnet("10.1.0.0/24", dns=("10.1.0.53",)))
    own = DnsKeys(nameservers=["10.1.0.9"], domain="shop", search=["a", "b"], options=["ndots:2"])

    assert rendered(call(dns=own), on, "10.1.0.7")["dns"] == {
        "nameservers": ["10.1.0.9"],
        "domain": "shop",
        "search": ["a", "b"],
        "options": ["ndots:2"],
    }
    assert rendered(call(dns=DnsKeys()), on, "10.1.0.7")["dns"] == {}


# Differences

ON = network(V4, host_access=True)
OWN = port("10.1.0.7")
AS_MADE = LinkState(
    mac=MAC,
    mtu_bytes=1450,
    up=True,
    peer=2,
    addresses=frozenset({"10.1.0.7/24", "fe80::1/64"}),
    routes=frozenset({("0.0.0.0/0", "10.1.0.1"), ("10.1.0.0/24", None)}),
)


def told(version: str = "1.1.0", **changes: Any) -> dict[str, Any]:
    return {**rendered(call(version), ON, "10.1.0.7"), **changes}


def differences(previous: Mapping[str, Any], found: LinkState | None = AS_MADE) -> list[str]:
    return result.differences(call(previous=previous), OWN, ON, found)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_add_made_is_as_add_answered(version: str) -> None:
    assert differences(told(version)) == []


def changed(**changes: Any) -> LinkState:
    return replace(AS_MADE, **changes)


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (None, "interface eth0 is not in network namespace /run/netns/c1"),
        (changed(mac="0a:00:00:00:00:01"), "0a:00:00:00:00:01"),
        (changed(up=False), "down"),
        (changed(mtu_bytes=1500), "MTU is 1500"),
        (changed(addresses=frozenset()), "10.1.0.7/24"),
        (changed(addresses=frozenset({"10.1.0.7/16"})), "10.1.0.7/24"),
        (changed(routes=frozenset()), "route to 0.0.0.0/0 over 10.1.0.1"),
        (changed(routes=frozenset({("0.0.0.0/0", "10.1.0.9")})), "route to 0.0.0.0/0"),
        (changed(routes=frozenset({("0.0.0.0/0", None)})), "route to 0.0.0.0/0"),
    ],
)
def test_what_is_different_is_named(found: LinkState | None, names: str) -> None:
    [difference] = differences(told(), found)
    assert names in difference


def test_all_that_is_different_is_named() -> None:
    found = changed(mac="0a:00:00:00:00:01", up=False, addresses=frozenset(), routes=frozenset())
    assert len(differences(told(), found)) == 4


OTHER_ADDRESS = {"address": "10.1.0.8/24", "interface": 1}
LATER_ADDRESS = {"address": "192.0.2.1/32", "interface": 2}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"interfaces": []}, "prevResult does not list interface eth0"),
        ({"interfaces": [{"name": "eth0"}]}, "prevResult does not list interface eth0"),
        ({"interfaces": [HOST_SIDE, {**INSIDE, "sandbox": "/run/netns/c2"}]}, "/run/netns/c2"),
        ({"interfaces": [HOST_SIDE, {**INSIDE, "mac": "0a:00:00:00:00:01"}]}, "0a:00:00:00:00:01"),
        ({"ips": []}, "10.1.0.7 is not in prevResult"),
        ({"ips": [OTHER_ADDRESS, *told()["ips"]]}, "10.1.0.8"),
        ({"routes": [{"dst": "10.9.0.0/16"}]}, "route to 10.9.0.0/16"),
    ],
)
def test_a_result_that_is_of_something_else_is_found(changes: Any, names: str) -> None:
    [difference] = differences(told(**changes))
    assert names in difference


def test_what_later_plugins_added_and_wrote_down_is_no_difference() -> None:
    later = told(
        interfaces=[*told()["interfaces"], {"name": "lo", "sandbox": "/run/netns/c1"}],
        ips=[*told()["ips"], LATER_ADDRESS],
        dns={"nameservers": ["192.0.2.53"]},
        extra={"of": ["theirs"]},
    )
    also_there = changed(
        mtu_bytes=1200,
        addresses=AS_MADE.addresses | {"10.7.0.1/32"},
        routes=AS_MADE.routes | {("10.7.0.0/16", None)},
    )

    assert differences(later, also_there) == []


def test_a_mac_in_capitals_and_lists_that_are_left_out_are_no_difference() -> None:
    inside = {**INSIDE, "mac": MAC.upper()}
    assert differences(told(interfaces=[HOST_SIDE, inside], routes=None)) == []
    assert differences({key: value for key, value in told().items() if key != "routes"}) == []


@pytest.mark.parametrize(
    "previous",
    [
        *({"interfaces": 5}, {"interfaces": [5]}, {"interfaces": [{"mac": MAC}]}),
        *({"interfaces": [{"name": 5}]}, {"ips": {}}, {"ips": [{}]}, {"ips": [{"address": 5}]}),
        *({"ips": [{"address": "10.1.0.7/24", "interface": "1"}]}, {"routes": [{}]}),
        *({"routes": [{"dst": []}]}, {"routes": [{"dst": "0.0.0.0/0", "gw": {}}]}),
    ],
)
def test_a_result_that_is_none_is_refused(previous: Mapping[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="prevResult"):
        differences(told(**previous))


# Codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QuotaExceeded("x"), 100),
        (PoolExhausted("x"), 101),
        (AlreadyExists("x"), 102),
        (VerificationFailed("x"), 103),
        (NotFound("x"), 7),
        (InvalidRequest("x"), 7),
        (Conflict("x"), 11),
        (BackendUnavailable("x"), 11),
        (Refused("x"), 7),
        (VirtkitError("x"), 11),
        (CniError(Code.UNKNOWN_CONTAINER, "x"), 3),
    ],
)
def test_an_error_has_the_number_of_who_must_act(error: VirtkitError, code: int) -> None:
    assert errors.code_of(error) == code
