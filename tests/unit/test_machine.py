"""The QEMU command line of a machine."""

from pathlib import Path

import pytest

from lab.guest import Guest
from lab.machine import Accelerator, Machine, Nic, Workplace, file_disk, qemu_argv
from tenancy.errors import InvalidRequest

GUEST = Guest(
    version="1",
    kernel=Path("/g/vmlinuz"),
    initramfs=Path("/g/initramfs.cpio"),
    raw=Path("/g/root.raw"),
    qcow2=Path("/g/root.qcow2"),
)


def value_after(argv: tuple[str, ...], option: str) -> list[str]:
    return [argv[index + 1] for index, argument in enumerate(argv) if argument == option]


def test_disk_arguments_are_taken_over_as_they_are() -> None:
    disk = (
        "-drive",
        "if=none,id=d,file=rbd:vms/red/web:id=red",
        "-device",
        "virtio-blk-pci,drive=d",
    )
    argv = qemu_argv(
        Machine(name="web", guest=GUEST, disk=disk), Workplace(Path("/run/web")), Accelerator.TCG
    )
    start = argv.index(disk[0])
    assert argv[start : start + 4] == disk


def test_every_nic_is_a_tap_without_offloads() -> None:
    nics = (Nic(tap="tapa", mac="52:54:00:00:00:0a"), Nic(tap="tapb", mac="52:54:00:00:00:0b"))
    machine = Machine(name="web", guest=GUEST, disk=file_disk(Path("/d.raw")), nics=nics)
    argv = qemu_argv(machine, Workplace(Path("/run/web")), Accelerator.TCG)
    assert value_after(argv, "-netdev") == [
        "tap,id=nic0,ifname=tapa,script=no,downscript=no,vnet_hdr=off",
        "tap,id=nic1,ifname=tapb,script=no,downscript=no,vnet_hdr=off",
    ]
    assert [device for device in value_after(argv, "-device") if "net" in device] == [
        "virtio-net-pci,netdev=nic0,mac=52:54:00:00:00:0a,romfile=",
        "virtio-net-pci,netdev=nic1,mac=52:54:00:00:00:0b,romfile=",
    ]


@pytest.mark.parametrize(
    ("accelerator", "cpu"), [(Accelerator.KVM, "host"), (Accelerator.TCG, "qemu64")]
)
def test_cpu_follows_the_accelerator(accelerator: Accelerator, cpu: str) -> None:
    machine = Machine(name="web", guest=GUEST, disk=())
    assert value_after(qemu_argv(machine, Workplace(Path("/r")), accelerator), "-cpu") == [cpu]


def test_directory_too_long_for_a_socket_is_refused() -> None:
    machine = Machine(name="web", guest=GUEST, disk=())
    with pytest.raises(InvalidRequest, match="Choose a shorter directory"):
        qemu_argv(machine, Workplace(Path("/" + "d" * 100)), Accelerator.TCG)
