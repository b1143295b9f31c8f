"""Primaries that follow a guest, and come back, on the lab's Ceph; and read policies."""

import json
from typing import Any

import pytest

from tests.functional.storage import Svctl, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

HOST_OF_OSD = {0: "h1", 1: "h2", 2: "h3"}


def ceph(svctl: Svctl, *command: str) -> Any:
    return json.loads(svctl.host.run(["ceph", *command, "--format=json"]).stdout)


def fill(svctl: Svctl, tenant: str, image: str, size: str = "32MiB") -> None:
    svctl("image", "create", image, "--tenant", tenant, "--size", size)
    write(svctl, tenant, image, size.removesuffix("iB"))


def write(svctl: Svctl, tenant: str, image: str, total: str) -> None:
    bench = ["rbd", "bench", "--io-type=write", "--io-size=64K", "--io-threads=4"]
    svctl.host.run([*bench, f"--io-total={total}", f"vms/{tenant}/{image}"])


def acting_sets(svctl: Svctl) -> dict[str, list[int]]:
    """The acting set of each group, its primary first, by the cluster's own answer."""
    found: dict[str, list[int]] = svctl.probe("acting_sets", "vms")
    return found


def upmaps(svctl: Svctl) -> dict[str, list[int]]:
    return {one["pgid"]: one["osds"] for one in ceph(svctl, "osd", "dump")["pg_upmap"]}


def led(svctl: Svctl, tenant: str, image: str) -> dict[str, float]:
    """The share of an image's bytes that each host leads."""
    placed = svctl("place", image, "--tenant", tenant, "--objective", "bytes")
    return {one["host"]: one["local"] for one in placed["ranking"]}


def least(svctl: Svctl, tenant: str, image: str) -> str:
    """The host that leads least of an image."""
    shares = led(svctl, tenant, image)
    return min(shares, key=lambda host: shares[host])


def unhealthy(svctl: Svctl) -> int:
    pgmap = ceph(svctl, "status")["pgmap"]
    return int(pgmap.get("misplaced_objects", 0)) + int(pgmap.get("degraded_objects", 0))


def reads_by_osd(svctl: Svctl) -> dict[str, int]:
    return {HOST_OF_OSD[int(osd)]: n for osd, n in svctl.probe("op_counts").items()}


def read(svctl: Svctl, tenant: str, image: str, count: int, *host: str) -> dict[str, int]:
    """Reads that each host's OSD answered more, while so many were made from `host`."""
    before = reads_by_osd(svctl)
    svctl.probe("random_reads", "vms", tenant, image, count, *host)
    return {host: n - before[host] for host, n in reads_by_osd(svctl).items()}


def test_a_pin_moves_primaries_and_no_data_and_unpin_brings_them_back(
    svctl: Svctl, red: str
) -> None:
    fill(svctl, red, "hot")
    fill(svctl, red, "bystander")
    tenant = ("--tenant", red)
    before, bystander_before = acting_sets(svctl), led(svctl, red, "bystander")
    planned = svctl("pin", "hot", *tenant, "--host", "h2", "--budget", "3", "--dry-run")
    assert acting_sets(svctl) == before and upmaps(svctl) == {}

    pinned = svctl("pin", "hot", *tenant, "--host", "h2", "--budget", "3")

    after = acting_sets(svctl)
    assert [one["pg"] for one in pinned["new"]] == [one["pg"] for one in planned["new"]]
    moved = {pg for pg in before if before[pg][0] != after[pg][0]}
    assert moved == {one["pg"] for one in pinned["new"]} and 0 < len(moved) <= 3
    assert all(after[pg][0] == 1 for pg in moved)
    assert all(set(before[pg]) == set(after[pg]) for pg in before)
    assert unhealthy(svctl) == 0
    assert led(svctl, red, "hot")["h2"] == pinned["local"] > pinned["local_before"]
    # What is said of the other image is what the host leads of it more than before.
    shares = {one["image"]: one["share"] for one in pinned["touched"]}
    gained = led(svctl, red, "bystander")["h2"] - bystander_before["h2"]
    assert round(shares.get(f"vms/{red}/bystander", 0.0) - gained, 3) == 0

    again = svctl("pin", "hot", *tenant, "--host", "h2", "--budget", "3")
    assert again["new"] == [] and again["kept"] == len(moved)
    listed = [one for one in svctl("pin", "list") if f"vms/{red}/hot" in one["images"]]
    assert {one["standing"] for one in listed} == {"active"} and len(listed) == len(moved)
    answered = read(svctl, red, "hot", 100)
    assert answered["h2"] >= 100 * pinned["local"] * 0.5
    sentence = svctl.refused("pin", "hot", *tenant, "--host", "h1").sentence
    assert sentence.startswith("image hot is pinned to h2. First: svctl unpin hot")

    svctl("unpin", "hot", *tenant)
    assert acting_sets(svctl) == before and upmaps(svctl) == {}
    assert not [one for one in svctl("pin", "list") if f"vms/{red}/hot" in one["images"]]


def test_other_images_in_a_pinned_group_are_named_with_their_share(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    fill(svctl, red, "base", "16MiB")
    svctl("snapshot", "create", "base@s", *tenant, "--protect")
    svctl("image", "clone", "base@s", "child", *tenant)

    pinned = svctl("pin", "base", *tenant, "--host", least(svctl, red, "base"), "--dry-run")

    # All that the clone reads is the parent's, so it is touched by as much.
    of_parent = round(sum(one["share"] for one in pinned["new"]), 3)
    touched = {one["image"]: one["share"] for one in pinned["touched"]}
    assert of_parent > 0 and round(touched[f"vms/{red}/child"], 3) == of_parent


def test_what_another_operator_has_put_in_a_pins_place_is_left(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    fill(svctl, red, "contested", "16MiB")
    host = least(svctl, red, "contested")
    pinned = svctl("pin", "contested", *tenant, "--host", host, "--budget", "1")
    (pg,) = (one["pg"] for one in pinned["new"])
    # Neither as it was nor as it is pinned: the third order of the three.
    first, second = pinned["new"][0]["primary_before"], pinned["new"][0]["primary"]
    third = [*({0, 1, 2} - {first, second}), first, second]
    svctl.host.run(["ceph", "osd", "pg-upmap", pg, *map(str, third)])

    (listed,) = (one for one in svctl("pin", "list") if one["pg"] == pg)
    assert listed["standing"] == "changed"
    assert (
        "led otherwise by somebody else"
        in svctl.refused("pin", "contested", *tenant, "--host", host).sentence
    )
    done = svctl.run("unpin", "contested", *tenant)
    assert done.returncode == 0
    assert f"pg {pg}: somebody else has changed it since; it is left" in done.stderr
    assert upmaps(svctl) == {pg: third}

    svctl.host.run(["ceph", "osd", "rm-pg-upmap", pg])
    assert not any(one["pg"] == pg for one in svctl("pin", "list"))


def test_pins_of_a_deleted_image_are_given_back_by_a_check(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    fill(svctl, red, "shortlived", "16MiB")
    before = acting_sets(svctl)
    svctl("pin", "shortlived", *tenant, "--host", "h2", "--budget", "2")
    svctl("image", "delete", "shortlived", *tenant, "--yes")

    svctl("place", "--check", *tenant)

    assert upmaps(svctl) == {} and acting_sets(svctl) == before
    assert svctl("pin", "list") == []


def test_a_kept_answer_is_compared_with_the_newest_map(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    fill(svctl, red, "kept", "16MiB")
    placed = svctl("place", "kept", *tenant, "--objective", "bytes", "--keep")
    (kept,) = svctl("place", "kept", *tenant, "--check")
    assert (kept["verdict"], kept["host"]) == ("holds", placed["hosts"][0])

    elsewhere = next(one["host"] for one in placed["ranking"] if one["host"] != kept["host"])
    svctl("pin", "kept", *tenant, "--host", elsewhere)
    (kept,) = svctl("place", "kept", *tenant, "--check")

    assert (kept["verdict"], kept["host_now"]) == ("moved", elsewhere)
    assert kept["local_now"] < kept["local"]
    svctl("unpin", "kept", *tenant)


def test_a_read_policy_moves_reads_to_the_nearest_replica_and_back(svctl: Svctl, red: str) -> None:
    fill(svctl, red, "near")
    tenant = ("--tenant", red)

    def h2_answers_all() -> bool:
        answered = read(svctl, red, "near", 100, "h2")
        # Opening the image reads its header where that is led.
        return answered["h2"] >= 100

    by_primary = read(svctl, red, "near", 100, "h2")
    report = svctl("image", "read-policy", "near", "localize", *tenant)

    assert by_primary["h2"] < 100 and report["settled"] > 0
    until(h2_answers_all)
    assert svctl.host.run(["rados", "-p", "vms", "-N", "virtkit-settle", "ls"]).stdout == ""
    svctl("image", "read-policy", "near", "balance", *tenant)
    assert min(read(svctl, red, "near", 100, "h2").values()) > 5
    svctl("image", "read-policy", "near", "primary", *tenant)
    assert read(svctl, red, "near", 100, "h2")["h2"] < 100


def test_a_clone_is_told_that_its_parent_has_a_policy_of_its_own(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    fill(svctl, red, "old", "16MiB")
    svctl("snapshot", "create", "old@s", *tenant, "--protect")
    svctl("image", "clone", "old@s", "new", *tenant)

    done = svctl.run("image", "read-policy", "new", "localize", *tenant)

    assert f"read from vms/{red}/old@s goes by that image's own policy" in done.stderr
    assert read(svctl, red, "new", 60, "h2")["h2"] < 60
    svctl("image", "read-policy", "old", "localize", *tenant)
    until(lambda: read(svctl, red, "new", 60, "h2")["h2"] >= 60)


def test_what_attach_prints_tells_the_client_where_it_is(
    svctl: Svctl, red: str, tmp_path: Any
) -> None:
    svctl("image", "create", "somewhere", "--tenant", red, "--size", "16MiB")
    attached = svctl(
        *("image", "attach", "somewhere", "--tenant", red, "--host", "h2"),
        *("--write-dir", str(tmp_path)),
    )

    conf = attached["qemu"]["blockdev"]["conf"]
    assert (tmp_path / "client-on-h2.conf").read_text().endswith("crush_location = host=h2\n")
    assert conf == str(tmp_path / "client-on-h2.conf")
    refusal = svctl.refused("image", "attach", "somewhere", "--tenant", red, "--host", "h2")
    assert "--write-dir" in refusal.sentence


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("pin IMAGE --host nowhere", "host nowhere is not known. Hosts with OSDs: h1, h2, h3."),
        ("pin IMAGE --host h1 --budget 0", "--budget 0 is no number of placement groups"),
        ("pin IMAGE --host h1 --budget -3", "--budget -3 is no number of placement groups"),
        ("pin IMAGE", "no host to pin it to"),
        ("pin gone --host h1", "has no image gone"),
        ("unpin IMAGE", "image plain is not pinned"),
        ("unpin gone", "has no image gone"),
        ("pin IMAGE --host h1 --objective heat", "has no heat map"),
        ("pin IMAGE --host h1", "holds no bytes yet"),
        ("place IMAGE --objective bytes", "holds no bytes yet"),
        ("place IMAGE --objective heat", "has no heat map, nor has the image it is a clone of"),
        ("place IMAGE --count 0", "--count 0 can't be placed"),
        ("place IMAGE --count -1", "--count -1 can't be placed"),
        ("place IMAGE gone", "has no image gone"),
        ("place", "no image is named"),
        ("place --keep --check", "can't be given together"),
        ("heat show IMAGE", "has no heat map"),
        ("heat show gone", "has no image gone"),
        ("heat record gone", "has no image gone"),
        ("heat record IMAGE@none", "has no snapshot none"),
        ("heat record IMAGE --from /nowhere", "file /nowhere is not there"),
        ("heat record IMAGE --kernel /nowhere", "file /nowhere is not there"),
        ("heat record IMAGE --append x", "need a --kernel"),
        ("heat record IMAGE --memory 1KiB", "is not a guest's"),
        ("heat forget gone", "has no image gone"),
        ("image read-policy gone localize", "has no image gone"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    svctl: Svctl, red: str, command: str, sentence: str
) -> None:
    if "plain" not in svctl.images(red):
        svctl("image", "create", "plain", "--tenant", red, "--size", "16MiB")

    refusal = svctl.refused(*command.replace("IMAGE", "plain").split(), "--tenant", red)

    assert sentence in refusal.sentence
    assert upmaps(svctl) == {}


def test_a_host_without_an_osd_is_refused(svctl: Svctl, red: str) -> None:
    tenant = ("--tenant", red)
    fill(svctl, red, "lonely", "16MiB")
    svctl.host.run(["ceph", "osd", "crush", "add-bucket", "h9", "host"])
    try:
        assert (
            "host h9 is not known"
            in svctl.refused("pin", "lonely", *tenant, "--host", "h9").sentence
        )
    finally:
        svctl.host.run(["ceph", "osd", "crush", "rm", "h9"])


def test_an_erasure_coded_pool_is_placed_but_never_pinned(svctl: Svctl, red: str) -> None:
    run = svctl.host.run
    run(["ceph", "osd", "erasure-code-profile", "set", "pins", "k=2", "m=1"])
    run(["ceph", "osd", "pool", "create", "pins-ec", "4", "erasure", "pins"])
    run(["ceph", "osd", "pool", "set", "pins-ec", "allow_ec_overwrites", "true"])
    run(["ceph", "osd", "pool", "application", "enable", "pins-ec", "rbd"])
    try:
        svctl("image", "create", "coded", "--tenant", red, "--size", "16MiB")
        # As a tenant with stock tools would give the image a data pool.
        run(["rbd", "rm", f"vms/{red}/coded"])
        run(["rbd", "create", "--size=16M", "--data-pool=pins-ec", f"vms/{red}/coded"])
        write(svctl, red, "coded", "16M")
        tenant = ("--tenant", red)

        placed = svctl("place", "coded", *tenant, "--objective", "bytes")
        assert placed["pool"] == "pins-ec"
        first = ceph(svctl, "osd", "map", "pins-ec", placed["object_name"], red)
        assert (first["pgid"], first["acting_primary"]) == (placed["pg"], placed["primary_osd"])
        for command in ("pin coded --host h1", "image read-policy coded localize"):
            refusal = svctl.refused(*command.split(), *tenant)
            assert "pins-ec, which is erasure-coded" in refusal.sentence
    finally:
        svctl("image", "delete", "coded", "--tenant", red, "--yes")
        run(["ceph", "osd", "pool", "rm", "pins-ec", "pins-ec", "--yes-i-really-really-mean-it"])
        run(["ceph", "osd", "crush", "rule", "rm", "pins-ec"])
        run(["ceph", "osd", "erasure-code-profile", "rm", "pins"])
