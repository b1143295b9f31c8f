"""libvirt in a host of a lab: its daemons, and guests that it runs as an operator has it run them.

Daemons, sockets and files are at their default places with the packages' own settings, and the
only way in is `virsh`. A guest's NIC is what the network documentation tells people to write:
libvirt's stock Open vSwitch port that names the id of a port. The rest of the domain is the
lab's guest (lab/guest.py), with the channel that its shell listens on (lab/guest_shell.py).
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab.accelerator import best_accelerator
from lab.daemon import Daemon
from lab.guest import Guest
from lab.host import Host
from lab.machine import Accelerator
from lab.vm import RunningGuest

_VIRSH = ("virsh", "--connect", "qemu:///system", "--quiet")
_SOCKETS = Path("/run/libvirt")
_IMAGES = Path("/var/lib/libvirt/images")
_CHANNELS = Path("/var/lib/libvirt/qemu/channel")
_LOGS = Path("/var/log/libvirt/qemu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A virtual machine as libvirt is told of it: the lab's guest on a port's place.

    `port_id` and `mac` are those that `nvctl port create` answers.
    """

    name: str
    guest: Guest
    port_id: str
    mac: str
    memory_mib: int = 128


def start(host: Host) -> None:
    """Have libvirt run in a host, and be one of its daemons: `host.kill("libvirtd")`."""
    for daemon in _daemons():
        host.daemons[daemon.name] = daemon
        host.start(daemon.name)


def virsh(host: Host, *arguments: str, check: bool = True) -> str:
    """What virsh prints, for instance for `domstate web`. BackendUnavailable if it fails."""
    return host.run([*_VIRSH, *arguments], check=check).stdout.strip()


class LibvirtGuest(RunningGuest):
    """A guest that libvirt runs. In a `with`, it is destroyed at the end."""

    def __init__(self, domain: Domain, host: Host) -> None:
        """A domain that runs in the host."""
        super().__init__(
            domain.name, shell=host.path(_shell(domain)), console=host.path(_console(domain))
        )
        self.domain = domain
        self.host = host

    @classmethod
    def start(cls, domain: Domain, host: Host) -> Self:
        """The domain, defined and started, on a fresh disk. The boot is not awaited."""
        _lay_out_files(domain, host)
        xml = domain_xml(domain, best_accelerator(domain.guest))
        host.run([*_VIRSH, "define", "/dev/stdin"], input=xml)
        virsh(host, "start", domain.name)
        return cls(domain, host)

    @property
    def running(self) -> bool:
        return virsh(self.host, "domstate", self.name, check=False) == "running"

    @property
    def tap(self) -> str:
        """The name of its NIC's other end, which libvirt chose."""
        return virsh(self.host, "domiflist", self.name).split()[0]

    def stop(self) -> None:
        """Pull the plug and have libvirt forget it."""
        self._shell.close()
        if self.running:
            virsh(self.host, "destroy", self.name)
        virsh(self.host, "undefine", self.name)

    def _log(self) -> str:
        log = self.host.path(_LOGS / f"{self.name}.log")
        return log.read_text(errors="replace") if log.exists() else ""


def domain_xml(domain: Domain, accelerator: Accelerator) -> str:
    """The document for `virsh define`. See https://libvirt.org/formatdomain.html."""
    kind, cpu = {
        Accelerator.KVM: ("kvm", "<cpu mode='host-passthrough'/>"),
        Accelerator.TCG: ("qemu", "<cpu mode='custom'><model>qemu64</model></cpu>"),
    }[accelerator]
    arguments = "console=ttyS0 quiet loglevel=4 panic=-1 nokaslr root=/dev/vda"
    return f"""\
<domain type='{kind}'>
  <name>{domain.name}</name>
  <memory unit='MiB'>{domain.memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{_image(domain, "kernel")}</kernel>
    <initrd>{_image(domain, "initramfs")}</initrd>
    <cmdline>{arguments}</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <on_reboot>destroy</on_reboot>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='{_image(domain, "qcow2")}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <source bridge='br-int'/>
      <virtualport type='openvswitch'>
        <parameters interfaceid='{domain.port_id}'/>
      </virtualport>
      <mac address='{domain.mac}'/>
      <model type='virtio'/>
      <!-- The userspace switch reads the tap as a packet socket, where the checksums that an
           offloading guest leaves out would be missing. -->
      <driver><host csum='off'/></driver>
      <rom enabled='no'/>
    </interface>
    <serial type='file'><source path='{_console(domain)}'/></serial>
    <channel type='unix'>
      <source mode='bind' path='{_shell(domain)}'/>
      <target type='virtio' name='virtkit.shell'/>
    </channel>
    <memballoon model='none'/>
  </devices>
</domain>
"""


def _daemons() -> Sequence[Daemon]:
    """In the order in which they start. libvirtd's guests write their consoles to virtlogd."""
    return (
        Daemon(
            name="virtlogd",
            argv=("virtlogd",),
            log="/var/log/libvirt/virtlogd.log",
            ready=lambda host: host.path(_SOCKETS / "virtlogd-sock").exists(),
            stale=(str(_SOCKETS / "virtlogd-sock"),),
        ),
        Daemon(
            name="libvirtd",
            argv=("libvirtd",),
            log="/var/log/libvirt/libvirtd.log",
            before=_make_log_directory,
            ready=_answers,
            stale=(str(_SOCKETS / "libvirt-sock"),),
        ),
    )


def _make_log_directory(host: Host) -> None:
    # The package makes it; a host's /var/log/libvirt starts empty.
    host.path(_LOGS).mkdir(parents=True, exist_ok=True)


def _answers(host: Host) -> bool:
    if not host.path(_SOCKETS / "libvirt-sock").exists():
        return False
    return host.run([*_VIRSH, "list"], check=False, timeout_s=30).returncode == 0


def _lay_out_files(domain: Domain, host: Host) -> None:
    """Copies of the guest's files, because libvirt gives what a domain uses to QEMU's user."""
    host.path(_IMAGES).mkdir(parents=True, exist_ok=True)
    for source, kind in (
        (domain.guest.kernel, "kernel"),
        (domain.guest.initramfs, "initramfs"),
        (domain.guest.qcow2, "qcow2"),
    ):
        shutil.copyfile(source, host.path(_image(domain, kind)))
    host.path(_console(domain)).unlink(missing_ok=True)


def _image(domain: Domain, kind: str) -> Path:
    return _IMAGES / f"{domain.name}.{kind}"


def _console(domain: Domain) -> Path:
    return _LOGS / f"{domain.name}-console.log"


def _shell(domain: Domain) -> Path:
    return _CHANNELS / f"{domain.name}.shell"
