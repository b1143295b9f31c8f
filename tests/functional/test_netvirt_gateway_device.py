"""Gateway devices and the rules of the packet filter, on a kernel's real ones."""

import json
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from typing import Any

import pytest

from netvirt import masquerade
from netvirt.backends import gateway_device
from netvirt.backends.gateway_device import GatewayDevice
from netvirt.backends.nftables import PacketFilter
from tenancy.errors import BackendUnavailable
from tests.functional.private_switch import PrivateSwitch, private_switch

pytestmark = pytest.mark.functional

NAME, MAC = "vh0123456789a", "0a:00:00:00:00:07"
DEVICE = GatewayDevice(
    name=NAME,
    mac=MAC,
    addresses=tuple(map(ip_interface, ("10.1.0.7/24", "fd00:1::7/64", "fe80::800:ff:fe00:7/64"))),
    gateways=(ip_address("10.1.0.1"), ip_address("fd00:1::1")),
)
WANTED = {"10.1.0.7/24", "10.1.0.1/32", "fd00:1::7/64", "fd00:1::1/128", "fe80::800:ff:fe00:7/64"}


@pytest.fixture
def switch() -> Iterator[PrivateSwitch]:
    with private_switch() as switch:
        switch.sh(
            "ovs-vsctl add-br br-int -- set bridge br-int datapath_type=netdev "
            f"-- add-port br-int {NAME} -- set interface {NAME} type=internal"
        )
        yield switch


def configure(switch: PrivateSwitch, *, forwards: bool = True) -> bool:
    return switch.call(lambda: gateway_device.configure(DEVICE, forwards=forwards))


def link(switch: PrivateSwitch) -> dict[str, Any]:
    (found,) = json.loads(switch.sh(f"ip -j address show {NAME}"))
    return dict(found)


def addresses(switch: PrivateSwitch) -> set[str]:
    return {f"{one['local']}/{one['prefixlen']}" for one in link(switch)["addr_info"]}


def sysctl(switch: PrivateSwitch, setting: str) -> str:
    return switch.sh(f"sysctl -n net/{setting}").strip()


def test_a_device_is_made_what_it_should_be_and_then_left_alone(switch: PrivateSwitch) -> None:
    assert configure(switch)

    assert not configure(switch)
    assert addresses(switch) == WANTED
    assert link(switch)["address"] == MAC
    assert "UP" in link(switch)["flags"]
    assert sysctl(switch, f"ipv4/conf/{NAME}/forwarding") == "1"


def test_what_is_not_as_it_should_be_is_mended(switch: PrivateSwitch) -> None:
    configure(switch)
    for command in (
        f"ip address add 10.9.9.9/24 dev {NAME}",
        f"ip address del 10.1.0.7/24 dev {NAME}",
        f"ip link set {NAME} down address 0a:00:00:00:00:99",
    ):
        switch.sh(command)

    assert configure(switch)

    assert addresses(switch) == WANTED
    assert link(switch)["address"] == MAC
    assert not configure(switch)


def test_nothing_new_has_the_gateways_address_as_its_source(switch: PrivateSwitch) -> None:
    configure(switch)

    for neighbour, own in (("10.1.0.2", "10.1.0.7"), ("fd00:1::2", "fd00:1::7")):
        (route,) = json.loads(switch.sh(f"ip -j route get {neighbour}"))
        assert (route["dev"], route["prefsrc"]) == (NAME, own)


def test_a_device_that_must_not_forward_has_no_ipv6(switch: PrivateSwitch) -> None:
    configure(switch)

    assert configure(switch, forwards=False)

    assert addresses(switch) == {"10.1.0.7/24", "10.1.0.1/32"}
    assert sysctl(switch, f"ipv4/conf/{NAME}/forwarding") == "0"
    assert configure(switch)
    assert addresses(switch) == WANTED


def test_a_device_that_is_not_there_is_said_to_be(switch: PrivateSwitch) -> None:
    switch.sh(f"ovs-vsctl del-port br-int {NAME}")

    with pytest.raises(BackendUnavailable, match=f"gateway device {NAME}: it is not there"):
        configure(switch)


def test_a_host_that_comes_to_forward_keeps_what_routers_tell_it(switch: PrivateSwitch) -> None:
    switch.sh("ip link add up0 type bridge && ip link add up1 type bridge")
    switch.sh("sysctl -qw net.ipv6.conf.up0.accept_ra=1 net.ipv6.conf.up1.accept_ra=0")

    assert switch.call(lambda: gateway_device.allow_forwarding(ipv6=False))
    assert sysctl(switch, "ipv6/conf/all/forwarding") == "0"
    assert sysctl(switch, "ipv6/conf/up0/accept_ra") == "1"

    assert switch.call(lambda: gateway_device.allow_forwarding(ipv6=True))
    assert sysctl(switch, "ipv4/ip_forward") == sysctl(switch, "ipv6/conf/all/forwarding") == "1"
    assert sysctl(switch, "ipv6/conf/up0/accept_ra") == "2"
    assert sysctl(switch, "ipv6/conf/up1/accept_ra") == "0"
    assert not switch.call(lambda: gateway_device.allow_forwarding(ipv6=True))


def test_the_hosts_other_addresses_are_known(switch: PrivateSwitch) -> None:
    switch.sh("ip link add up0 type bridge && ip address add 192.0.2.7/24 dev up0")
    configure(switch)

    found = switch.call(lambda: gateway_device.addresses_of_others({NAME}))

    assert found[ip_address("192.0.2.7")] == "up0"
    assert found[ip_address("127.0.0.1")] == "lo"
    assert NAME not in found.values()


# The rules


def test_rules_are_replaced_as_a_whole_and_others_stay(switch: PrivateSwitch) -> None:
    switch.sh("nft add table inet other")
    for tool in ("iptables-nft", "iptables-legacy"):
        switch.sh(f"{tool} -t nat -A POSTROUTING -s 10.9.9.9 -j MASQUERADE")
    others = switch.sh("nft list ruleset; iptables-legacy-save -t nat | grep -v '^[#:]'")

    def listing(*names: str) -> str:
        def apply() -> str:
            rules = PacketFilter()
            rules.apply(masquerade.rules(names))
            return rules.listing(masquerade.TABLE)

        return switch.call(apply)

    both = listing("vh1", "vh2")
    assert both.count('"vh2"') == 3
    assert listing("vh2", "vh1") == both
    assert '"vh2"' not in listing("vh1")
    assert listing() == ""
    assert listing() == ""
    assert switch.sh("nft list ruleset; iptables-legacy-save -t nat | grep -v '^[#:]'") == others


def test_what_the_filter_refuses_is_said_and_changes_nothing(switch: PrivateSwitch) -> None:
    def refused() -> str:
        rules = PacketFilter()
        rules.apply(masquerade.rules(["vh1"]))
        before = rules.listing(masquerade.TABLE)
        with pytest.raises(BackendUnavailable, match="nftables refuses the rules") as caught:
            rules.apply(f"{masquerade.REMOVED}add rule inet nowhere forward drop\n")
        assert rules.listing(masquerade.TABLE) == before
        return str(caught.value)

    assert "No such file or directory" in switch.call(refused)


def test_a_host_without_nftables_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nftables", None)

    with pytest.raises(BackendUnavailable, match="Install it: `apt-get install python3-nftables`"):
        PacketFilter().apply(masquerade.REMOVED)
