"""What a tenant's key reaches: everything of its own, nothing of anybody else's."""

import json

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


def test_a_tenants_key_reaches_its_own_namespace_and_nothing_else(
    svctl: Svctl, red: str, blue: str
) -> None:
    svctl("image", "create", "secret", "--tenant", red, "--size", "64MiB")
    svctl("snapshot", "create", "secret@base", "--tenant", red, "--protect")
    svctl("image", "create", "own", "--tenant", blue, "--size", "64MiB")
    key = svctl("image", "attach", "own", "--tenant", blue)

    listed = svctl.host.run(["rbd", "snap", "ls", f"vms/{red}/secret", "--format=json"]).stdout
    snapshot_id = json.loads(listed)[0]["id"]

    found = svctl.probe(
        "escape", key["user"], key["key"], "vms", blue, "own", red, "secret", snapshot_id
    )

    assert found["escaped"] == []
    assert found["own"] == ["list", "write"]
    assert svctl.host.run(["rbd", "ls", f"vms/{red}"]).stdout == "secret\n"


def test_qemu_opens_an_image_with_its_tenants_key_only(
    svctl: Svctl, red: str, blue: str, ceph_lab: Lab
) -> None:
    svctl("image", "create", "disk", "--tenant", red, "--size", "64MiB")
    directory = f"/tmp/virtkit-keys-{red}"
    mine = svctl("image", "attach", "disk", "--tenant", red, "--write-dir", directory)
    svctl("image", "create", "foreign", "--tenant", blue, "--size", "64MiB")
    theirs = svctl("image", "attach", "foreign", "--tenant", blue, "--write-dir", directory)

    def start(arguments: list[str]) -> int:
        quit_at_once = '{"execute": "qmp_capabilities"}\n{"execute": "quit"}\n'
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
        done = ceph_lab.ctl.run([*command, *arguments], input=quit_at_once, check=False)
        return done.returncode

    assert start(mine["qemu"]["arguments"]) == 0
    assert mine["key"] not in " ".join(mine["qemu"]["arguments"])
    mode = ceph_lab.ctl.run(["stat", "-c", "%a", f"{directory}/{mine['user']}.key"]).stdout.strip()
    assert mode == "600"
    # Blue's key, red's image.
    crossed = [
        argument.replace(f'"image": "{theirs["name"]}"', '"image": "disk"').replace(
            f'"namespace": "{blue}"', f'"namespace": "{red}"'
        )
        for argument in theirs["qemu"]["arguments"]
    ]
    assert start(crossed) != 0
    ceph_lab.ctl.run(["rm", "-r", directory])


def test_a_key_goes_with_its_tenants_last_namespace(svctl: Svctl) -> None:
    svctl.remove_tenant("guest")
    svctl("tenant", "create", "guest")
    svctl("namespace", "create", "guest", "--pool", "vms")
    before = svctl.host.run(["ceph", "auth", "get-key", "client.virtkit.guest"]).stdout
    refused = svctl.refused("tenant", "delete", "guest", "--yes")

    svctl("namespace", "delete", "guest", "--pool", "vms", "--yes")
    svctl("tenant", "delete", "guest", "--yes")

    assert "1 storage namespace" in refused.sentence
    assert before
    gone = svctl.host.run(["ceph", "auth", "get", "client.virtkit.guest"], check=False)
    assert gone.returncode != 0
    assert "guest" not in svctl.host.run(["rbd", "namespace", "ls", "--pool", "vms"]).stdout


def test_a_lost_key_is_repaired(svctl: Svctl, red: str) -> None:
    svctl("image", "create", "keyless", "--tenant", red, "--size", "64MiB")
    svctl.host.run(["ceph", "auth", "del", f"client.virtkit.{red}"])

    refused = svctl.refused("image", "attach", "keyless", "--tenant", red)
    assert f"svctl namespace repair {red} --pool vms" in refused.sentence
    svctl("namespace", "repair", red, "--pool", "vms")

    assert svctl("image", "attach", "keyless", "--tenant", red)["key"]
