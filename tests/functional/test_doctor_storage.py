"""`svctl doctor`: what was broken by hand or half-made is found, left by a dry run, and mended."""

import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from lab.lab import Lab
from lab.waiting import until
from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph, pytest.mark.timeout(900)]

SOCKET = "unix:/run/virtkit/fabric.sock"
DATABASE = "Virtkit_Fabric"


class Doctor:
    """`svctl doctor` as a program reads it, of one tenant's objects: others share the lab."""

    def __init__(self, svctl: Svctl, *concerned: str) -> None:
        self._svctl = svctl
        self._concerned = concerned

    def __call__(self, *options: str) -> dict[str, set[str]]:
        """What became of the findings of each kind."""
        done = self._svctl.run("doctor", "--json", *options, timeout_s=240)
        assert done.returncode in (0, 1), done.stderr
        report = json.loads(done.stdout)
        assert report["clean"] is (done.returncode == 0)
        found: dict[str, set[str]] = {}
        for one in report["findings"]:
            if any(name in one["object"] for name in self._concerned):
                found.setdefault(one["kind"], set()).add(one["outcome"])
        return found


def transact(svctl: Svctl, *operations: dict[str, Any]) -> list[Any]:
    """Change the fabric database behind everybody's back."""
    request = json.dumps([DATABASE, *operations])
    done = svctl.host.run(["ovsdb-client", "transact", SOCKET, request])
    answer: list[Any] = json.loads(done.stdout)
    assert not [one for one in answer if one and "error" in one], answer
    return answer


def killed_when(svctl: Svctl, arguments: list[str], reached: Callable[[], bool]) -> None:
    """Run svctl and kill it when it has come so far; a daemon that hangs keeps it from its end."""
    process = svctl.host.popen(["svctl", *arguments], stderr=subprocess.DEVNULL)
    try:
        until(reached, what=f"svctl {arguments[0]} has not come so far", timeout_s=60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


def image_state(svctl: Svctl, name: str) -> str | None:
    where = [["name", "==", name]]
    (answer,) = transact(svctl, {"op": "select", "table": "Image", "where": where})
    return answer["rows"][0]["state"] if answer["rows"] else None


def test_what_is_broken_is_found_then_mended_and_then_gone(
    ceph_lab: Lab, svctl: Svctl, red: str, blue: str
) -> None:
    ceph = ceph_lab.ctl.run
    orphan = f"gone-{uuid4().hex[:6]}"
    doctor = Doctor(svctl, red, blue, orphan)
    assert doctor("--dry-run") == {}
    svctl("image", "create", "base", "--size", "16MiB", "--tenant", red)
    svctl("image", "create", "lost", "--size", "16MiB", "--tenant", red)
    svctl("snapshot", "create", "base@v1", "--tenant", red, "--protect")
    svctl("image", "clone", "base@v1", "copy", "--tenant", red)
    used = svctl.used(red)

    # One is begun, while no OSD answers, and its maker killed.
    for name in ("h1", "h2", "h3"):
        ceph_lab.host(name).pause("ceph-osd")
    try:
        create = ["image", "create", "half", "--size", "16MiB", "--tenant", red]
        killed_when(svctl, create, lambda: image_state(svctl, "half") == "creating")
    finally:
        for name in ("h1", "h2", "h3"):
            ceph_lab.host(name).resume("ceph-osd")
    ceph(["rbd", "rm", f"vms/{red}/lost"], timeout_s=120)
    ceph(["rbd", "create", "--size", "16", f"vms/{red}/.virtkit-{uuid4()}"])
    ceph(["rbd", "create", "--size", "16", f"vms/{red}/stranger"])
    caps = ["mon", "allow r", "osd", f"allow rwx namespace={orphan} tag rbd virtkit=vms"]
    ceph(["ceph", "auth", "get-or-create", f"client.virtkit.{orphan}", *caps])
    elsewhere = ["mon", "allow r", "osd", "allow rwx tag rbd virtkit=not-ours"]
    ceph(["ceph", "auth", "get-or-create", f"client.virtkit.{orphan}-foreign", *elsewhere])
    ceph(["ceph", "auth", "caps", f"client.virtkit.{red}", "mon", "allow *", "osd", "allow *"])
    ceph(["ceph", "auth", "del", f"client.virtkit.{blue}"])

    mended = {"image-half-made", "image-left-over", "key-orphaned", "caps-differ", "key-missing"}
    left = {"image-lost", "image-unknown", "key-orphaned"}
    until(
        lambda: doctor("--dry-run").get("image-half-made") == {"would be mended"},
        what="the killed svctl's session stays",
        timeout_s=150,
    )
    dry = doctor("--dry-run")
    assert {kind for kind, found in dry.items() if "would be mended" in found} == mended, dry
    assert {kind for kind, found in dry.items() if "for you to do" in found} == left, dry
    assert image_state(svctl, "half") == "creating"
    assert ceph(["ceph", "auth", "get", f"client.virtkit.{orphan}"]).returncode == 0

    wet = doctor()

    assert {kind for kind, found in wet.items() if "mended" in found} == mended, wet
    assert {kind for kind, found in wet.items() if "for you to do" in found} == left, wet
    assert "not mended" not in set().union(*wet.values())
    # What is left is for whoever knows: a lost image, a stranger's, another fabric's key.
    svctl("image", "delete", "lost", "--tenant", red, "--yes")
    ceph(["rbd", "rm", f"vms/{red}/stranger"])
    ceph(["ceph", "auth", "del", f"client.virtkit.{orphan}-foreign"])
    assert doctor("--dry-run") == {}
    now = svctl.used(red)
    assert now["images"] == used["images"] - 1
    assert svctl.images(red) == ["base", "copy"]


def test_a_clone_whose_parent_is_gone_is_found(ceph_lab: Lab, svctl: Svctl, red: str) -> None:
    ceph = ceph_lab.ctl.run
    svctl("image", "create", "mother", "--size", "16MiB", "--tenant", red)
    svctl("snapshot", "create", "mother@v1", "--tenant", red, "--protect")
    svctl("image", "clone", "mother@v1", "child", "--tenant", red)
    info = json.loads(ceph(["rbd", "info", f"vms/{red}/mother", "--format", "json"]).stdout)
    header = f"rbd_header.{info['id']}"
    rados = ["rados", "--pool", "vms", "--namespace", red]
    size = ceph_lab.ctl.path("/run/mothers-size")
    ceph([*rados, "getomapval", header, "size", "/run/mothers-size"])
    ceph([*rados, "rmomapkey", header, "size"])
    try:
        found = Doctor(svctl, f"{red}/child")("--dry-run")
        assert found == {"image-unreadable": {"for you to do"}}
    finally:
        ceph(["sh", "-c", f"{' '.join(rados)} setomapval {header} size < /run/mothers-size"])
        size.unlink()
    assert Doctor(svctl, red)("--dry-run") == {}


def test_what_somebody_may_be_at_is_left_alone(ceph_lab: Lab, svctl: Svctl, red: str) -> None:
    doctor = Doctor(svctl, red)
    # Whoever is connected with virtkit's key, were it only this one.
    other = ceph_lab.ctl.popen(
        ["ceph", "--watch"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        leftover = f"vms/{red}/.virtkit-{uuid4()}"
        ceph_lab.ctl.run(["rbd", "create", "--size", "16", leftover])
        assert doctor() == {"image-left-over": {"for you to do"}}
    finally:
        other.terminate()
        other.wait(10)
    until(
        lambda: doctor().get("image-left-over") != {"for you to do"},
        what="the other's session stays",
        timeout_s=150,
    )
    assert doctor("--dry-run") == {}


def test_without_ceph_or_database_there_are_findings_and_an_end(
    ceph_lab: Lab, svctl: Svctl
) -> None:
    ceph_lab.ctl.pause("ceph-mon")
    try:
        assert Doctor(svctl, "Ceph")("--dry-run") == {"ceph-silent": {"for you to do"}}
    finally:
        ceph_lab.ctl.resume("ceph-mon")
    elsewhere = svctl.run("--db", "unix:/run/nowhere.sock", "doctor", "--json")
    assert elsewhere.returncode == 1
    kinds = {one["kind"] for one in json.loads(elsewhere.stdout)["findings"]}
    assert "database-silent" in kinds
