"""The local switch's database: what is ensured is there, written once, and nothing else is."""

import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from uuid import UUID

import ovs.poller
import pytest

from netvirt.backends.attach import add_interface, remove_interface
from netvirt.backends.vswitch import Bridge, VSwitch
from netvirt.observed import Interface
from tenancy.errors import BackendUnavailable
from tests.functional.private_switch import PrivateSwitch, private_switch

pytestmark = pytest.mark.functional

PORT = UUID(int=0x0A0B0C)
MAC = "0a:00:00:00:00:05"
BRIDGE = Bridge(datapath_type="netdev", tunnel_ip=IPv4Address("192.0.2.1"))


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateSwitch]:
    with private_switch() as running:
        yield running


@pytest.fixture
def vswitch(host: PrivateSwitch) -> Iterator[VSwitch]:
    """A replica of a switch without bridges."""
    host.sh("ovs-vsctl --if-exists del-br br-int -- --if-exists del-br br-other")
    replica = VSwitch(host.remote)
    until(replica, lambda: replica.connected)
    yield replica
    replica.close()


def until(vswitch: VSwitch, condition: Callable[[], object], timeout_s: float = 10) -> None:
    """Run the replica until the condition holds, as the agent's loop would."""
    deadline = time.monotonic() + timeout_s
    while True:
        vswitch.run()
        if condition():
            return
        assert time.monotonic() < deadline, f"not within {timeout_s} s ({vswitch.failure})"
        poller = ovs.poller.Poller()
        vswitch.wait(poller)
        poller.timer_wait(200)
        poller.block()


def make_bridge(vswitch: VSwitch, bridge: Bridge = BRIDGE) -> None:
    until(vswitch, lambda: vswitch.ensure_bridge(bridge))
    until(vswitch, lambda: all(i.ofport for i in vswitch.interfaces().values()))


def test_bridge_is_made_with_its_tunnels(host: PrivateSwitch, vswitch: VSwitch) -> None:
    make_bridge(vswitch)

    assert {(i.name, i.type, i.error) for i in vswitch.interfaces().values()} == {
        ("br-int", "internal", None),
        ("vk-vxlan", "vxlan", None),
        ("vk-gre", "gre", None),
    }
    assert host.sh("ovs-vsctl get Bridge br-int fail_mode datapath_type").split() == [
        "secure",
        "netdev",
    ]
    for tunnel in ("vk-vxlan", "vk-gre"):
        assert host.sh(f"ovs-vsctl get Interface {tunnel} options").strip() == (
            '{key=flow, local_ip="192.0.2.1", remote_ip=flow}'
        )


def test_what_is_as_it_should_be_is_not_written(host: PrivateSwitch, vswitch: VSwitch) -> None:
    make_bridge(vswitch)
    select = '{"op": "select", "table": "Bridge", "where": [], "columns": ["name", "_version"]}'
    version = f"ovsdb-client query unix:/run/openvswitch/db.sock '[\"Open_vSwitch\", {select}]'"
    before = host.sh(version)

    for _ in range(5):
        assert vswitch.ensure_bridge(BRIDGE)
        vswitch.run()

    assert host.sh(version) == before


def test_what_somebody_changed_is_mended_and_the_rest_left(
    host: PrivateSwitch, vswitch: VSwitch
) -> None:
    make_bridge(vswitch)
    host.sh(
        "ovs-vsctl del-port vk-gre -- set Interface vk-vxlan options:key=7"
        " -- del-fail-mode br-int -- add-port br-int theirs"
        " -- set Interface theirs type=internal"
    )
    until(vswitch, lambda: "theirs" in vswitch.interfaces())

    make_bridge(vswitch)

    assert set(vswitch.interfaces()) == {"br-int", "vk-vxlan", "vk-gre", "theirs"}
    assert host.sh("ovs-vsctl get-fail-mode br-int").strip() == "secure"
    assert "key=flow" in host.sh("ovs-vsctl get Interface vk-vxlan options")


def test_ports_added_at_the_same_time_by_others_stay(host: PrivateSwitch, vswitch: VSwitch) -> None:
    host.sh("ovs-vsctl add-br br-int -- set Bridge br-int datapath_type=netdev")
    until(vswitch, lambda: "br-int" in vswitch.interfaces())
    assert not vswitch.ensure_bridge(BRIDGE)  # gathered, not yet sent
    host.sh("ovs-vsctl add-port br-int theirs -- set Interface theirs type=internal")

    until(vswitch, lambda: vswitch.ensure_bridge(BRIDGE))

    assert set(host.sh("ovs-vsctl list-ports br-int").split()) == {"vk-vxlan", "vk-gre", "theirs"}


def test_interface_is_observed_with_the_port_it_carries(
    host: PrivateSwitch, vswitch: VSwitch
) -> None:
    make_bridge(vswitch)
    host.sh(
        f"ovs-vsctl add-port br-int tap0 -- set Interface tap0 type=internal"
        f" external_ids:iface-id={PORT} -- add-port br-int odd -- set Interface odd type=internal"
        f" external_ids:iface-id=no-uuid -- add-port br-int gone"
    )
    until(vswitch, lambda: "gone" in vswitch.interfaces() and vswitch.interfaces()["gone"].error)
    seen = vswitch.interfaces()

    assert (seen["tap0"].iface_id, seen["odd"].iface_id) == (PORT, None)
    assert seen["tap0"].mtu == 1500
    assert seen["tap0"].ifindex
    assert seen["gone"] == Interface(
        name="gone",
        ofport=None,
        iface_id=None,
        error="could not open network device gone (No such device)",
    )


def test_interfaces_of_other_bridges_are_not_ours(host: PrivateSwitch, vswitch: VSwitch) -> None:
    make_bridge(vswitch)
    host.sh(
        "ovs-vsctl add-br br-other -- set Bridge br-other datapath_type=netdev"
        " -- add-port br-other elsewhere -- set Interface elsewhere type=internal"
    )
    host.sh("ovs-vsctl add-port br-int here -- set Interface here type=internal")
    until(vswitch, lambda: "here" in vswitch.interfaces())

    assert not {"br-other", "elsewhere"} & set(vswitch.interfaces())
    with pytest.raises(BackendUnavailable, match="elsewhere is on another bridge"):
        add_interface("elsewhere", PORT, MAC, remote=host.remote)


def test_mtu_and_ids_of_an_interface_are_set(vswitch: VSwitch) -> None:
    make_bridge(vswitch)

    until(vswitch, lambda: vswitch.ensure_mtu("br-int", 1400))
    until(vswitch, lambda: vswitch.ensure_external_ids("br-int", {"iface-id": str(PORT)}))
    until(vswitch, lambda: vswitch.interfaces()["br-int"].mtu == 1400)

    assert vswitch.interfaces()["br-int"].iface_id == PORT


def test_interface_that_has_gone_needs_no_setting(vswitch: VSwitch) -> None:
    make_bridge(vswitch)

    assert vswitch.ensure_mtu("gone", 1400)
    assert vswitch.ensure_external_ids("gone", {"a": "b"})
    assert vswitch.remove_port("gone")


def test_refused_write_is_told_and_not_hammered(host: PrivateSwitch, vswitch: VSwitch) -> None:
    make_bridge(vswitch)
    host.sh("ovs-vsctl add-bond br-int taken one two")
    until(vswitch, lambda: "one" in vswitch.interfaces())

    until(vswitch, lambda: vswitch.ensure_port("taken", {}) or vswitch.failure)

    assert "constraint violation" in (vswitch.failure or "")
    assert rounds_within(vswitch, 0.5, lambda: vswitch.ensure_port("taken", {})) < 20
    host.sh("ovs-vsctl del-port taken")
    until(vswitch, lambda: vswitch.ensure_port("taken", {}))
    assert vswitch.failure is None


def test_value_out_of_range_is_told_and_not_hammered(vswitch: VSwitch) -> None:
    make_bridge(vswitch)

    until(vswitch, lambda: vswitch.ensure_mtu("br-int", 0) or vswitch.failure)

    assert vswitch.failure == "a value is out of range"
    assert rounds_within(vswitch, 0.5, lambda: vswitch.ensure_mtu("br-int", 0)) < 20


def rounds_within(vswitch: VSwitch, seconds: float, ensure: Callable[[], bool]) -> int:
    """How often a loop goes round that asks for something impossible."""
    started, rounds = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        assert not ensure()
        poller = ovs.poller.Poller()
        vswitch.wait(poller)
        poller.timer_wait(100)
        poller.block()
        vswitch.run()
        rounds += 1
    return rounds


def test_command_attaches_and_detaches_and_may_repeat_both(
    host: PrivateSwitch, vswitch: VSwitch
) -> None:
    make_bridge(vswitch)
    host.sh("ip link add h1 type veth peer name h1b; ip link set h1 up")

    first = add_interface("h1", PORT, MAC, remote=host.remote)
    second = add_interface("h1", PORT, MAC, remote=host.remote)
    until(vswitch, lambda: "h1" in vswitch.interfaces())

    assert first == second == vswitch.interfaces()["h1"].ofport
    assert vswitch.interfaces()["h1"].iface_id == PORT
    assert host.sh("ovs-vsctl get Interface h1 external_ids:attached-mac").strip() == f'"{MAC}"'
    assert remove_interface("h1", remote=host.remote)
    assert not remove_interface("h1", remote=host.remote)
    assert "h1" not in host.sh("ovs-vsctl list-ports br-int")
    host.sh("ip link del h1")


def test_device_that_does_not_exist_is_not_left_on_the_bridge(
    host: PrivateSwitch, vswitch: VSwitch
) -> None:
    make_bridge(vswitch)
    started = time.monotonic()

    with pytest.raises(BackendUnavailable, match="No such device"):
        add_interface("nodev", PORT, MAC, remote=host.remote)

    assert time.monotonic() - started < 5
    assert "nodev" not in host.sh("ovs-vsctl list-ports br-int")


def test_missing_bridge_and_missing_database_are_told_apart(
    host: PrivateSwitch,
    vswitch: VSwitch,  # noqa: ARG001 - there is no bridge
) -> None:
    with pytest.raises(BackendUnavailable, match="bridge br-int does not exist"):
        add_interface("h1", PORT, MAC, remote=host.remote)
    with pytest.raises(BackendUnavailable, match="does not answer at unix:/nowhere"):
        add_interface("h1", PORT, MAC, remote="unix:/nowhere", timeout_s=0.5)


def test_replica_survives_a_restart_of_the_database(host: PrivateSwitch, vswitch: VSwitch) -> None:
    make_bridge(vswitch)
    host.sh("ovs-vsctl add-port br-int old -- set Interface old type=internal")
    until(vswitch, lambda: "old" in vswitch.interfaces())
    host.sh("kill -9 $(cat /run/openvswitch/ovsdb-server.pid)")
    until(vswitch, lambda: not vswitch.connected)
    assert not vswitch.ensure_bridge(BRIDGE)

    host.sh(
        "rm -f /run/openvswitch/db.sock;"
        "ovsdb-server -vconsole:off /etc/openvswitch/conf.db"
        " --remote=punix:/run/openvswitch/db.sock --pidfile --log-file --detach --no-chdir;"
        "ovs-vsctl del-port old -- add-port br-int new -- set Interface new type=internal"
    )

    until(vswitch, lambda: vswitch.connected and "new" in vswitch.interfaces(), timeout_s=20)
    assert "old" not in vswitch.interfaces()
    until(vswitch, lambda: vswitch.ensure_bridge(BRIDGE))
