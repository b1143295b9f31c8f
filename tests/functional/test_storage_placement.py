"""`svctl place` says what Ceph's monitors say."""

import json

import pytest

from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


@pytest.mark.parametrize(
    ("pool", "namespace", "count"),
    [("vms", "red", 4000), ("vms", "", 2000), ("odd", "blue-1", 4000)],
)
def test_names_are_mapped_as_ceph_maps_them(
    svctl: Svctl, pool: str, namespace: str, count: int
) -> None:
    if pool == "odd" and all(one["name"] != "odd" for one in svctl("pool", "list")):
        # Not a power of two: the case that stable_mod is for.
        svctl("pool", "create", "odd", "--pg-num", "12")

    found = svctl.probe("equal_osd_map", pool, namespace, count)

    print(found)
    assert found["different"] == [] and found["checked"] == count


def osd_map_of_first_object(svctl: Svctl, tenant: str, image: str) -> tuple[str, int]:
    """PG and primary of an image's own first object, by the `ceph` command."""
    info = json.loads(
        svctl.host.run(["rbd", "info", f"vms/{tenant}/{image}", "--format=json"]).stdout
    )
    name = f"{info['block_name_prefix']}.{0:016x}"
    answer = svctl.host.run(["ceph", "osd", "map", "vms", name, tenant, "--format=json"]).stdout
    found = json.loads(answer)
    return found["pgid"], found["acting_primary"]


def test_a_clone_is_placed_by_its_parent_until_it_has_its_own_first_object(
    svctl: Svctl, red: str
) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "golden", *tenant, "--size", "64MiB")
    svctl.host.run(
        [
            "rbd",
            "bench",
            "--io-type=write",
            "--io-size=4096",
            "--io-total=4096",
            f"vms/{red}/golden",
        ]
    )
    svctl("snapshot", "create", "golden@base", *tenant, "--protect")
    clones = [f"clone-{number}" for number in range(3)]
    for clone in clones:
        svctl("image", "clone", "golden@base", clone, *tenant)

    parent = osd_map_of_first_object(svctl, red, "golden")
    for clone in clones:
        placed = svctl("place", clone, *tenant)
        assert (placed["pg"], placed["primary_osd"]) == parent
        assert placed["read_from"] == f"vms/{red}/golden"
        assert placed["ranking"][0]["host"] == placed["primary_host"]
        svctl.host.run(
            [
                "rbd",
                "bench",
                "--io-type=write",
                "--io-size=4096",
                "--io-total=4096",
                f"vms/{red}/{clone}",
            ]
        )
        placed = svctl("place", clone, *tenant)
        own = osd_map_of_first_object(svctl, red, clone)
        assert (placed["pg"], placed["primary_osd"]) == own
        assert placed["read_from"] == f"vms/{red}/{clone}"


def test_the_ranking_holds_every_crush_host_with_its_reason(svctl: Svctl, red: str) -> None:
    svctl("image", "create", "ranked", "--tenant", red, "--size", "64MiB")

    placed = svctl("place", "ranked", "--tenant", red)

    tree = json.loads(svctl.host.run(["ceph", "osd", "tree", "--format=json"]).stdout)["nodes"]
    hosts = {node["name"] for node in tree if node["type"] == "host"}
    assert {ranked["host"] for ranked in placed["ranking"]} == hosts
    assert all(ranked["reason"] for ranked in placed["ranking"])
    scores = [ranked["score"] for ranked in placed["ranking"]]
    assert scores == sorted(scores, reverse=True)


def write_object(svctl: Svctl, path: str, number: int) -> None:
    """Write a little into one object of 4 MiB of an image."""
    svctl.probe("write_at", path, number * (4 << 20), 4096)


def data_prefix(svctl: Svctl, path: str) -> str:
    return str(
        json.loads(svctl.host.run(["rbd", "info", path, "--format=json"]).stdout)[
            "block_name_prefix"
        ]
    )


def primary_host(svctl: Svctl, name: str, namespace: str) -> str:
    answer = svctl.host.run(["ceph", "osd", "map", "vms", name, namespace, "--format=json"]).stdout
    return f"h{json.loads(answer)['acting_primary'] + 1}"


def test_a_clone_of_a_clone_is_placed_by_whichever_generation_has_each_object(
    svctl: Svctl, red: str
) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "first", *tenant, "--size", "32MiB")
    for number in (0, 1, 2, 3, 5):
        write_object(svctl, f"vms/{red}/first", number)
    svctl("snapshot", "create", "first@s", *tenant, "--protect")
    svctl("image", "clone", "first@s", "second", *tenant)
    write_object(svctl, f"vms/{red}/second", 1)
    write_object(svctl, f"vms/{red}/second", 6)
    svctl("snapshot", "create", "second@s", *tenant, "--protect")
    svctl("image", "clone", "second@s", "third", *tenant)
    write_object(svctl, f"vms/{red}/third", 2)
    # Its clone does not see this; the next is copied up, from the first image.
    write_object(svctl, f"vms/{red}/first", 7)
    write_object(svctl, f"vms/{red}/second", 3)

    placed = svctl("place", "third", *tenant, "--objective", "bytes")

    # Copying up gives object 3 to the clone's snapshots too, so the grandchild reads it there.
    holder = {0: "first", 1: "second", 2: "third", 3: "second", 5: "first", 6: "second"}
    expected = dict.fromkeys(("h1", "h2", "h3"), 0.0)
    for number, image in holder.items():
        name = f"{data_prefix(svctl, f'vms/{red}/{image}')}.{number:016x}"
        expected[primary_host(svctl, name, red)] += 1 / len(holder)
    found = {one["host"]: one["local"] for one in placed["ranking"]}
    assert found == pytest.approx(expected, abs=0.001)
    assert placed["read_from"] == f"vms/{red}/first"
    # The fixture takes away images and their clones, not the clones of those.
    svctl("image", "delete", "third", *tenant, "--yes")
    svctl("snapshot", "unprotect", "second@s", *tenant)
    svctl("snapshot", "delete", "second@s", *tenant, "--yes")


def test_a_clone_whose_golden_image_is_in_the_trash_is_still_placed(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "old", *tenant, "--size", "16MiB")
    write_object(svctl, f"vms/{red}/old", 0)
    svctl("snapshot", "create", "old@s", *tenant, "--protect")
    svctl("image", "clone", "old@s", "heir", *tenant)
    before = svctl("place", "heir", *tenant)
    svctl.host.run(["rbd", "trash", "mv", f"vms/{red}/old"])
    try:
        for objective in ("first-object", "bytes"):
            placed = svctl("place", "heir", *tenant, "--objective", objective)
            assert (placed["pg"], placed["primary_osd"]) == (before["pg"], before["primary_osd"])
    finally:
        listed = svctl.host.run(["rbd", "trash", "ls", f"vms/{red}", "--format=json"]).stdout
        (trashed,) = (one["id"] for one in json.loads(listed) if one["name"] == "old")
        svctl.host.run(["rbd", "trash", "restore", f"vms/{red}/{trashed}"])


def test_guests_to_come_are_counted_one_before_the_next(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    svctl("image", "create", "many-a", *tenant, "--size", "16MiB")
    svctl("image", "create", "many-b", *tenant, "--size", "16MiB")

    placed = svctl("place", "many-a", "many-b", *tenant, "--count", "30")

    hosts = [host for one in placed for host in one["hosts"]]
    assert len(hosts) == 60 and set(hosts) <= {"h1", "h2", "h3"}
    # Half as much again as a host's share.
    assert max(map(hosts.count, hosts)) <= 30
    for one in placed:
        assert len(one["hosts"]) == 30
    # The first goes where its bytes are.
    assert placed[0]["hosts"][0] == placed[0]["primary_host"]
