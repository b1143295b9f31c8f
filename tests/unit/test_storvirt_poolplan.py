"""What can be wanted of a pool, and what a cluster can't give."""

import pytest

from storvirt import poolplan
from storvirt.model import PoolName
from storvirt.poolplan import CompressionMode, Erasure, Settings, Topology, Wish
from tenancy.errors import InvalidRequest, VirtkitError

NAME = PoolName("vms")
THREE_HOSTS = Topology(
    root="default",
    default_domain="host",
    domains={"host": {"": 3, "ssd": 1, "hdd": 3}, "osd": {"": 6, "ssd": 2, "hdd": 4}},
)


def test_a_wish_is_noted_without_what_was_not_said() -> None:
    wish = Wish(replicas=2, erasure=Erasure(k=4, m=2), compression_mode=CompressionMode.FORCE)

    assert wish.noted() == {"replicas": "2", "erasure": "4+2", "compression_mode": "force"}
    assert Wish.none().noted() == {}
    assert Wish(device_class="ssd").has_rule and not wish.has_rule


def test_settings_are_said_in_cephs_words() -> None:
    wish = Settings(replicas=2, compression_ratio=0.875)

    assert poolplan.ceph_settings(wish) == {"size": "2", "compression_required_ratio": "0.875"}


@pytest.mark.parametrize("text", ["1+2", "2+0", "30+3", "2", "2+", "a+b", "2-1", "-2+1", "2.5+1"])
def test_erasure_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        poolplan.erasure(text)


@pytest.mark.parametrize(
    ("copies", "device_class", "domain", "fits"),
    [
        (3, None, None, True),
        (4, None, None, False),
        (4, None, "osd", True),
        (1, "ssd", "host", True),
        (2, "ssd", "host", False),
        (2, "ssd", "osd", True),
        (2, "nvme", "osd", False),
        (2, None, "rack", False),
    ],
)
def test_copies_need_as_many_failure_domains_of_the_class(
    copies: int, device_class: str | None, domain: str | None, fits: bool
) -> None:
    def judge() -> None:
        poolplan.refuse_impossible(
            NAME,
            THREE_HOSTS,
            copies=copies,
            what="replicas",
            device_class=device_class,
            failure_domain=domain,
        )

    if fits:
        judge()
    else:
        with pytest.raises(VirtkitError, match="pool vms"):
            judge()
