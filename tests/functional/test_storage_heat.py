"""The heat map of a real boot, compared with what OSDs saw of another one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.guest import Guest, build
from lab.lab import Lab
from lab.machine import Machine
from lab.vm import VirtualMachine
from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

_READ = re.compile(r"rbd_data\.(\w+)\.([0-9a-f]{16}):\S+ \[(?:sparse-|sync_)?read ")


@pytest.fixture(scope="module")
def guest() -> Guest:
    return build()


@pytest.fixture(scope="module")
def golden(svctl: Svctl, red: str, guest: Guest) -> str:
    """A golden image with the snapshot v1, and its heat map, recorded once."""
    tenant = ("--tenant", red)
    svctl("image", "import", "golden", *tenant, "--from", str(guest.qcow2), "--snapshot", "v1")
    svctl(
        *("heat", "record", "golden@v1", *tenant),
        *("--kernel", str(guest.kernel), "--initrd", str(guest.initramfs)),
        *("--append", "quiet root=/dev/vda", "--memory", "128MiB", "--quiet", "5"),
        timeout_s=240,
    )
    return "golden"


@pytest.fixture
def remembering_osds(svctl: Svctl) -> Iterator[None]:
    """OSDs that keep what they were asked for."""
    settings = {"osd_op_history_size": "20000", "osd_op_history_duration": "600"}
    for key, value in settings.items():
        svctl.host.run(["ceph", "config", "set", "osd", key, value])
    yield
    for key in settings:
        svctl.host.run(["ceph", "config", "rm", "osd", key])


def image_id(svctl: Svctl, path: str) -> str:
    found = json.loads(svctl.host.run(["rbd", "info", path, "--format=json"]).stdout)
    return str(found["id"])


@pytest.mark.usefixtures("remembering_osds")
def test_the_map_holds_the_objects_that_a_real_boot_of_a_clone_reads(
    svctl: Svctl,
    ceph_lab: Lab,
    red: str,
    guest: Guest,
    golden: str,
    tmp_path: Path,
) -> None:
    tenant = ("--tenant", red)
    svctl("image", "clone", f"{golden}@v1", "web", *tenant)
    recorded = {int(n) for n in svctl("heat", "show", "web", *tenant)["parts"]}
    attached = svctl("image", "attach", "web", *tenant, "--write-dir", str(tmp_path))
    machine = Machine(name="web", guest=guest, disk=tuple(attached["qemu"]["arguments"]))

    with VirtualMachine.start(
        machine, Path(f"/run/virtkit/vm/{red}"), place=ceph_lab.host("h1")
    ) as vm:
        vm.wait_for_boot(120)

    number = image_id(svctl, f"vms/{red}/{golden}")
    operations = [op for ops in svctl.probe("op_counts", "history").values() for op in ops]
    witnessed = {
        int(found[2], 16)
        for text in operations
        if (found := _READ.search(text)) and found[1] == number
    }
    own = svctl.host.run(["rados", "-p", "vms", "-N", red, "ls"]).stdout
    clone = image_id(svctl, f"vms/{red}/web")
    written = {int(n, 16) for n in re.findall(rf"rbd_data\.{clone}\.([0-9a-f]{{16}})", own)}
    assert recorded and recorded <= witnessed
    # What the guest writes to is copied from the parent, read by the guest or not.
    assert witnessed - recorded <= written


def test_a_clone_is_placed_by_the_heat_of_its_golden_image_until_it_has_its_own(
    svctl: Svctl, red: str, golden: str, tmp_path: Path
) -> None:
    tenant = ("--tenant", red)
    svctl("image", "clone", f"{golden}@v1", "hot", *tenant)
    shown = svctl("heat", "show", "hot", *tenant)
    assert shown["recorded_on"] == f"vms/{red}/{golden}@v1"
    by_heat = svctl("place", "hot", *tenant, "--objective", "heat")
    assert by_heat["first_share"] == pytest.approx(shown["first_share"], abs=0.001)

    # The same by hand: each part's reads go to the object of that number, the golden image's.
    number, reads = image_id(svctl, f"vms/{red}/{golden}"), shown["reads"]
    expected = dict.fromkeys(("h1", "h2", "h3"), 0.0)
    for part, count in shown["parts"].items():
        name = f"rbd_data.{number}.{int(part):016x}"
        answer = svctl.host.run(["ceph", "osd", "map", "vms", name, red, "--format=json"]).stdout
        expected[f"h{json.loads(answer)['acting_primary'] + 1}"] += count / reads
    found = {one["host"]: one["local"] for one in by_heat["ranking"]}
    assert found == pytest.approx(expected, abs=0.001)

    trace = tmp_path / "trace"
    trace.write_text("0 4096\n4194304 4096 # the second object\n4194304 512\n")
    svctl("heat", "record", "hot", *tenant, "--from", str(trace))
    assert svctl("heat", "show", "hot", *tenant)["parts"] == {"0": 1, "1": 2}
    assert svctl.run("heat", "forget", "hot", *tenant).returncode == 0
    assert svctl("heat", "show", "hot", *tenant)["recorded_on"] == shown["recorded_on"]


def test_a_boot_leaves_nothing_and_changes_nothing(
    svctl: Svctl, red: str, guest: Guest, golden: str
) -> None:
    path = f"vms/{red}/{golden}"
    before = svctl.images(red), svctl.host.run(["rbd", "du", path]).stdout

    done = svctl.run(
        *("heat", "record", f"{golden}@v1", "--tenant", red, "--timeout", "2"),
        *("--kernel", str(guest.kernel), "--initrd", str(guest.initramfs), "-o", "json"),
    )

    # Cut off early, it keeps what it has seen, or says that it has seen nothing.
    assert done.returncode == 0 or "reads nothing within 2 s" in done.stderr, done.stderr
    assert (svctl.images(red), svctl.host.run(["rbd", "du", path]).stdout) == before
    assert (
        json.loads(svctl.host.run(["rbd", "status", path, "--format=json"]).stdout)["watchers"]
        == []
    )
    left = svctl.host.run(["ps", "-eo", "args"]).stdout
    assert "bdrv_co_preadv_part" not in left


def test_a_damaged_map_is_said_to_be_damaged(svctl: Svctl, red: str) -> None:
    svctl("image", "create", "spoilt", "--tenant", red, "--size", "16MiB")
    note = ["virtkit.heat", "1:nonsense"]
    svctl.host.run(["rbd", "image-meta", "set", f"vms/{red}/spoilt", *note])

    refusal = svctl.refused("place", "spoilt", "--tenant", red, "--objective", "heat")

    assert f"the heat map of vms/{red}/spoilt can't be read" in refusal.sentence
