"""A port's links in real namespaces: made once, mended, undone, and of use behind a real switch."""

import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from uuid import UUID, uuid4

import pytest

from netvirt.backends import links, namespaces
from netvirt.backends.links import Route, link_name
from tenancy.errors import (
    AlreadyExists,
    BackendUnavailable,
    InvalidRequest,
    NotFound,
    Refused,
    VirtkitError,
)
from tests.functional.private_switch import PrivateSwitch, private_switch

pytestmark = pytest.mark.functional

MAC = "0a:00:00:00:00:05"


@pytest.fixture(scope="module")
def host() -> Iterator[PrivateSwitch]:
    with private_switch() as running:
        running.sh(
            "ovs-vsctl add-br br-int -- set Bridge br-int datapath_type=netdev fail_mode=secure;"
            "ovs-ofctl add-flow br-int actions=NORMAL"
        )
        yield running


@pytest.fixture
def pod(host: PrivateSwitch) -> Iterator[str]:
    """A network namespace."""
    name = f"pod-{uuid4().hex[:8]}"
    host.sh(f"ip netns add {name}; ip -n {name} link set lo up")
    yield name
    host.sh(f"ip netns del {name} || true")


@pytest.fixture
def other_pod(host: PrivateSwitch) -> Iterator[str]:
    yield from pod.__wrapped__(host)  # type: ignore[attr-defined]


def plug(
    host: PrivateSwitch,
    port: UUID,
    netns: str,
    *,
    name: str = "eth0",
    mac: str = MAC,
    mtu: int = 1450,
    address: str = "10.1.0.5/24",
    ipv6: str | None = None,
    routes: tuple[Route, ...] = (),
) -> str:
    return host.call(
        lambda: links.plug_veth(
            port,
            netns=netns,
            name=name,
            mac=mac,
            mtu=mtu,
            addresses=(IPv4Interface(address), *([IPv6Interface(ipv6)] if ipv6 else [])),
            routes=routes,
        )
    )


def describe(host: PrivateSwitch, pod: str, port: UUID) -> dict[str, str]:
    """What `ip` and `ethtool` say about both ends of a port's veth."""
    inside = f"ip netns exec {pod}"
    name = link_name(port)
    return {
        "inside": host.sh(
            f"ip -n {pod} -o link show eth0 | grep -o 'mtu [0-9]*\\|state [A-Z]*\\|ether [^ ]*'"
        ),
        "addresses": host.sh(f"ip -n {pod} -o -4 addr show eth0 | grep -o 'inet [^ ]*'"),
        "routes": host.sh(f"ip -n {pod} route show dev eth0"),
        "checksums": host.sh(f"{inside} ethtool -k eth0 | grep ^tx-checksumming"),
        "outside": host.sh(
            f"ip -o link show {name} | grep -o 'mtu [0-9]*\\|state [A-Z]*\\|alias .*'"
        ),
    }


def test_namespace_gets_an_interface_with_all_that_was_asked(host: PrivateSwitch, pod: str) -> None:
    port = uuid4()
    gateway = IPv4Address("10.1.0.1")

    name = plug(host, port, pod, routes=(Route(destination=IPv4Network("0.0.0.0/0"), via=gateway),))

    assert name == f"vk{port.hex[:11]}"
    assert describe(host, pod, port) == {
        "inside": f"mtu 1450\nstate UP\nether {MAC}\n",
        "addresses": "inet 10.1.0.5/24\n",
        "routes": "default via 10.1.0.1 proto static \n"
        "10.1.0.0/24 proto kernel scope link src 10.1.0.5 \n",
        "checksums": "tx-checksumming: off\n",
        "outside": f"mtu 1450\nstate UP\nalias virtkit port {port}\n",
    }


def test_plugging_again_finds_the_same_link(host: PrivateSwitch, pod: str) -> None:
    port = uuid4()
    plug(host, port, pod)
    index = f"ip -o link show {link_name(port)} | cut -d: -f1"
    before = host.sh(index), describe(host, pod, port)

    plug(host, port, pod)

    assert (host.sh(index), describe(host, pod, port)) == before


def test_plugging_again_mends_what_differs(host: PrivateSwitch, pod: str) -> None:
    port = uuid4()
    plug(host, port, pod)
    wanted = describe(host, pod, port)
    host.sh(
        f"ip -n {pod} link set eth0 down mtu 1300 address 0a:00:00:00:00:99;"
        f"ip -n {pod} addr flush dev eth0; ip -n {pod} addr add 10.9.9.9/24 dev eth0;"
        f"ip netns exec {pod} ethtool -K eth0 tx on; ip link set {link_name(port)} down mtu 1300"
    )

    plug(host, port, pod)

    assert describe(host, pod, port) == wanted


def test_link_without_its_settings_is_completed(host: PrivateSwitch, pod: str) -> None:
    """As a run leaves it that was killed right after making the pair."""
    port = uuid4()
    host.sh(f"ip link add {link_name(port)} type veth peer name eth0 netns {pod}")

    plug(host, port, pod)

    assert describe(host, pod, port)["addresses"] == "inet 10.1.0.5/24\n"


def test_port_moves_to_the_namespace_it_is_plugged_into(
    host: PrivateSwitch, pod: str, other_pod: str
) -> None:
    port = uuid4()
    plug(host, port, pod)

    plug(host, port, other_pod)

    assert describe(host, other_pod, port)["inside"].startswith("mtu 1450")
    assert "eth0" not in host.sh(f"ip -n {pod} link")


def test_namespace_may_be_given_by_path_or_process(host: PrivateSwitch, pod: str) -> None:
    plug(host, uuid4(), f"/run/netns/{pod}")

    # Process ids are those of the machine, as /proc there is the machine's.
    assert host.call(lambda: str(namespaces.namespace_path("1"))) == "/proc/1/ns/net"
    assert namespaces.namespace_path(pod).parent.name == "netns"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"netns": "nowhere"}, NotFound, "namespace nowhere", id="no namespace"),
        pytest.param({"netns": "/etc/hosts"}, NotFound, "is no namespace", id="file"),
        pytest.param({"netns": "/proc/self/ns/mnt"}, NotFound, "is no namespace", id="of mounts"),
        pytest.param({"netns": "4194305"}, NotFound, "can't be opened", id="no process"),
        pytest.param({"name": "a/b"}, InvalidRequest, "interface name", id="name"),
        pytest.param({"name": "x" * 16}, InvalidRequest, "interface name", id="long name"),
        pytest.param({"mac": "01:00:00:00:00:05"}, InvalidRequest, "unicast MAC", id="group MAC"),
        pytest.param({"mtu": 67}, InvalidRequest, "MTU 67", id="MTU"),
        pytest.param({"name": "lo"}, AlreadyExists, "already has an interface lo", id="taken"),
        pytest.param(
            {
                "routes": (
                    Route(destination=IPv4Network("10.9.0.0/16"), via=IPv4Address("10.8.0.1")),
                )
            },
            InvalidRequest,
            "a route leads over a gateway",
            id="route to nowhere",
        ),
        pytest.param(
            {
                "ipv6": "fd00::5/64",
                "routes": (Route(destination=IPv6Network("::/0"), via=IPv6Address("fd99::1")),),
            },
            InvalidRequest,
            "a route leads over a gateway",
            id="IPv6 route to nowhere",
        ),
        pytest.param(
            {"ipv6": "fd00::5/64", "mtu": 1279},
            InvalidRequest,
            "less than the 1280 that IPv6 needs",
            id="MTU for IPv6",
        ),
    ],
)
def test_impossible_plug_is_refused_and_leaves_nothing(
    host: PrivateSwitch,
    pod: str,
    arguments: dict[str, object],
    error: type[VirtkitError],
    message: str,
) -> None:
    port = uuid4()

    with pytest.raises(error, match=message):
        plug(host, port, **{"netns": pod, **arguments})  # type: ignore[arg-type]

    assert link_name(port) not in host.sh("ip link")
    assert "eth0" not in host.sh(f"ip -n {pod} link")


def test_link_of_somebody_else_is_left_alone(host: PrivateSwitch, pod: str) -> None:
    port = uuid4()
    name = link_name(port)
    host.sh(f"ip link add {name} type bridge; ip link set {name} alias theirs")

    with pytest.raises(Refused, match="belongs to 'theirs'"):
        plug(host, port, pod)
    with pytest.raises(Refused, match="belongs to 'theirs'"):
        host.call(lambda: links.unplug(port))

    host.sh(f"ip link del {name}")


def test_unplugging_takes_both_ends_and_may_repeat(host: PrivateSwitch, pod: str) -> None:
    port = uuid4()
    plug(host, port, pod)

    assert host.call(lambda: links.unplug(port))
    assert not host.call(lambda: links.unplug(port))

    assert "eth0" not in host.sh(f"ip -n {pod} link")


def test_tap_is_there_before_the_vm_and_after(host: PrivateSwitch) -> None:
    port = uuid4()

    for mtu in (1400, 1450):
        name = host.call(lambda mtu=mtu: links.plug_tap(port, mac=MAC, mtu=mtu, owner=54321))  # type: ignore[misc]

    details = host.sh(f"ip -d -o link show {name}")
    assert "tun type tap pi off vnet_hdr off persist on user 54321" in details
    assert "mtu 1450" in details
    assert "fe:00:00:00:00:05" in details
    assert host.call(lambda: links.unplug(port))


def test_underlay_is_the_link_with_the_endpoints_address(host: PrivateSwitch) -> None:
    host.sh("ip link add under0 mtu 1600 type bridge; ip addr add 192.0.2.1/24 dev under0")

    assert host.call(lambda: links.underlay_mtu(IPv4Address("192.0.2.1"))) == ("under0", 1600)
    with pytest.raises(InvalidRequest, match="no interface of this host has this address"):
        host.call(lambda: links.underlay_mtu(IPv4Address("192.0.2.2")))

    host.sh("ip link del under0")


# IPv6


def ipv6_of(host: PrivateSwitch, pod: str) -> str:
    """Addresses and what marks them, without what passes with time."""
    found = host.sh(f"ip -n {pod} -o -6 addr show eth0 | grep -o 'inet6 .*' | sed 's/ *[\\\\].*//'")
    return "".join(f"{line.strip()}\n" for line in sorted(found.splitlines()))


BOTH = "inet6 fd00::5/64 scope global nodad\ninet6 fe80::800:ff:fe00:5/64 scope link\n"


@pytest.mark.parametrize(
    "before",
    [
        pytest.param("", id="as the kernel has it"),
        pytest.param("net.ipv6.conf.default.disable_ipv6=1", id="switched off"),
        pytest.param("net.ipv6.conf.all.disable_ipv6=1", id="switched off for all"),
        pytest.param("net.ipv6.conf.default.addr_gen_mode=3", id="with private addresses"),
    ],
)
def test_ipv6_is_there_at_once_whatever_was_the_default(
    host: PrivateSwitch, pod: str, before: str
) -> None:
    if before:
        host.sh(f"ip netns exec {pod} sysctl -q {before}")
    routes = (
        Route(destination=IPv6Network("::/0"), via=IPv6Address("fd00::1")),
        Route(destination=IPv6Network("fd77::/64")),
        Route(destination=IPv4Network("10.7.0.0/16")),
    )

    plug(host, uuid4(), pod, ipv6="fd00::5/64", routes=routes)

    # Not a moment later: none of them may be in doubt.
    assert ipv6_of(host, pod) == BOTH
    assert host.sh(f"ip -n {pod} -6 route show dev eth0 proto static | sort") == (
        "default via fd00::1 metric 1024 pref medium\nfd77::/64 metric 1024 pref medium\n"
    )
    assert host.sh(f"ip -n {pod} -4 route show dev eth0 proto static") == (
        "10.7.0.0/16 scope link \n"
    )
    names = ("disable_ipv6", "accept_ra", "accept_dad", "addr_gen_mode")
    listed = " ".join(f"net.ipv6.conf.eth0.{name}" for name in names)
    assert host.sh(f"ip netns exec {pod} sysctl -n {listed}").split() == ["0"] * 4


def test_plugging_again_mends_ipv6(host: PrivateSwitch, pod: str) -> None:
    port = uuid4()
    plug(host, port, pod, ipv6="fd00::5/64")
    host.sh(
        f"ip -n {pod} -6 addr del fd00::5/64 dev eth0;"
        f"ip -n {pod} -6 addr add fd99::9/64 dev eth0;"
        f"ip netns exec {pod} sysctl -q net.ipv6.conf.eth0.accept_ra=2"
    )

    plug(host, port, pod, ipv6="fd00::5/64")

    assert ipv6_of(host, pod) == BOTH
    accept_ra = host.sh(f"ip netns exec {pod} sysctl -n net.ipv6.conf.eth0.accept_ra")
    assert accept_ra.strip() == "0"


def test_what_has_ipv6_already_is_left_as_it_is(host: PrivateSwitch, pod: str) -> None:
    port = uuid4()
    plug(host, port, pod, ipv6="fd00::5/64")
    routes = f"ip -n {pod} -6 route show dev eth0"
    before = host.sh(routes), ipv6_of(host, pod)

    plug(host, port, pod, ipv6="fd00::5/64")

    assert (host.sh(routes), ipv6_of(host, pod)) == before


def test_the_host_end_speaks_no_ipv6(host: PrivateSwitch, pod: str) -> None:
    link = plug(host, uuid4(), pod, ipv6="fd00::5/64")

    assert host.sh(f"ip -6 addr show dev {link}") == ""


def test_a_kernel_without_ipv6_is_named_and_nothing_is_left(host: PrivateSwitch, pod: str) -> None:
    port = uuid4()
    inside = f"nsenter --net=/run/netns/{pod}"
    host.sh(f"{inside} mount -t tmpfs none /proc/sys/net/ipv6")
    try:
        plug(host, uuid4(), pod, name="eth1")
        with pytest.raises(BackendUnavailable, match="eth0: it is to have an IPv6 address, and"):
            plug(host, port, pod, ipv6="fd00::5/64")
    finally:
        host.sh(f"{inside} umount /proc/sys/net/ipv6")

    assert link_name(port) not in host.sh("ip link")
    assert "eth0" not in host.sh(f"ip -n {pod} link")


# Behind a switch that forwards in userspace


@pytest.fixture
def two_pods(host: PrivateSwitch, pod: str, other_pod: str) -> Iterator[tuple[str, str]]:
    """Two namespaces on one bridge: 10.1.0.5 and 10.1.0.6."""
    ports = uuid4(), uuid4()
    for port, netns, last in zip(ports, (pod, other_pod), (5, 6), strict=True):
        link = plug(host, port, netns, mac=f"0a:00:00:00:00:0{last}", address=f"10.1.0.{last}/24")
        host.sh(f"ovs-vsctl add-port br-int {link}")
    yield pod, other_pod
    for port in ports:
        host.sh(f"ovs-vsctl del-port {link_name(port)}")
        host.call(lambda port=port: links.unplug(port))  # type: ignore[misc]


def test_tcp_passes_a_switch_in_userspace(host: PrivateSwitch, two_pods: tuple[str, str]) -> None:
    sent = 1_000_000
    here, there = two_pods

    def transfer() -> int:
        listener = _in_namespace(there, lambda: socket.create_server(("10.1.0.6", 5001)))
        received = bytearray()

        def drain() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                while data := connection.recv(65536):
                    received.extend(data)

        reader = threading.Thread(target=drain)
        reader.start()
        client = _in_namespace(here, lambda: socket.create_connection(("10.1.0.6", 5001), 20))
        with client:
            client.sendall(bytes(sent))
        reader.join(timeout=20)
        listener.close()
        return len(received)

    assert host.call(transfer) == sent


def test_host_itself_takes_nothing_from_a_tenant(
    host: PrivateSwitch, two_pods: tuple[str, str]
) -> None:
    """The kernel sees what arrives on the link as well, and has an address that is asked for."""
    pod, _ = two_pods
    host.sh("ip addr add 10.1.0.77/32 dev lo")

    def receives(timeout_s: float) -> bool:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener,
            _in_namespace(pod, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender,
        ):
            listener.bind(("10.1.0.77", 5002))
            listener.settimeout(timeout_s)
            sender.sendto(b"hello", ("10.1.0.77", 5002))
            try:
                return listener.recv(100) == b"hello"
            except TimeoutError:
                return False

    assert not host.call(lambda: receives(1))
    assert "lladdr" not in host.sh(f"ip -n {pod} neigh show 10.1.0.77")
    # A tenant that gets no answer to ARP still can send IP to everybody's MAC address.
    host.sh(f"ip -n {pod} neigh replace 10.1.0.77 lladdr ff:ff:ff:ff:ff:ff dev eth0")
    assert not host.call(lambda: receives(1))
    assert host.sh(f"ip netns exec {pod} ping -c1 -W2 10.1.0.6 >/dev/null && echo yes") == "yes\n"

    host.sh("ip addr del 10.1.0.77/32 dev lo")


def _in_namespace(name: str, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket made inside a namespace, to which it then belongs."""
    with namespaces.opened(name) as descriptor, namespaces.entered(descriptor):
        return make()
