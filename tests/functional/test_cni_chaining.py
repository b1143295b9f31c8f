"""Plugins that follow virtkit in a conflist: Debian's portmap, bandwidth and tuning.

Every test takes its pods away, and of what `nothing_left` looks at nothing may be left.
"""

import os
import time
from collections.abc import Iterator

import pytest

from tests.functional.runtimes import conflist
from tests.functional.runtimes.cluster import Nodes, fetch, joins, nodes_with_containerd
from tests.functional.runtimes.conflist import BANDWIDTH, PORTMAP
from tests.functional.runtimes.cri import CriError
from tests.functional.runtimes.leftovers import nothing_left

pytestmark = pytest.mark.functional

NETWORKS = {"pods": "--cidr 10.244.0.0/24 --host-access"}
EIGHT_MEGABIT_IN = {"ingressRate": 8_000_000, "ingressBurst": 8_000_000}
EIGHT_MEGABIT = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "8M"}
HANDLERS = {
    "portmap": joins("pods", PORTMAP),
    "bandwidth": joins("pods", BANDWIDTH),
    "limited": joins("pods", {"type": "bandwidth", **EIGHT_MEGABIT_IN}),
    "tuning": joins("pods", conflist.tuning(net_core_somaxconn="1234")),
    "all": joins("pods", PORTMAP, BANDWIDTH, conflist.tuning(net_core_somaxconn="1234")),
    "broken": joins("pods", PORTMAP, conflist.tuning(net_core_nothing="1")),
}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    name, directory = f"test-chaining-{os.getpid()}", tmp_path_factory.mktemp("images")
    with nodes_with_containerd(name, directory, NETWORKS, HANDLERS) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def all_is_as_before(nodes: Nodes) -> Iterator[None]:
    with nodes.as_before():
        yield


@pytest.mark.parametrize("handler", ["portmap", "all", ""])
def test_a_host_port_is_reached_on_the_host_and_from_another(nodes: Nodes, handler: str) -> None:
    """Without a handler: what `nvctl cni install` writes."""
    pod = nodes.h1.run_pod("web", handler=handler, host_ports={8080: 80})
    pod.serve(80, "forwarded")
    url = f"http://{nodes.h1.host.address}:8080/"

    for host in nodes.lab.hosts:
        assert fetch(host, url) == "forwarded", host.name


def test_a_pod_reaches_a_host_port_of_another_pod(nodes: Nodes) -> None:
    web = nodes.h1.run_pod("web", host_ports={8080: 80})
    web.serve(80, "forwarded")

    for runtime in (nodes.h1, nodes.h2):
        pod = runtime.run_pod("asking")
        said = pod.run("wget", "-qO-", f"http://{nodes.h1.host.address}:8080/")
        assert said == "forwarded\n", runtime.host.name


def test_a_pod_gets_no_more_than_its_bandwidth(nodes: Nodes) -> None:
    """8 Mbit/s is a megabyte a second; the first of them comes faster."""
    slow, fast = nodes.h1.run_pod("slow", handler="limited"), nodes.h2.run_pod("fast")
    fast.serve(80, "small")
    fast.run("truncate", "-s", "4000000", "/tmp/www/large")

    began = time.monotonic()
    got = slow.run("sh", "-c", f"wget -qO- http://{fast.ip}/large | wc -c", timeout_s=20)
    took_s = time.monotonic() - began

    assert int(got) == 4_000_000
    assert took_s > 2.5


def test_a_pods_annotation_limits_its_bandwidth(nodes: Nodes) -> None:
    """Only looked up: containerd lets the first 512 MB pass as they come."""
    before = _queueing(nodes)

    nodes.h1.run_pod("slow", handler="bandwidth", annotations=EIGHT_MEGABIT)

    assert "rate 8Mbit" not in before
    assert _queueing(nodes).count("rate 8Mbit") == 2


def test_a_sysctl_is_the_pods_own(nodes: Nodes) -> None:
    sysctl = ["sysctl", "-n", "net.core.somaxconn"]
    before = nodes.h1.host.run(sysctl).stdout

    pod = nodes.h1.run_pod("tuned", handler="tuning")

    assert pod.run(*sysctl) == "1234\n"
    assert nodes.h1.host.run(sysctl).stdout == before != "1234\n"


def test_when_a_later_plugin_fails_nothing_is_left_of_ours(nodes: Nodes) -> None:
    with nothing_left(nodes.lab):
        with pytest.raises(CriError) as refused:
            nodes.h1.run_pod("never", handler="broken")

        nodes.h1.remove_all()

    assert "net/core/nothing" in str(refused.value)


def test_what_all_of_them_made_goes_with_the_pod(nodes: Nodes) -> None:
    """Links and port forwardings are among what `nothing_left` looks at."""
    with nothing_left(nodes.lab):
        pod = nodes.h1.run_pod(
            "web", handler="all", host_ports={8080: 80}, annotations=EIGHT_MEGABIT
        )
        peer = nodes.h2.run_pod("peer", handler="all")
        assert peer.answers_first_ping_to(pod.ip)

        pod.remove()
        peer.remove()


def _queueing(nodes: Nodes) -> str:
    return nodes.h1.host.run(["tc", "qdisc", "show"]).stdout
