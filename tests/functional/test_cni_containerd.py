"""Pods of containerd in tenant networks, made and removed as a kubelet does it.

Every test takes its pods away, and of what `nothing_left` looks at nothing may be left.
"""

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address, ip_network

import pytest

from lab.waiting import until
from tests.functional.runtimes import conflist, plugin
from tests.functional.runtimes.cluster import TENANT, Nodes, fetch, joins, nodes_with_containerd
from tests.functional.runtimes.containerd import CTR
from tests.functional.runtimes.cri import CriError
from tests.functional.runtimes.images import BUSYBOX
from tests.functional.runtimes.leftovers import nothing_left

pytestmark = pytest.mark.functional

PODS, GRE = ip_network("10.244.0.0/16"), ip_network("10.245.0.0/24")
NETWORKS = {
    "pods": f"--cidr {PODS} --host-access",
    "gre": f"--cidr {GRE} --overlay gre",
    "six": "--cidr fd00:246::/64 --host-access",
    "dual": "--cidr 10.247.0.0/24 --cidr fd00:247::/64 --host-access",
}
HANDLERS = {
    **{network: joins(network) for network in NETWORKS if network != "pods"},
    "mistaken": conflist.conflist("mistaken", conflist.virtkit(tenant=TENANT, netwrok="pods")),
    "nowhere": joins("nowhere"),
}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    name, directory = f"test-containerd-{os.getpid()}", tmp_path_factory.mktemp("images")
    with nodes_with_containerd(name, directory, NETWORKS, HANDLERS) as nodes:
        yield nodes


@pytest.fixture(autouse=True)
def all_is_as_before(nodes: Nodes) -> Iterator[None]:
    with nodes.as_before():
        yield


@pytest.mark.parametrize("handler", ["", "gre"])
def test_pods_on_two_hosts_reach_each_other_with_the_first_packet(
    nodes: Nodes, handler: str
) -> None:
    """Without a handler: what `nvctl cni install` writes, the network `pods` on VXLAN."""
    a, b = nodes.h1.run_pod("a", handler=handler), nodes.h2.run_pod("b", handler=handler)

    assert b.answers_first_ping_to(a.ip)
    assert a.answers_first_ping_to(b.ip)


def test_a_pod_is_reached_as_soon_as_it_is_there(nodes: Nodes) -> None:
    """Also by who was there before, and knew nothing of it."""
    first = nodes.h1.run_pod("first")

    for number in range(4):
        late = nodes.h2.run_pod(f"late-{number}")
        assert first.answers_first_ping_to(late.ip), f"pod {number} is not reached"


def test_a_pods_address_is_its_ports_and_the_port_says_whose_it_is(nodes: Nodes) -> None:
    pod = nodes.h1.run_pod("web")

    port = nodes.cluster.port_of("web")

    assert pod.ips == tuple(port["addresses"])
    assert ip_address(pod.ip) in PODS
    assert (port["network"], port["host"], port["kind"]) == ("pods", "h1", "container")
    assert port["labels"] == {"container": pod.sandbox, "pod": "web", "pod-namespace": "default"}
    show = ["ip", "-j", "link", "show", "eth0"]
    (link,) = json.loads(nodes.h1.host.run(show, netns=pod.netns_name).stdout)
    network = nodes.cluster.fabric(f"nvctl network get pods -t {TENANT}")
    assert (link["address"], link["mtu"]) == (port["mac"], network["mtu"])


def test_ten_pods_at_once_are_ten_places(nodes: Nodes) -> None:
    with ThreadPoolExecutor(10) as pool:
        made = [
            pool.submit(runtime.run_pod, f"{runtime.host.name}-{number}")
            for number in range(5)
            for runtime in (nodes.h1, nodes.h2)
        ]
        pods = [one.result() for one in made]

    assert len({pod.ip for pod in pods}) == 10
    assert all(pods[0].answers_first_ping_to(pod.ip) for pod in pods[1:])


def test_a_second_network_is_joined_as_multus_does_it(nodes: Nodes) -> None:
    """The program is called once more for the pod, with another interface name and conflist."""
    a, b = nodes.h1.run_pod("a"), nodes.h2.run_pod("b")
    config, results, about = HANDLERS["gre"], {}, {}

    for pod in (a, b):
        about[pod] = plugin.Attachment(container=pod.sandbox, netns=pod.netns, interface="net1")
        results[pod] = plugin.call(pod.runtime.host, "ADD", config, about[pod])
    second = results[b]["ips"][0]["address"].partition("/")[0]

    assert ip_address(second) in GRE
    assert a.answers_first_ping_to(second)
    assert a.answers_first_ping_to(b.ip)
    assert a.run("ip", "-4", "route").count("default") == 1
    for pod in (a, b):
        for verb in ("CHECK", "DEL"):
            added = {"prevResult": results[pod]}
            plugin.call(pod.runtime.host, verb, config, about[pod], added)
    assert not a.answers_first_ping_to(second)
    assert a.answers_first_ping_to(b.ip)


# IPv6


def test_a_pod_may_have_ipv6_alone_or_both(nodes: Nodes) -> None:
    """The runtime lists both, IPv4 first, as is its default."""
    only = [runtime.run_pod("only", handler="six") for runtime in (nodes.h1, nodes.h2)]
    both = [runtime.run_pod("both", handler="dual") for runtime in (nodes.h1, nodes.h2)]

    for pod in only:
        assert [ip_address(ip).version for ip in pod.ips] == [6]
    for pod in both:
        assert [ip_address(ip).version for ip in pod.ips] == [4, 6]
    assert only[0].answers_first_ping_to(only[1].ip)
    assert all(both[0].answers_first_ping_to(ip) for ip in both[1].ips)


def test_a_host_reaches_a_pod_over_ipv6(nodes: Nodes) -> None:
    pod = nodes.h1.run_pod("probed", handler="six")
    pod.serve(8080, "healthy")

    assert fetch(nodes.h1.host, f"http://[{pod.ip}]:8080/") == "healthy"


# The host


def test_a_host_reaches_its_own_pod_as_a_kubelets_probe_does(nodes: Nodes) -> None:
    pod = nodes.h1.run_pod("probed")
    pod.serve(8080, "healthy")

    assert fetch(nodes.h1.host, f"http://{pod.ip}:8080/", timeout_s=1) == "healthy"


def test_a_pod_reaches_its_host_and_other_hosts(nodes: Nodes) -> None:
    pod = nodes.h1.run_pod("asking")

    assert pod.answers_first_ping_to(nodes.h1.host.address)
    assert pod.answers_first_ping_to(nodes.h2.host.address)


def test_a_pod_reaches_the_outside_in_its_hosts_name(nodes: Nodes) -> None:
    """Beyond the hosts nobody knows pods' addresses, so that answers must find the host."""
    pod = nodes.h1.run_pod("leaving")
    serve = """
        import socket, sys
        with socket.create_server((sys.argv[1], 7777)) as server:
            server.settimeout(10)
            print("listening", flush=True)
            stream, (peer, _) = server.accept()
            stream.sendall(peer.encode())
            stream.close()
    """
    ctl = nodes.lab.ctl
    program = [sys.executable, "-c", textwrap.dedent(serve), ctl.address]
    with ctl.popen(program, stdout=-1, text=True) as outside:
        assert outside.stdout is not None
        assert outside.stdout.readline() == "listening\n"

        seen = pod.run("nc", "-w", "5", ctl.address, "7777")

    assert seen == nodes.h1.host.address


# What goes wrong is said


def test_a_mistake_in_the_conflist_is_told_to_the_kubelet(nodes: Nodes) -> None:
    with pytest.raises(CriError) as refused:
        nodes.h1.run_pod("never", handler="mistaken")

    assert "network configuration mistaken: key 'netwrok' is unknown" in str(refused.value)


def test_a_network_that_is_not_there_is_told_to_the_kubelet(nodes: Nodes) -> None:
    with pytest.raises(CriError) as refused:
        nodes.h1.run_pod("never", handler="nowhere")

    assert re.search(r"network nowhere\b.*nvctl network", str(refused.value)), refused.value


# Without a kubelet


def test_ctr_run_joins_the_network_and_leaves_it(nodes: Nodes) -> None:
    """`ctr` names no namespace when it takes the container away."""
    peer = nodes.h2.run_pod("peer")
    with nothing_left(nodes.lab):
        run = [*CTR, "run", "--rm", "--cni", "--snapshotter", "native", BUSYBOX, "by-hand"]
        said = nodes.h1.host.run([*run, "ping", "-c", "1", "-W", "1", peer.ip]).stdout

    assert " 1 packets received" in said


def test_a_node_is_ready_once_virtkit_is_installed(nodes: Nodes) -> None:
    cri, host = nodes.h1.cri, nodes.h1.host
    host.stop("containerd")
    host.run(["nvctl", "cni", "uninstall"])
    with ExitStack() as stack:
        stack.callback(host.run, ["nvctl", "cni", "install"])
        host.start("containerd")
        assert cri.conditions() == {"RuntimeReady": True, "NetworkReady": False}

        host.run(["nvctl", "cni", "install", "--wait-for-agent", "20"])

        until(
            lambda: cri.conditions()["NetworkReady"],
            what="containerd has not seen the conflist",
            timeout_s=10,
        )
