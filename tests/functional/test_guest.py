"""The guest really boots, on a disk in a file and a tap in a namespace with a DHCP server.

Neither a lab nor a switch nor Ceph takes part: what fails here is the guest itself. The guest
on red's network with its root in RBD is tested where those are.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from lab.accelerator import starts_on
from lab.guest import Guest, build
from lab.machine import Accelerator, Machine, Nic, file_disk
from lab.vm import Lease, VirtualMachine
from tenancy.errors import BackendUnavailable

pytestmark = pytest.mark.functional

MAC = "52:54:00:00:00:05"
SERVER = IPv4Address("10.99.0.1")

UDHCPD = """
interface tap0
start 10.99.0.5
end 10.99.0.5
static_lease {mac} 10.99.0.5
lease_file {directory}/leases
pidfile {directory}/udhcpd.pid
option subnet 255.255.255.0
option dns 10.99.0.2 10.99.0.3
option lease 600
option mtu 1370
{routes}
"""


@dataclass(frozen=True)
class Wire:
    """A network namespace with the far end of the guest's NIC, and a DHCP server on it."""

    namespace: str
    directory: Path

    def command(self, argv: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(self, *argv: str) -> str:
        done = subprocess.run(self.command(list(argv)), capture_output=True, text=True, check=True)
        return done.stdout

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(list(argv)), **options)

    def path(self, path: str | Path) -> Path:
        return Path(path)

    def serve_dhcp(self, routes: str) -> subprocess.Popen[bytes]:
        configuration = self.directory / "udhcpd.conf"
        configuration.write_text(UDHCPD.format(mac=MAC, directory=self.directory, routes=routes))
        (self.directory / "leases").touch()
        argv = ["busybox", "udhcpd", "-f", str(configuration)]
        return self.popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def guest() -> Guest:
    return build()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(f"virtkit-guest-{os.getpid()}", tmp_path)
    ip = partial(subprocess.run, check=True)
    ip(["ip", "netns", "add", wire.namespace])
    try:
        wire.run("ip", "tuntap", "add", "tap0", "mode", "tap")
        wire.run("ip", "addr", "add", f"{SERVER}/24", "dev", "tap0")
        wire.run("ip", "link", "set", "tap0", "mtu", "1370", "up")
        yield wire
    finally:
        ip(["ip", "netns", "del", wire.namespace])


@pytest.fixture
def disk(guest: Guest, tmp_path: Path) -> Path:
    return Path(shutil.copy(guest.qcow2, tmp_path / "disk.qcow2"))


def machine(guest: Guest, disk: Path, *nics: Nic) -> Machine:
    return Machine(name="vm1", guest=guest, disk=file_disk(disk, "qcow2"), nics=nics)


def test_probe_tells_a_guest_that_starts_from_one_that_does_not(guest: Guest) -> None:
    assert starts_on(Accelerator.TCG, guest, timeout_s=30)
    assert not starts_on(Accelerator.TCG, guest, timeout_s=0.1)


def test_address_mtu_and_routes_come_from_dhcp(guest: Guest, disk: Path, wire: Wire) -> None:
    dhcp = wire.serve_dhcp("option router 10.99.0.1")
    vm = VirtualMachine.start(
        machine(guest, disk, Nic(tap="tap0", mac=MAC)), wire.directory, place=wire
    )
    try:
        vm.wait_for_boot()
        assert vm.lease() == Lease(
            address=IPv4Interface("10.99.0.5/24"),
            mtu_bytes=1370,
            router=SERVER,
            dns=(IPv4Address("10.99.0.2"), IPv4Address("10.99.0.3")),
            server=SERVER,
            seconds=600,
        )
        assert vm.check("cat /sys/class/net/eth0/mtu /sys/class/net/eth0/address").split() == [
            "1370",
            MAC,
        ]
        assert "default via 10.99.0.1 dev eth0" in vm.check("ip route")
        assert "nameserver 10.99.0.2\nnameserver 10.99.0.3\n" in vm.check("cat /etc/resolv.conf")
        vm.check(f"ping -c 2 -W 5 -s 1342 {SERVER}")
        page = wire.run("busybox", "wget", "-q", "-O", "-", "http://10.99.0.5/")
        assert page == "hello from a virtkit guest\n"
    finally:
        vm.stop()
        dhcp.terminate()
        dhcp.wait()


def test_classless_routes_take_the_place_of_the_router(
    guest: Guest, disk: Path, wire: Wire
) -> None:
    dhcp = wire.serve_dhcp(
        "option router 10.99.0.9\noption staticroutes 10.50.0.0/16 10.99.0.1, 0.0.0.0/0 10.98.0.1"
    )
    vm = VirtualMachine.start(
        machine(guest, disk, Nic(tap="tap0", mac=MAC)), wire.directory, place=wire
    )
    try:
        vm.wait_for_boot()
        vm.lease()
        routes = vm.check("ip route")
        assert "10.50.0.0/16 via 10.99.0.1 dev eth0" in routes
        assert "default via 10.98.0.1 dev eth0" in routes
        assert "10.99.0.9" not in routes
    finally:
        vm.stop()
        dhcp.terminate()
        dhcp.wait()


def test_synced_data_outlives_a_pulled_plug(guest: Guest, disk: Path, tmp_path: Path) -> None:
    with VirtualMachine.start(machine(guest, disk), tmp_path) as vm:
        vm.wait_for_boot()
        root = next(line for line in vm.check("mount").splitlines() if " on / " in line)
        assert root.startswith("/dev/vda on / type ext4 (rw")
        vm.check("echo kept >/root/note; sync")
    with VirtualMachine.start(machine(guest, disk), tmp_path) as vm:
        vm.wait_for_boot()
        assert vm.check("cat /root/note") == "kept\n"


def test_commands_report_output_and_exit_code_and_cannot_hang(
    guest: Guest, disk: Path, tmp_path: Path
) -> None:
    with VirtualMachine.start(machine(guest, disk), tmp_path) as vm:
        vm.wait_for_boot()
        failed = vm.run("echo out; echo err >&2; printf unfinished; exit 3")
        assert (failed.exit_code, failed.output) == (3, "out\nerr\nunfinished")
        assert len(vm.check("dd if=/dev/zero bs=64k count=8 2>/dev/null | tr '\\0' x")) == 8 * 65536
        assert vm.run("echo begun; sleep 60", timeout_s=1).exit_code == 137
        assert "sleep 60" not in vm.check("ps")
        vm.check("sleep 60 &")
        vm.shutdown()
        assert not vm.running
        assert "Power down" in vm.console


def test_a_guest_that_cannot_boot_is_reported_with_its_console(
    guest: Guest, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", empty, "64M"], check=True)
    with (
        VirtualMachine.start(machine(guest, empty), tmp_path) as vm,
        pytest.raises(BackendUnavailable, match="root disk /dev/vda cannot be mounted"),
    ):
        vm.wait_for_boot()


def test_a_qemu_that_cannot_start_is_reported_with_its_words(guest: Guest, tmp_path: Path) -> None:
    with (
        VirtualMachine.start(machine(guest, tmp_path / "missing"), tmp_path) as vm,
        pytest.raises(BackendUnavailable, match="No such file or directory"),
    ):
        vm.wait_for_boot()
