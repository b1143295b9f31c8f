"""A pod and a libvirt VM on another host are peers on one tenant network, VXLAN or GRE.

Both are what their users have: a pod that containerd has made for a kubelet, through the CNI, and
a domain that stock libvirt runs, whose NIC names a port.
"""

import hashlib
import os
import re
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab import libvirt
from lab.guest import Guest, build
from lab.host import Host
from lab.lab import Lab
from lab.libvirt import Domain, LibvirtGuest
from lab.waiting import until
from tests.functional.runtimes import conflist, images
from tests.functional.runtimes.containerd import Containerd, Pod
from tests.functional.tenants import Container, Fabric, pinging

pytestmark = pytest.mark.functional

CIDR = "10.1.0.0/24"
OVERLAYS = {"red": "vxlan", "blue": "gre"}
SEEN_WITHIN_S = 10
BOOT_TIMEOUT_S = 120
MEBIBYTES = 2


@dataclass(frozen=True)
class Peer(Container):
    """A pod of containerd's, seen from its host like any container."""

    pod: Pod

    @property
    def netns(self) -> str:
        return self.pod.netns_name


@dataclass(frozen=True)
class Vm:
    """A guest of libvirt's, and the port that its NIC names."""

    guest: LibvirtGuest
    port: dict[str, Any]

    @property
    def ip(self) -> str:
        return str(self.port["addresses"][0])

    def ping(self, ip: str, *, count: int = 5, size: int = 56) -> int:
        """How many of `count` pings from the guest are answered."""
        said = self.guest.run(f"ping -c {count} -s {size} -W 2 {ip}").output
        found = re.search(r"(\d+) packets received", said)
        assert found, said
        return int(found[1])


@pytest.fixture(scope="module")
def guest_files() -> Guest:
    return build()


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    """Two tenants with the same addresses; libvirt on every host."""
    with Lab.up(f"test-libvirt-{os.getpid()}", hosts=3) as lab:
        fabric = Fabric(lab)
        for host in lab.hosts:
            libvirt.start(host)
        for tenant, overlay in OVERLAYS.items():
            fabric(f"nvctl tenant create {tenant}")
            fabric(f"nvctl network create front -t {tenant} --cidr {CIDR} --overlay {overlay}")
        yield fabric


@pytest.fixture(scope="module")
def containerd(fabric: Fabric, tmp_path_factory: pytest.TempPathFactory) -> Containerd:
    """On h1, as on a node that virtkit is installed on; a runtime handler for either tenant."""
    h1 = fabric.lab.host("h1")
    # containerd itself calls the one named loopback.
    conflist.install_reference_plugins(h1)
    install = "nvctl cni install --tenant red --network front --chain none --wait-for-agent 20"
    h1.run(install.split())
    handlers = {
        tenant: conflist.conflist(tenant, conflist.virtkit(tenant=tenant, network="front"))
        for tenant in OVERLAYS
    }
    archive = images.write_archive(tmp_path_factory.mktemp("images") / "images.tar")
    return Containerd.install(h1, archive, handlers)


@pytest.fixture(scope="module")
def pods(fabric: Fabric, containerd: Containerd) -> Iterator[dict[str, Peer]]:
    """A pod of either tenant on h1."""
    pods = {tenant: run_pod(fabric, containerd, tenant, f"{tenant}-pod") for tenant in OVERLAYS}
    yield pods
    for peer in pods.values():
        peer.pod.remove()


@pytest.fixture(scope="module")
def vms(fabric: Fabric, guest_files: Guest) -> Iterator[dict[str, Vm]]:
    """A VM of either tenant on h2, booted."""
    vms = {}
    for tenant in OVERLAYS:
        port = create_port(fabric, tenant, "vm")
        vms[tenant] = start(fabric.lab.host("h2"), f"{tenant}-vm", port, guest_files)
    for vm in vms.values():
        vm.guest.wait_for_boot(BOOT_TIMEOUT_S)
    yield vms
    for vm in vms.values():
        vm.guest.stop()


def run_pod(fabric: Fabric, containerd: Containerd, tenant: str, name: str) -> Peer:
    """A new pod in the tenant's network, and the port that the CNI made for it."""
    pod = containerd.run_pod(name, handler=tenant)
    (port,) = ports_of(fabric, tenant, name)
    return Peer(
        host=containerd.host,
        tenant=tenant,
        network="front",
        name=name,
        ip=pod.ip,
        mac=port["mac"],
        port_id=port["id"],
        link="eth0",
        not_yet_on=[],
        pod=pod,
    )


def ports_of(fabric: Fabric, tenant: str, pod: str) -> list[dict[str, Any]]:
    ports = fabric(f"nvctl port list -t {tenant}")
    return [port for port in ports if port["labels"].get("pod") == pod]


def create_port(fabric: Fabric, tenant: str, name: str) -> dict[str, Any]:
    port: dict[str, Any] = fabric(f"nvctl port create {name} -t {tenant} -n front --kind vm")
    return port


def start(host: Host, name: str, port: dict[str, Any], files: Guest) -> Vm:
    """A domain on the port; its boot is not awaited."""
    domain = Domain(name=name, guest=files, port_id=port["id"], mac=port["mac"])
    return Vm(LibvirtGuest.start(domain, host), port)


def wait_for_host(fabric: Fabric, port: dict[str, Any], host: str | None) -> None:
    """Return when the fabric has the port bound to this host, or to none."""
    until(
        lambda: fabric(f"nvctl port get {port['id']}")["host"] == host,
        what=f"port {port['name']} is not on {host or 'no host'}",
        timeout_s=SEEN_WITHIN_S,
    )


def mentions(fabric: Fabric, host: str, port: dict[str, Any]) -> bool:
    """Whether a flow of the host knows the port's MAC."""
    return any(port["mac"] in flow for flow in fabric.flows(fabric.lab.host(host)))


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_a_vm_gets_its_ports_address_and_its_networks_mtu_by_dhcp(
    fabric: Fabric, vms: dict[str, Vm], tenant: str
) -> None:
    vm = vms[tenant]

    lease = vm.guest.lease()

    mtu = fabric(f"nvctl network get front -t {tenant}")["mtu"]
    assert (str(lease.address), lease.mtu_bytes) == (f"{vm.ip}/24", mtu)
    assert fabric(f"nvctl port get {vm.port['id']}")["host"] == "h2"


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_a_pod_and_a_vm_ping_each_other_the_first_time(
    fabric: Fabric, pods: dict[str, Peer], vms: dict[str, Vm], tenant: str
) -> None:
    pod, vm = pods[tenant], vms[tenant]
    vm.guest.lease()
    largest = fabric(f"nvctl network get front -t {tenant}")["mtu"] - 28

    assert vm.ping(pod.ip) == 5
    assert pod.ping(vm.ip, count=5) == 5
    assert vm.ping(pod.ip, size=largest) == 5
    assert pod.ping(vm.ip, size=largest, fragment=False) == 3


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_a_vm_hears_nothing_of_the_other_tenant(
    pods: dict[str, Peer], vms: dict[str, Vm], tenant: str
) -> None:
    other = next(name for name in OVERLAYS if name != tenant)
    assert vms[tenant].ip == vms[other].ip
    received = "cat /sys/class/net/eth0/statistics/rx_packets"
    for vm in vms.values():
        vm.guest.lease()
    before = {name: int(vm.guest.check(received)) for name, vm in vms.items()}

    assert pods[tenant].ping(vms[tenant].ip, count=20) == 20

    after = {name: int(vm.guest.check(received)) for name, vm in vms.items()}
    assert after[tenant] >= before[tenant] + 20
    # Its own pod announces itself now and then; twenty pings would be twenty frames.
    assert after[other] - before[other] < 5


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_a_pod_reads_from_a_vms_server(
    pods: dict[str, Peer], vms: dict[str, Vm], tenant: str
) -> None:
    pod, vm = pods[tenant], vms[tenant]
    vm.guest.lease()
    vm.guest.check(f"dd if=/dev/urandom of=/srv/www/blob bs=1M count={MEBIBYTES} 2>/dev/null")
    on_disk = vm.guest.check("sha256sum /srv/www/blob").split()[0]

    read = pod.python(
        """
        import hashlib, sys, urllib.request
        with urllib.request.urlopen(f"http://{sys.argv[1]}/blob", timeout=60) as reply:
            print(hashlib.sha256(reply.read()).hexdigest())
        """,
        vm.ip,
    )

    assert read.strip() == on_disk


@pytest.mark.parametrize("tenant", OVERLAYS)
def test_a_vm_writes_to_a_pods_server_and_reads_it_back(
    pods: dict[str, Peer], vms: dict[str, Vm], tenant: str
) -> None:
    pod, vm = pods[tenant], vms[tenant]
    vm.guest.lease()
    serve = """
        import hashlib, os, socket, sys
        listener = socket.create_server((sys.argv[1], 7000))
        listener.settimeout(60)
        print("listening", flush=True)
        stream, _ = listener.accept()
        stream.settimeout(60)
        digest, left = hashlib.sha256(), int(sys.argv[2])
        answer = os.urandom(left)
        while left:
            data = stream.recv(min(left, 65536))
            digest.update(data)
            left -= len(data)
        stream.sendall(answer)
        stream.close()
        print(digest.hexdigest(), hashlib.sha256(answer).hexdigest())
    """
    server = pod.host.popen(
        [sys.executable, "-c", textwrap.dedent(serve), pod.ip, str(MEBIBYTES << 20)],
        netns=pod.netns,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout and server.stdout.readline() == "listening\n"
    vm.guest.check(f"dd if=/dev/urandom of=/tmp/blob bs=1M count={MEBIBYTES} 2>/dev/null")

    # The server closes when it has sent all, and so ends nc.
    vm.guest.check(f"nc {pod.ip} 7000 </tmp/blob >/tmp/back", timeout_s=90)

    sums = vm.guest.check("sha256sum /tmp/blob /tmp/back").split()[::2]
    assert server.communicate(timeout=90)[0].split() == sums
    assert hashlib.sha256(b"").hexdigest() not in sums


def test_a_port_keeps_its_address_while_its_vm_goes_from_host_to_host(
    fabric: Fabric, pods: dict[str, Peer], guest_files: Guest
) -> None:
    pod, port = pods["red"], create_port(fabric, "red", "mover")

    # First away from the pod, then to another host, then to the pod's own.
    for host in ("h2", "h3", "h1"):
        vm = start(fabric.lab.host(host), "mover", port, guest_files)
        with vm.guest:
            vm.guest.wait_for_boot(BOOT_TIMEOUT_S)
            assert str(vm.guest.lease().address.ip) == vm.ip
            assert fabric(f"nvctl port get {port['id']}")["host"] == host
            assert pod.ping(vm.ip) == 3
            assert vm.ping(pod.ip) == 5
        wait_for_host(fabric, port, None)
        assert fabric(f"nvctl port get {port['id']}")["addresses"] == port["addresses"]
        until(
            lambda: not any(mentions(fabric, name, port) for name in ("h1", "h2", "h3")),
            what="flows to a port that is nowhere stay",
            timeout_s=SEEN_WITHIN_S,
        )
        assert pod.ping(vm.ip) == 0

    fabric.do(f"nvctl port delete {port['id']} --yes")


def test_traffic_goes_on_while_libvirtd_is_killed_and_comes_back(
    fabric: Fabric, pods: dict[str, Peer], vms: dict[str, Vm]
) -> None:
    pod, vm, h2 = pods["red"], vms["red"], fabric.lab.host("h2")
    vm.guest.lease()

    with pinging(pod, vm.ip) as lost:
        assert h2.kill("libvirtd")
        assert not vm.guest.running  # Nobody is there to say that it is.
        assert vm.ping(pod.ip) == 5
        assert fabric(f"nvctl port get {vm.port['id']}")["host"] == "h2"
        libvirt.start(h2)
        until(
            lambda: vm.guest.running,
            what="libvirt does not find its guest again",
            timeout_s=SEEN_WITHIN_S,
            explain=lambda: (
                libvirt.virsh(h2, "domstate", "--reason", vm.guest.name, check=False)
                + h2.log_tail("libvirtd")
            ),
        )

    assert lost == []


def test_a_vm_whose_port_nobody_knows_has_no_flows_until_its_port_is_named(
    fabric: Fabric, pods: dict[str, Peer], guest_files: Guest
) -> None:
    pod, h2 = pods["red"], fabric.lab.host("h2")
    port = create_port(fabric, "red", "late")
    before = fabric.flows(h2)
    claims = agent_log(h2).count("claiming port")
    stranger = {**port, "id": str(uuid.uuid4())}

    vm = start(h2, "late", stranger, guest_files)
    with vm.guest:
        vm.guest.wait_for_boot(BOOT_TIMEOUT_S)
        vm.guest.check(f"ip addr add {vm.ip}/24 dev eth0")
        received = pod.received()
        written = len(agent_log(h2).splitlines())
        assert vm.ping(pod.ip) == 0
        assert pod.ping(vm.ip) == 0
        assert pod.received() == received
        assert fabric.flows(h2) == before
        assert agent_log(h2).count("claiming port") == claims
        # Seconds have passed in which the guest sent frames: nothing goes round in circles.
        assert len(agent_log(h2).splitlines()) - written <= 3, agent_log(h2)[-2000:]

        # What ends it for good, had the operator mistyped: the id of the port that is meant.
        vm.guest.check(f"ip addr del {vm.ip}/24 dev eth0")
        iface_id = f"external_ids:iface-id={port['id']}"
        h2.run(["ovs-vsctl", "set", "interface", vm.guest.tap, iface_id])
        assert str(vm.guest.lease().address.ip) == vm.ip
        assert vm.ping(pod.ip) == 5
        assert pod.ping(vm.ip) == 3
    wait_for_host(fabric, port, None)
    fabric.do(f"nvctl port delete {port['id']} --yes")


def test_a_pod_that_comes_later_is_reached_at_once_and_leaves_nothing_behind(
    fabric: Fabric, containerd: Containerd, vms: dict[str, Vm]
) -> None:
    for tenant, vm in vms.items():
        vm.guest.lease()
        peer = run_pod(fabric, containerd, tenant, f"{tenant}-late")
        assert peer.pod.answers_first_ping_to(vm.ip)
        assert vm.ping(peer.ip, count=1) == 1

        peer.pod.remove()

        assert ports_of(fabric, tenant, peer.name) == []
        assert vm.ping(peer.ip, count=1) == 0


def agent_log(host: Host) -> str:
    return host.path("/var/log/virtkit/agent.log").read_text()
