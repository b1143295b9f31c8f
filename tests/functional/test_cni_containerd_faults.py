"""What becomes of pods when containerd or the agent ends, at any moment: they, or nothing.

Every test takes its pods away, and of what `nothing_left` looks at nothing may be left.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from lab.host import Host
from lab.waiting import until
from tests.functional.runtimes import plugin
from tests.functional.runtimes.cluster import Nodes, joins, nodes_with_containerd
from tests.functional.runtimes.containerd import Containerd, Pod
from tests.functional.runtimes.cri import CriError
from tests.functional.runtimes.leftovers import nothing_left

pytestmark = pytest.mark.functional

NETWORKS = {"pods": "--cidr 10.244.0.0/16 --host-access"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    name, directory = f"test-pod-faults-{os.getpid()}", tmp_path_factory.mktemp("images")
    with nodes_with_containerd(name, directory, NETWORKS, {}) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def all_is_as_before(nodes: Nodes) -> Iterator[None]:
    with nodes.as_before():
        yield


def test_stopping_a_pod_twice_is_stopping_it_once(nodes: Nodes) -> None:
    cri = nodes.h1.cri
    with nothing_left(nodes.lab):
        pod = nodes.h1.run_pod("short")

        cri.stop_sandbox(pod.sandbox)
        assert nodes.cluster.ports() == []
        cri.stop_sandbox(pod.sandbox)

        cri.remove_sandbox(pod.sandbox)
        cri.remove_sandbox(pod.sandbox)


def test_pods_outlive_containerd_and_are_removed_by_the_next(nodes: Nodes) -> None:
    host = nodes.h1.host
    with nothing_left(nodes.lab):
        here, there = nodes.h1.run_pod("here"), nodes.h2.run_pod("there")

        host.stop("containerd")
        assert there.answers_first_ping_to(here.ip)
        host.start("containerd")

        assert here.answers_first_ping_to(there.ip)
        here.remove()
        there.remove()


def test_containerd_killed_while_it_makes_pods_leaves_what_its_clean_up_removes(
    nodes: Nodes,
) -> None:
    """A kubelet removes the pods that are listed; what containerd has forgotten, GC finds."""
    host = nodes.h1.host
    moments = {
        "a plugin has been started": lambda: _is_running(host, "virtkit"),
        "a pod has an address": nodes.cluster.ports,
        "a pod is listed": nodes.h1.cri.sandboxes,
    }
    with nothing_left(nodes.lab), _forgotten_namespaces(host):
        for turn, (moment, has_come) in enumerate(moments.items()):
            with ThreadPoolExecutor(4) as pool:
                for number in range(4):
                    pool.submit(_run_pod_unless_killed, nodes.h1, f"cut-{turn}-{number}")
                until(has_come, what=f"not seen: {moment}", timeout_s=20)
                host.kill("containerd")
            host.start("containerd")
            until(lambda: not _is_running(host, "virtkit"), what="a plugin stays", timeout_s=35)
        assert nodes.cluster.ports()

        nodes.h1.remove_all()
        newer = {**joins("pods"), "name": "virtkit", "cniVersion": "1.1.0"}
        plugin.call(host, "GC", newer, **{"cni.dev/valid-attachments": []})

        assert nodes.cluster.ports() == []


def test_pods_are_removed_while_the_agent_is_away(nodes: Nodes) -> None:
    host = nodes.h1.host
    with nothing_left(nodes.lab):
        pods = [nodes.h1.run_pod(f"old-{number}") for number in range(2)]
        host.stop("agent")

        for pod in pods:
            pod.remove()

        assert nodes.h1.cri.sandboxes() == []
        assert len(nodes.cluster.ports()) == 2
        host.start("agent")
        until(lambda: nodes.cluster.ports() == [], what="ports are left", timeout_s=10)


def test_an_address_that_a_removed_pod_had_is_free_as_soon_as_the_agent_is_back(
    nodes: Nodes,
) -> None:
    """Before it attaches anything, the agent makes up for what was asked of it meanwhile."""
    host = nodes.h1.host
    pod = nodes.h1.run_pod("pod")
    config = joins("pods", ips=["10.244.7.7"])
    about = plugin.Attachment(container=pod.sandbox, netns=pod.netns, interface="net1")
    other = plugin.Attachment(container=pod.sandbox, netns=pod.netns, interface="net2")
    plugin.call(host, "ADD", config, about)
    host.kill("agent")
    plugin.call(host, "DEL", config, about)
    host.start("agent")

    again = plugin.call(host, "ADD", config, other)

    assert again["ips"][0]["address"] == "10.244.7.7/16"
    plugin.call(host, "DEL", config, other)


def test_the_agent_killed_while_pods_are_made_leaves_no_pod_half_made(nodes: Nodes) -> None:
    host = nodes.h1.host
    peer = nodes.h2.run_pod("peer")
    made: list[Pod] = []

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(nodes.h1.run_pod, f"new-{number}") for number in range(8)]
        for _ in range(2):
            time.sleep(0.3)
            host.kill("agent")
            host.start("agent")
        for one in asked:
            with suppress(CriError):
                made.append(one.result())

    assert all(peer.answers_first_ping_to(pod.ip) for pod in made)
    known = {pod.sandbox for pod in made}
    for sandbox in nodes.h1.cri.sandboxes():
        if sandbox.id not in known:
            nodes.h1.cri.stop_sandbox(sandbox.id)
            nodes.h1.cri.remove_sandbox(sandbox.id)
    until(
        lambda: len(nodes.cluster.ports()) == len(made) + 1,
        what="pods that were refused have left ports",
        timeout_s=10,
    )


def test_without_an_agent_a_pod_is_refused_and_can_be_had_later(nodes: Nodes) -> None:
    host = nodes.h1.host
    host.stop("agent")
    with nothing_left(nodes.lab):
        with pytest.raises(CriError) as refused:
            nodes.h1.run_pod("early")
        nodes.h1.remove_all()
        host.start("agent")

    assert "/run/virtkit/cni.sock" in str(refused.value)
    assert nodes.h1.run_pod("early").ips


def _run_pod_unless_killed(runtime: Containerd, name: str) -> None:
    with suppress(CriError):
        runtime.run_pod(name)


def _is_running(host: Host, program: str) -> bool:
    return host.run(["pgrep", "-x", program], check=False).returncode == 0


@contextmanager
def _forgotten_namespaces(host: Host) -> Iterator[None]:
    """Remove the network namespaces that a killed containerd has forgotten; they are its own."""
    directory = host.path("/run/netns")
    before = set(directory.iterdir())
    yield
    for file in set(directory.iterdir()) - before:
        host.delete_netns(file.name)
