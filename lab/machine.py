"""What a virtual machine of the lab consists of, and the QEMU command line for it.

Pure: the files named here need not exist. The disk is not described here but taken over as the
QEMU arguments that `svctl image attach --as qemu -o json` prints, so that what is tested is
what a tenant uses. Who starts the command is lab/vm.py.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lab.guest import Guest
from tenancy.errors import InvalidRequest

# The longest path of a unix socket that Linux takes, see unix(7).
SOCKET_PATH_BYTES = 107


class Accelerator(StrEnum):
    """How QEMU runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A network card: the tap it is plugged into, which must exist, and its MAC address."""

    tap: str
    mac: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A virtual machine: `disk` is the QEMU arguments for its root disk, seen as /dev/vda."""

    name: str
    guest: Guest
    disk: tuple[str, ...]
    nics: tuple[Nic, ...] = ()
    memory_mib: int = 128
    # Added to the kernel's command line.
    kernel_arguments: str = ""
    # What TCG keeps of translated code.
    translations_mib: int = 64


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a running machine keeps its console log and its sockets."""

    directory: Path

    @property
    def console(self) -> Path:
        return self.directory / "console.log"

    @property
    def qemu_log(self) -> Path:
        return self.directory / "qemu.log"

    @property
    def shell(self) -> Path:
        return self.directory / "shell.sock"


def file_disk(path: Path, image_format: str = "raw") -> tuple[str, ...]:
    """The QEMU arguments for a disk in a file, in the form that storvirt gives for one in Ceph."""
    return (
        *("-drive", f"if=none,id=root,file={path},format={image_format}"),
        *("-device", "virtio-blk-pci,drive=root"),
    )


def qemu_argv(machine: Machine, workplace: Workplace, accelerator: Accelerator) -> tuple[str, ...]:
    """The command that runs `machine`. QEMU ends when the guest powers off, reboots or panics."""
    if len(str(workplace.shell).encode()) > SOCKET_PATH_BYTES:
        raise InvalidRequest(
            f"vm {machine.name}: {workplace.shell} is too long for a unix socket "
            f"({SOCKET_PATH_BYTES} bytes). Choose a shorter directory"
        )
    return (
        *bare_machine(accelerator, machine.memory_mib, machine.translations_mib),
        *("-name", machine.name),
        *boot_arguments(machine.guest, f"root=/dev/vda {machine.kernel_arguments}".rstrip()),
        *("-serial", f"file:{workplace.console}"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=shell,path={workplace.shell},server=on,wait=off"),
        *("-device", "virtserialport,chardev=shell,name=virtkit.shell"),
        *machine.disk,
        *(argument for index, nic in enumerate(machine.nics) for argument in _nic(index, nic)),
    )


def bare_machine(
    accelerator: Accelerator, memory_mib: int, translations_mib: int = 64
) -> tuple[str, ...]:
    """A q35 with nothing on it: of the machines that boot reliably under TCG, the fastest.

    (microvm is a little faster, but its clock fails to calibrate when the host is busy.)
    """
    run = {
        # A host's CPU is what KVM can give best.
        Accelerator.KVM: ("-accel", "kvm", "-cpu", "host"),
        # The default translation cache grows to a GiB; a plain CPU spares the kernel the
        # features it would only set up.
        Accelerator.TCG: ("-accel", f"tcg,tb-size={translations_mib}", "-cpu", "qemu64"),
    }[accelerator]
    return (
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-monitor", "none"),
        *("-machine", "q35,hpet=off,usb=off,i8042=off,vmport=off,smm=off,sata=off"),
        *run,
        *("-smp", "1", "-m", str(memory_mib)),
    )


def boot_arguments(guest: Guest, command_line: str) -> tuple[str, ...]:
    """Start the guest's kernel directly. A panic ends it at once instead of hanging."""
    kernel_arguments = f"console=ttyS0 quiet loglevel=4 panic=-1 nokaslr {command_line}"
    return (
        *("-kernel", str(guest.kernel), "-initrd", str(guest.initramfs)),
        *("-append", kernel_arguments),
    )


def _nic(index: int, nic: Nic) -> tuple[str, ...]:
    # Without vnet_hdr the guest is offered no offloads. A userspace switch reads the tap as a
    # packet socket, where the checksums that an offloading guest leaves out would be missing.
    return (
        *("-netdev", f"tap,id=nic{index},ifname={nic.tap},script=no,downscript=no,vnet_hdr=off"),
        *("-device", f"virtio-net-pci,netdev=nic{index},mac={nic.mac},romfile="),
    )
