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
