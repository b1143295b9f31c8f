"""What may name storage objects, and which sizes images can have."""

import pytest

from storvirt.model import (
    ImagePath,
    SnapshotRef,
    duration,
    image_name,
    image_size,
    numbered,
    pool_name,
    snapshot_ref,
)
from storvirt.model import TenantName as T
from tenancy.errors import InvalidRequest


@pytest.mark.parametrize("name", ["a", "debian-12.5", "Web_1", "0", "x" * 63])
def test_usable_names_are_kept_as_they_are(name: str) -> None:
    assert image_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "a/b", "a@b", "-a", ".a", "a b", "ä", "a\n", "x" * 64, ".virtkit-1", "a%b"]
)
def test_names_that_ceph_would_accept_and_nobody_could_use_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not usable"):
        image_name(name)


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("10GiB", 10 << 30), ("1 MiB", 1 << 20), ("2T", 2 << 40)]
)
def test_sizes_are_whole_sectors(text: str, size: int) -> None:
    assert image_size(text) == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5GiB", "1000", "ten", "", "1025PiB", "1e9"])
def test_sizes_that_no_image_can_have_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        image_size(text)


def test_a_snapshot_is_written_image_at_snapshot() -> None:
    assert str(snapshot_ref("golden@base")) == "golden@base"
    assert isinstance(snapshot_ref("golden@base"), SnapshotRef)
    for text in ("golden", "golden@", "@base", "a@b@c"):
        with pytest.raises(InvalidRequest):
            snapshot_ref(text)


def test_an_image_path_is_written_as_rbd_writes_it() -> None:
    path = ImagePath(pool=pool_name("vms"), namespace=T("red"), name="disk")

    assert str(path) == "vms/red/disk"
    assert str(path.named("other")) == "vms/red/other"


def test_many_names_are_numbered_from_one() -> None:
    assert numbered(image_name("web"), 3) == ["web-1", "web-2", "web-3"]


@pytest.mark.parametrize(("base", "count"), [("web", 0), ("web", 10_001), ("w" * 62, 10)])
def test_numbers_that_make_no_names_are_refused(base: str, count: int) -> None:
    with pytest.raises(InvalidRequest):
        numbered(image_name(base), count)


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 604_800), ("12h", 43_200), ("30m", 1800), ("0s", 0)]
)
def test_a_time_is_read_with_its_unit(text: str, seconds: int) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["7", "d", "-1d", "1.5h", "4000d", "1w", ""])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a time"):
        duration(text)
