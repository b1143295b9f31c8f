"""Many images at once: all admitted or none, single failures passed over, killed and run again."""

import json
from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl, probe_command

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

COUNT = 12


@pytest.fixture(scope="module")
def golden(svctl: Svctl, red: str) -> Iterator[str]:
    """A tenant with a protected snapshot `golden@base`."""
    svctl("image", "create", "golden", "--tenant", red, "--size", "64MiB")
    svctl("snapshot", "create", "golden@base", "--tenant", red, "--protect")
    yield red
    run = svctl.run("image", "delete", "web", "--count", str(COUNT), "--tenant", red, "--yes")
    assert run.returncode == 0 or "has no image" in run.stderr


def clone(tenant: str, count: int = COUNT) -> tuple[str, ...]:
    return ("image", "clone", "golden@base", "web", "--count", str(count), "--tenant", tenant)


def test_clones_are_made_found_again_and_deleted(svctl: Svctl, golden: str) -> None:
    before = svctl.used(golden)

    made = svctl(*clone(golden))
    again = svctl(*clone(golden, COUNT + 1))

    names = [f"web-{number}" for number in range(1, COUNT + 1)]
    assert sorted(made["done"]) == sorted(names) and made["failed"] == []
    assert sorted(again["present"]) == sorted(names) and again["done"] == [f"web-{COUNT + 1}"]
    assert svctl.used(golden)["images"] - before["images"] == COUNT + 1
    for extra in ((f"web-{COUNT + 1}",), ("web", "--count", str(COUNT))):
        svctl("image", "delete", *extra, "--tenant", golden, "--yes")
    assert svctl.used(golden) == before
    assert svctl.host.run(["rbd", "ls", f"vms/{golden}"]).stdout == "golden\n"


@pytest.mark.parametrize(
    ("when", "function", "call"),
    [
        ("after", "storvirt.service.admission.admit_all", 1),
        ("before", "storvirt.backends.images.clone", 5),
        ("after", "storvirt.service.admission.note_ids", 1),
        ("before", "storvirt.backends.naming._list_as", 3),
        ("after", "storvirt.service.admission.publish", 2),
        ("after", "storvirt.service.admission.mark_all_ready", 1),
    ],
)
def test_clones_that_were_cut_off_are_finished_by_the_same_command(
    svctl: Svctl, golden: str, ceph_lab: Lab, when: str, function: str, call: int
) -> None:
    before = svctl.used(golden)
    died = ceph_lab.ctl.run(
        probe_command("dying", when, function, call, *clone(golden)), check=False
    )
    assert died.returncode == 9, died.stderr

    made = svctl(*clone(golden))

    assert made["failed"] == [] and len(made["done"]) + len(made["present"]) == COUNT
    assert len(svctl.host.run(["rbd", "ls", f"vms/{golden}"]).stdout.split()) == COUNT + 1
    assert svctl("status")["unfinished"] == []
    svctl("image", "delete", "web", "--count", str(COUNT), "--tenant", golden, "--yes")
    left = svctl.host.run(["rados", "--pool", "vms", "--namespace", golden, "ls"]).stdout.split()
    assert [name for name in left if name.startswith("rbd_id.")] == ["rbd_id.golden"]
    assert svctl.used(golden) == before


def create(tenant: str, *options: str) -> tuple[str, ...]:
    size = ("--size", "16MiB", "--object-size", "1MiB")
    return ("image", "create", "web", "--count", str(COUNT), "--tenant", tenant, *size, *options)


@pytest.mark.parametrize(
    ("when", "function", "call"),
    [
        ("before", "storvirt.backends.images.create", 5),
        ("after", "storvirt.service.admission.note_ids", 1),
        ("after", "storvirt.service.admission.publish", 2),
    ],
)
def test_empty_images_that_were_cut_off_are_finished_by_the_same_command(
    svctl: Svctl, golden: str, ceph_lab: Lab, when: str, function: str, call: int
) -> None:
    before = svctl.used(golden)
    died = ceph_lab.ctl.run(
        probe_command("dying", when, function, call, *create(golden)), check=False
    )
    assert died.returncode == 9, died.stderr

    made = svctl(*create(golden))
    again = svctl(*create(golden))

    names = {f"web-{number}" for number in range(1, COUNT + 1)}
    assert made["failed"] == [] and {*made["done"], *made["present"]} == names
    assert again["done"] == again["failed"] == [] and set(again["present"]) == names
    assert svctl.used(golden)["images"] - before["images"] == COUNT
    assert svctl("image", "get", "web-3", "--tenant", golden)["object_size"] == "1MiB"
    assert svctl("status")["unfinished"] == []
    svctl("image", "delete", "web", "--count", str(COUNT), "--tenant", golden, "--yes")
    assert svctl.used(golden) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--object-size", "2MiB"), "objects of 1MiB, not 2MiB"),
        (("--stripe-unit", "64KiB", "--stripe-count", "4"), "stripes of 1MiB over one object, not"),
        (("--no-feature", "fast-diff"), "feature fast-diff on"),
    ],
)
def test_an_image_that_was_begun_otherwise_is_not_taken_for_what_is_asked(
    svctl: Svctl, golden: str, ceph_lab: Lab, options: tuple[str, ...], words: str
) -> None:
    one = ("image", "create", "odd", "--tenant", golden, "--size", "16MiB")
    asked = (*one, "--object-size", "1MiB")
    died = ceph_lab.ctl.run(
        probe_command("dying", "after", "storvirt.service.admission.note_ids", 1, *asked),
        check=False,
    )
    assert died.returncode == 9, died.stderr

    refused = svctl.refused(*asked, *options)

    assert refused.exit_code == 1 and words in refused.sentence, refused.sentence
    assert svctl(*asked)["state"] == "ready"
    svctl("image", "delete", "odd", "--tenant", golden, "--yes")


def test_an_image_that_is_there_otherwise_has_failed_and_the_others_are_made(
    svctl: Svctl, golden: str
) -> None:
    svctl("image", "create", "web-2", "--tenant", golden, "--size", "16MiB")

    run = svctl.run(*create(golden), "-o", "json")

    found = json.loads(run.stdout)
    assert run.returncode == 1 and [one["name"] for one in found["failed"]] == ["web-2"]
    assert "objects of 4MiB, not 1MiB" in found["failed"][0]["error"]
    assert len(found["done"]) == COUNT - 1
    svctl("image", "delete", "web", "--count", str(COUNT), "--tenant", golden, "--yes")


def test_a_deletion_that_was_cut_off_is_finished(svctl: Svctl, golden: str, ceph_lab: Lab) -> None:
    before = svctl.used(golden)
    svctl(*clone(golden))
    command = ("image", "delete", "web", "--count", str(COUNT), "--tenant", golden, "--yes")
    died = ceph_lab.ctl.run(
        probe_command("dying", "after", "storvirt.backends.images.remove", 3, *command),
        check=False,
    )
    assert died.returncode == 9, died.stderr

    while (run := svctl.run(*command)).returncode:
        # Ceph remembers the client that died while it removed an image.
        assert "is open" in run.stderr or "half deleted" in run.stderr, run.stderr

    assert svctl.used(golden) == before


def test_one_name_that_is_taken_does_not_keep_the_others(svctl: Svctl, golden: str) -> None:
    before = svctl.used(golden)
    svctl.host.run(["rbd", "create", f"vms/{golden}/web-3", "--size", "8M"])

    run = svctl.run(*clone(golden), "-o", "json")

    found = json.loads(run.stdout)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert [one["name"] for one in found["failed"]] == ["web-3"]
    assert "made by somebody else" in found["failed"][0]["error"]
    assert len(found["done"]) == COUNT - 1
    assert svctl.used(golden)["images"] - before["images"] == COUNT - 1
    svctl.host.run(["rbd", "rm", "--no-progress", f"vms/{golden}/web-3"])
    assert svctl(*clone(golden))["done"] == ["web-3"]
    svctl("image", "delete", "web", "--count", str(COUNT), "--tenant", golden, "--yes")


def test_more_clones_than_the_quota_admits_are_none(svctl: Svctl, golden: str) -> None:
    before = svctl.used(golden)
    svctl("tenant", "set", golden, "--quota", f"images={before['images'] + COUNT - 1}")

    refused = svctl.refused(*clone(golden))

    svctl("tenant", "set", golden, "--quota", "images=1000")
    assert refused.exit_code == 1 and "quota of images" in refused.sentence
    assert svctl.used(golden) == before
    assert svctl.images(golden) == ["golden"]


def test_snapshots_of_all_images_are_taken_and_deleted_as_one(
    svctl: Svctl, golden: str, ceph_lab: Lab
) -> None:
    tenant = ("--tenant", golden)
    before = svctl.used(golden)
    svctl(*clone(golden))
    take = ("snapshot", "create", "--all", "--name", "nightly", *tenant)
    died = ceph_lab.ctl.run(
        probe_command("dying", "after", "storvirt.backends.images.take_snapshot", 4, *take),
        check=False,
    )
    assert died.returncode == 9, died.stderr

    taken = svctl(*take)

    assert taken["failed"] == [] and len(taken["done"]) + len(taken["present"]) == COUNT + 1
    assert svctl.used(golden)["snapshots"] - before["snapshots"] == COUNT + 1
    svctl("snapshot", "delete", "--all", "--name", "nightly", *tenant, "--yes")
    svctl("image", "delete", "web", "--count", str(COUNT), *tenant, "--yes")
    assert svctl.used(golden) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("image", "clone", "golden@base", "web", "--count", "0"), "count 0"),
        (("image", "clone", "golden@base", "web", "--count", "99999"), "count 99999"),
        (("image", "create", "web", "--count", "0", "--size", "8MiB"), "count 0"),
        (("image", "delete", "a", "b", "--count", "3", "--yes"), "--count goes with one name"),
        (("snapshot", "create"), "say which"),
        (("snapshot", "create", "golden@x", "--all"), "say which"),
        (("snapshot", "create", "--all"), "say which"),
        (("snapshot", "create", "--all", "--name", "a@b"), "snapshot name"),
    ],
)
def test_a_request_for_many_that_cannot_be_is_one_sentence(
    svctl: Svctl, golden: str, arguments: tuple[str, ...], words: str
) -> None:
    refused = svctl.refused(*arguments, "--tenant", golden)

    assert refused.exit_code == 2 and words in refused.sentence, refused.sentence
