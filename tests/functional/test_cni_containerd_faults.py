"""What becomes of pods when containerd or the agent ends, at any moment: they, or nothing.

Every test takes its pods away, and of what `nothing_left` looks at nothing may be left.
"""

import os
import time
from collections.abc import Callable, Iterator
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
        assert nodes.attached() == 0
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
    moments: dict[str, Callable[[], int]] = {
        "a plugin has been started": lambda: _running(host, "virtkit"),
        "a pod is attached": nodes.attached,
        "a pod is listed": lambda: len(nodes.h1.cri.sandboxes()),
    }
    with nothing_left(nodes.lab), _forgotten_namespaces(host):
        for moment, count in moments.items():
            _kill_containerd_while_it_makes_pods(nodes.h1, moment, count)
            host.start("containerd")
            until(lambda: not _running(host, "virtkit"), what="a plugin stays", timeout_s=35)
        assert nodes.attached() > 0

        nodes.h1.remove_all()
        newer = {**joins("pods"), "name": "virtkit", "cniVersion": "1.1.0"}
        plugin.call(host, "GC", newer, added={"cni.dev/valid-attachments": []})

        assert nodes.attached() == 0


def test_a_node_that_lost_its_power_removes_the_pods_that_it_had(nodes: Nodes) -> None:
    """Processes, namespaces and links are gone; containerd and the fabric remember them."""
    host = nodes.h1.host
    with nothing_left(nodes.lab):
        pods = [nodes.h1.run_pod(f"lost-{number}") for number in range(2)]
        host.kill("containerd")
        for pod in pods:
            for pid in host.run(["ip", "netns", "pids", pod.netns_name]).stdout.split():
                host.run(["kill", "-9", pid], check=False)
            host.delete_netns(pod.netns_name)
        host.start("containerd")

        nodes.h1.remove_all()


def test_pods_are_removed_while_the_agent_is_away(nodes: Nodes) -> None:
    host = nodes.h1.host
    with nothing_left(nodes.lab):
        pods = [nodes.h1.run_pod(f"old-{number}") for number in range(2)]
        host.stop("agent")

        for pod in pods:
            pod.remove()

        assert nodes.h1.cri.sandboxes() == []
        assert nodes.attached() == 2
        host.start("agent")
        until(lambda: nodes.attached() == 0, what="something is attached", timeout_s=10)


@pytest.mark.parametrize(("host", "daemon"), [("ctl", "fabric"), ("h1", "ovs-vswitchd")])
def test_pods_are_removed_while_what_the_agent_needs_is_away(
    nodes: Nodes, host: str, daemon: str
) -> None:
    with nothing_left(nodes.lab):
        pod = nodes.h1.run_pod("old")
        nodes.lab.host(host).kill(daemon)

        pod.remove()

        assert nodes.h1.cri.sandboxes() == []
        nodes.lab.host(host).start(daemon)
        until(lambda: nodes.attached() == 0, what="something is attached", timeout_s=15)


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
        lambda: nodes.attached() == len(made) + 1,
        what="pods that were refused are attached",
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


def _kill_containerd_while_it_makes_pods(
    runtime: Containerd, moment: str, count: Callable[[], int]
) -> None:
    """It gets as far as to what is counted at this moment."""
    before = count()
    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(_run_pod_unless_killed, runtime, f"{moment}-{number}".replace(" ", "-"))
        until(lambda: count() > before, what=f"not seen: {moment}", timeout_s=20)
        runtime.host.kill("containerd")


def _run_pod_unless_killed(runtime: Containerd, name: str) -> None:
    with suppress(CriError):
        runtime.run_pod(name)


def _running(host: Host, program: str) -> int:
    """How many processes of this name there are."""
    return len(host.run(["pgrep", "-x", program], check=False).stdout.split())


@contextmanager
def _forgotten_namespaces(host: Host) -> Iterator[None]:
    """Remove the network namespaces that a killed containerd has forgotten; they are its own."""
    directory = host.path("/run/netns")
    before = set(directory.iterdir())
    yield
    for file in set(directory.iterdir()) - before:
        host.delete_netns(file.name)
