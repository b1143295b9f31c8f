"""Limits as librbd's settings."""

import pytest

from storvirt import qos
from tenancy.errors import InvalidRequest


def test_limits_become_settings_of_the_image_and_are_read_back() -> None:
    wanted = qos.settings({"iops": 100, "read-bps": 1 << 20}, {"iops": 200})

    assert wanted == {
        "conf_rbd_qos_iops_limit": "100",
        "conf_rbd_qos_iops_burst": "200",
        "conf_rbd_qos_read_bps_limit": "1048576",
    }
    kept = {key: value for key, value in wanted.items() if value is not None}
    assert qos.read(kept) == {"iops": 100, "read-bps": 1 << 20}


def test_zero_lifts_the_limit_and_its_burst() -> None:
    assert qos.settings({"iops": 0}, {}) == {
        "conf_rbd_qos_iops_limit": None,
        "conf_rbd_qos_iops_burst": None,
    }


@pytest.mark.parametrize(
    ("limits", "bursts", "words"),
    [
        ({"iops": -1}, {}, "is not between"),
        ({"iops": 9}, {}, "is not between"),
        ({"bps": 1024}, {}, "is not between"),
        ({"write-bps": 1 << 50}, {}, "is not between"),
        ({}, {"iops": 50}, "goes with"),
        ({"iops": 100}, {"iops": 50}, "is below"),
    ],
)
def test_a_limit_that_no_guest_could_live_with_is_refused(
    limits: dict[str, int], bursts: dict[str, int], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        qos.settings(limits, bursts)
