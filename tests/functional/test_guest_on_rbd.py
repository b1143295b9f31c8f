"""The guest with its root in Ceph, opened with a tenant's own key as `svctl` hands it out."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.guest import Guest, build
from lab.host import Host
from lab.lab import Lab
from lab.machine import Machine
from lab.vm import VirtualMachine

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


@pytest.fixture(scope="module")
def guest() -> Guest:
    return build()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"test-guest-{os.getpid()}", hosts=1, ceph=True, agents=False) as lab:
        yield lab


def svctl(ctl: Host, line: str) -> str:
    return str(ctl.run(["svctl", *line.split()]).stdout)


def test_a_clone_in_ceph_is_the_root_of_a_guest(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    svctl(lab.ctl, "tenant create red")
    svctl(lab.ctl, "pool create vms")
    svctl(lab.ctl, "namespace create red --pool vms")
    svctl(lab.ctl, f"image import golden --tenant red --from {guest.qcow2} --snapshot v1")
    svctl(lab.ctl, "image clone golden@v1 web --tenant red")
    attached = json.loads(
        svctl(lab.ctl, f"image attach web --tenant red -o json --write-dir {tmp_path}")
    )
    machine = Machine(name="web", guest=guest, disk=tuple(attached["qemu"]["arguments"]))
    h1 = lab.host("h1")

    with VirtualMachine.start(machine, Path("/run/virtkit/vm/web"), place=h1) as vm:
        vm.wait_for_boot()
        root = next(line for line in vm.check("mount").splitlines() if " on / " in line)
        assert root.startswith("/dev/vda on / type ext4 (rw")
        users = json.loads(svctl(lab.ctl, "image get web --tenant red -o json"))["users"]
        assert [user.split(":")[0] for user in users] == [h1.address]
        vm.check("echo kept >/root/note; sync")

    with VirtualMachine.start(machine, Path("/run/virtkit/vm/web"), place=h1) as vm:
        vm.wait_for_boot()
        assert vm.check("cat /root/note") == "kept\n"
