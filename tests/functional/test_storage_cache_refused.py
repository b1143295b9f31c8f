"""Pools that can't be caches because of what is in them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.functional.storage import Svctl, until

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

BASE, CACHE = "refusing", "refused-cache"


@pytest.fixture
def cache(svctl: Svctl) -> Iterator[str]:
    """Two pools, and something in the one that is to be the cache."""
    for name in (BASE, CACHE):
        if any(pool["name"] == name for pool in svctl("pool", "list")):
            svctl("pool", "delete", name, "--yes")
        svctl("pool", "create", name, "--pg-num", "4")
    svctl.host.run(["rados", "--pool", CACHE, "put", "thing", "/etc/hostname"])
    yield CACHE
    for name in (BASE, CACHE):
        svctl("pool", "delete", name, "--yes")


def pools(svctl: Svctl) -> dict[str, Any]:
    dump = json.loads(svctl.host.run(["ceph", "osd", "dump", "--format=json"]).stdout)
    return {pool["pool_name"]: pool for pool in dump["pools"]}


@pytest.mark.parametrize("full", [False, True])
def test_a_pool_that_holds_something_is_no_cache_also_if_it_is_full(
    svctl: Svctl, cache: str, full: bool
) -> None:
    if full:
        svctl.host.run(["ceph", "osd", "pool", "set-quota", cache, "max_objects", "1"])
        until(lambda: "full" in pools(svctl)[cache]["flags_names"].split(","), timeout_s=120)

    refused = svctl.refused("tier", "create", BASE, "--cache", cache)

    assert refused.exit_code == 1
    assert refused.sentence.startswith(f"pool {cache} is not empty, and a cache must be")
    after = pools(svctl)
    assert after[BASE]["tiers"] == [] and after[cache]["tier_of"] == -1
    assert "thing" in svctl.host.run(["rados", "--pool", cache, "ls"]).stdout
