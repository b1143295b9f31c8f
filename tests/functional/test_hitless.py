"""Restarts that no packet notices.

The lab has no Ceph: on the userspace datapath the uplink is a packet socket with the kernel's
default buffer, and bursts of Ceph overflow it. Such losses say nothing about us.
"""

import os
from collections.abc import Iterator

import pytest

from lab.lab import Lab
from tests.functional.tenants import Container, Fabric, agent_state, pinging

pytestmark = pytest.mark.functional

Pair = tuple[Container, Container]


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with Lab.up(f"test-hitless-{os.getpid()}", hosts=2) as lab:
        fabric = Fabric(lab)
        fabric("nvctl tenant create red")
        fabric("nvctl network create front -t red --cidr 10.1.0.0/24")
        yield fabric


@pytest.fixture(scope="module")
def pair(fabric: Fabric) -> Pair:
    """`a` on h1 and `b` on h2."""
    a = fabric.container("h1", "red", "front", "a", "10.1.0.10")
    b = fabric.container("h2", "red", "front", "b", "10.1.0.11")
    assert a.ping(b.ip) == 3
    return a, b


def test_a_killed_agent_disturbs_nobody_and_changes_nothing_when_it_is_back(
    fabric: Fabric, pair: Pair
) -> None:
    a, b = pair
    flows = fabric.flows(a.host)

    with pinging(a, b.ip) as lost, pinging(b, a.ip) as lost_back:
        for _ in range(3):
            a.host.kill("agent")
            a.host.start("agent")
            assert agent_state(a.host)["flow_mods_sent"] == 0

    assert (lost, lost_back) == ([], [])
    assert fabric.flows(a.host) == flows


def test_the_database_may_be_away(fabric: Fabric, pair: Pair) -> None:
    """Traffic and DHCP go on without it; the agent follows again when it is back."""
    a, b = pair
    host = a.host
    flows = fabric.flows(host)

    with pinging(a, b.ip) as lost:
        fabric.lab.ctl.kill("fabric")
        said = fabric.refused("nvctl port list")
        assert "does not answer" in said
        ask = ["busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-s", "/bin/true"]
        assert "lease of 10.1.0.10 obtained" in host.run(ask, netns=a.netns).stderr
        fabric.lab.ctl.start("fabric")
        fabric("nvctl network set front -t red --label db=back --wait")

    assert lost == []
    assert fabric.flows(host) == flows
    container = fabric.container("h2", "red", "front", "after")
    assert a.ping(container.ip) == 3
    fabric.remove(container)
