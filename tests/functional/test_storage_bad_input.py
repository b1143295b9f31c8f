"""Bad input and absent services: one sentence, the right exit code, nothing changed, no hang."""

import time

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (("image", "create", "a/b", "--size", "1GiB"), 2, "image name 'a/b' is not usable"),
        (("image", "create", "a@b", "--size", "1GiB"), 2, "image name 'a@b' is not usable"),
        (("image", "create", "", "--size", "1GiB"), 2, "is not usable"),
        (("image", "create", "-a", "--size", "1GiB"), 2, ""),
        (("image", "create", "ä", "--size", "1GiB"), 2, "is not usable"),
        (("image", "create", "d", "--size", "0"), 2, "size 0"),
        (("image", "create", "d", "--size", "-1GiB"), 2, "is not a size"),
        (("image", "create", "d", "--size", "1.5GiB"), 2, "is not a size"),
        (("image", "create", "d", "--size", "1000"), 2, "multiple of 512"),
        (("image", "create", "d", "--size", "4096PiB"), 2, "beyond 1 EiB"),
        (("image", "create", "d", "--size", "500TiB"), 1, "quota of bytes"),
        (
            ("image", "create", "d", "--size", "1GiB", "--pool", "nowhere"),
            1,
            "no namespace in pool",
        ),
        (("image", "get", "nothing"), 1, "has no image nothing"),
        (("image", "clone", "nothing", "d"), 2, "IMAGE@SNAPSHOT"),
        (("image", "clone", "nothing@base", "d"), 1, "has no image nothing"),
        (("snapshot", "create", "nothing@s"), 1, "has no image nothing"),
        (("place", "nothing"), 1, "has no image nothing"),
    ],
)
def test_a_request_that_cannot_be_is_one_sentence(
    svctl: Svctl, red: str, arguments: tuple[str, ...], exit_code: int, words: str
) -> None:
    refused = svctl.refused(*arguments, "--tenant", red)

    assert refused.exit_code == exit_code, refused.sentence
    assert words in refused.sentence
    assert svctl.images(red) == []


def test_what_is_missing_is_named_with_what_to_do(svctl: Svctl, red: str) -> None:
    for arguments, words in (
        (("pool", "get", "nowhere"), "svctl pool create nowhere"),
        (("namespace", "create", red, "--pool", "nowhere"), "svctl pool create nowhere"),
        (("namespace", "create", "nobody", "--pool", "vms"), "tenant nobody does not exist"),
        (("image", "list", "--tenant", "nobody"), "tenant nobody does not exist"),
        (("image", "create", "d", "--tenant", "nobody", "--size", "1GiB"), "does not exist"),
    ):
        refused = svctl.refused(*arguments)
        assert refused.exit_code == 1
        assert words in refused.sentence, refused.sentence


def test_a_tenant_without_a_namespace_is_told_how_to_get_one(svctl: Svctl) -> None:
    svctl.remove_tenant("homeless")
    svctl("tenant", "create", "homeless")

    refused = svctl.refused("image", "create", "d", "--tenant", "homeless", "--size", "1GiB")

    assert "svctl namespace create homeless --pool" in refused.sentence
    svctl("tenant", "delete", "homeless", "--yes")


def test_a_tenant_with_images_is_not_deleted(svctl: Svctl, red: str) -> None:
    svctl("image", "create", "kept", "--tenant", red, "--size", "64MiB")

    refused = svctl.refused("tenant", "delete", red, "--yes")

    assert "1 image" in refused.sentence
    assert svctl.images(red) == ["kept"]
    svctl("image", "delete", "kept", "--tenant", red, "--yes")


def test_deleting_without_a_terminal_needs_yes(svctl: Svctl, red: str) -> None:
    svctl("image", "create", "careful", "--tenant", red, "--size", "64MiB")

    assert "--yes" in svctl.refused("image", "delete", "careful", "--tenant", red).sentence

    assert svctl.images(red) == ["careful"]
    svctl("image", "delete", "careful", "--tenant", red, "--yes")


def test_a_database_that_is_down_is_one_sentence_and_changes_nothing(
    svctl: Svctl, red: str
) -> None:
    refused = svctl.refused(
        "--db",
        "unix:/run/virtkit/nothing.sock",
        "image",
        "create",
        "d",
        "--tenant",
        red,
        "--size",
        "1GiB",
    )

    assert refused.exit_code == 1 and "does not answer" in refused.sentence


def test_a_monitor_that_is_silent_is_an_error_within_bounded_time(
    svctl: Svctl, red: str, ceph_lab: Lab
) -> None:
    daemon = next(name for name in ceph_lab.ctl.daemons if "mon" in name)
    ceph_lab.ctl.pause(daemon)
    try:
        began = time.monotonic()
        refused = svctl.refused("image", "create", "d", "--tenant", red, "--size", "1GiB")
        took_s = time.monotonic() - began
    finally:
        ceph_lab.ctl.resume(daemon)

    assert refused.exit_code == 1 and "monitor" in refused.sentence
    assert took_s < 15
    assert svctl.images(red) == []


def test_a_pool_that_cannot_be_made_or_adopted_leaves_nothing(svctl: Svctl) -> None:
    for arguments, words in (
        (("--pg-num", "60000"), "pg_num 60000"),
        (("--replicas", "9"), "Ceph has 3"),
        (("--adopt",), "does not exist in Ceph"),
    ):
        refused = svctl.refused("pool", "create", "never", *arguments)
        assert refused.exit_code == 1 and words in refused.sentence, refused.sentence
    svctl.host.run(["ceph", "osd", "pool", "create", "theirs", "8"])
    svctl.host.run(["ceph", "osd", "pool", "application", "enable", "theirs", "rgw"])

    refused = svctl.refused("pool", "create", "theirs", "--adopt")

    assert "belongs to rgw" in refused.sentence
    assert not {"never", "theirs"} & {pool["name"] for pool in svctl("pool", "list")}
    assert svctl("status")["unfinished"] == []
    svctl.host.run(
        ["ceph", "osd", "pool", "delete", "theirs", "theirs", "--yes-i-really-really-mean-it"]
    )


@pytest.mark.usefixtures("red")
def test_a_pool_with_tenants_is_kept_and_says_how_to_empty_it(svctl: Svctl) -> None:
    refused = svctl.refused("pool", "delete", "vms", "--yes")

    assert "svctl namespace delete" in refused.sentence


def test_a_pool_that_ceph_has_lost_is_named(svctl: Svctl) -> None:
    svctl("pool", "create", "lost", "--pg-num", "8")
    svctl.host.run(
        ["ceph", "osd", "pool", "delete", "lost", "lost", "--yes-i-really-really-mean-it"]
    )

    refused = svctl.refused("pool", "get", "lost")

    assert "does not exist in Ceph" in refused.sentence
    svctl("pool", "delete", "lost", "--yes")
    assert all(pool["name"] != "lost" for pool in svctl("pool", "list"))
