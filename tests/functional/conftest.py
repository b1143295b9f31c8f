"""What functional tests share: one lab for the whole session, because Ceph takes time to start.

`VIRTKIT_TEST_LAB=NAME` uses a lab that is up already and leaves it up: for working on a test.
"""

import os
from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.functional.storage import Svctl


@pytest.fixture(scope="session")
def ceph_lab() -> Iterator[Lab]:
    """Three hosts with Ceph and agents, shared: use names of your own, leave daemons running."""
    if kept := os.environ.get("VIRTKIT_TEST_LAB"):
        yield Lab.open(kept)
        return
    with Lab.up(f"test-shared-{os.getpid()}", hosts=3, ceph=True) as lab:
        yield lab


@pytest.fixture(scope="session")
def svctl(ceph_lab: Lab) -> Svctl:
    """`svctl` in the shared lab, with the pool `vms`."""
    command = Svctl(ceph_lab.ctl)
    # How long a client that was killed keeps its images: 30 s otherwise, many times over. Those
    # that live say so five times as often as they would.
    ceph_lab.ctl.run(["ceph", "config", "set", "osd", "osd_client_watch_timeout", "6"])
    ceph_lab.ctl.run(["ceph", "config", "set", "client", "objecter_tick_interval", "1"])
    if not any(pool["name"] == "vms" for pool in command("pool", "list")):
        command("pool", "create", "vms", "--pg-num", "32")
    return command


@pytest.fixture(scope="module")
def red(svctl: Svctl, request: pytest.FixtureRequest) -> Iterator[str]:
    """A tenant with a namespace in `vms`, this module's own."""
    yield from _tenant(svctl, f"red-{_label(request)}")


@pytest.fixture(scope="module")
def blue(svctl: Svctl, request: pytest.FixtureRequest) -> Iterator[str]:
    """Another one."""
    yield from _tenant(svctl, f"blue-{_label(request)}")


def _label(request: pytest.FixtureRequest) -> str:
    return request.node.name.rpartition("/")[2].removesuffix(".py").split("_")[-1]


def _tenant(svctl: Svctl, name: str) -> Iterator[str]:
    svctl.remove_tenant(name)
    svctl("tenant", "create", name)
    svctl("namespace", "create", name, "--pool", "vms")
    yield name
    svctl.remove_tenant(name)
