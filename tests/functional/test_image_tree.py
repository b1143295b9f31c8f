"""The image's file tree, used: every script that the chart's containers run, run as they run it.

There is no cluster here. Two lab hosts are the nodes; what a container would run is taken from
the rendered chart and run on them from the tree, at the paths that the container would see.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from lab import underlay
from lab.daemon import Daemon
from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tests import chart
from tests.functional.chart_files import confined, environment, image_tree, node_files, script
from tests.functional.runtimes import conflist, images
from tests.functional.runtimes.cluster import fetch
from tests.functional.runtimes.containerd import Containerd
from tests.functional.tenants import Container, Fabric

pytestmark = [pytest.mark.functional, pytest.mark.timeout(600)]

# Hosts of a lab have the userspace datapath, and a database in `ctl` at the usual port.
VALUES = chart.merged(chart.SMALLEST, {"agent": {"datapath": "auto"}, "database": {"port": 6640}})
DATABASE = f"tcp:{underlay.CTL_ADDRESS}:6640"


def container_of(kind: str, ending: str, name: str, values: dict[str, Any] = VALUES) -> Any:
    return chart.container(chart.one(chart.manifests(values), kind, ending), name)


@pytest.fixture(scope="module")
def tree() -> Path:
    return image_tree()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts and a database. On h1 all that runs is run as the chart has it, with the rights
    that it has there."""
    with Lab.up(f"test-image-tree-{os.getpid()}", hosts=2) as lab:
        h1 = lab.host("h1")
        # As systemd has it on a node: mounts are seen in mount namespaces that ask for them.
        h1.run(["mount", "--make-rshared", "/"])
        for name in ("agent", "ovs-vswitchd", "ovsdb-server"):
            assert h1.stop(name)
        h1.path("/etc/openvswitch/conf.db").unlink()
        h1.path("/etc/virtkit/virtkit.toml").unlink()
        node = chart.one(chart.manifests(VALUES), "DaemonSet", "-node")
        switch = chart.one(chart.manifests(VALUES), "DaemonSet", "-openvswitch")
        path = environment()
        for name, runs in (
            ("ovsdb-server", chart.container(switch, "ovsdb-server")),
            ("ovs-vswitchd", chart.container(switch, "ovs-vswitchd")),
            ("agent", chart.container(node, "agent")),
        ):
            told = {variable["name"]: "" for variable in runs.get("env", ())}
            # What kubelet would say.
            told |= {
                key: value
                for key, value in {
                    "VIRTKIT_DB": DATABASE,
                    "VIRTKIT_HOST": "h1",
                    "VIRTKIT_TUNNEL_IP": h1.address,
                }.items()
                if key in told
            }
            h1.daemons[name] = replace(
                h1.daemons[name],
                argv=tuple(confined(runs)),
                environment=path | told,
                before=_nothing,
            )
        for name in ("ovsdb-server", "ovs-vswitchd", "agent"):
            h1.start(name)
        yield lab


def _nothing(_: Host) -> None:
    """The scripts prepare all themselves."""


@pytest.fixture(scope="module")
def h1(lab: Lab) -> Host:
    return lab.host("h1")


@pytest.fixture(scope="module")
def fabric(lab: Lab) -> Fabric:
    """With the network that the chart's Job makes."""
    run_job(lab)
    return Fabric(lab)


def run_job(lab: Lab, values: dict[str, Any] = VALUES) -> list[str]:
    """What the Job's containers print, one after the other, on the database of the lab."""
    job = chart.one(chart.manifests(values), "Job")
    return [
        lab.ctl.run(
            confined(runs),
            environment={**environment(), "VIRTKIT_DB": DATABASE, "PATIENCE": "30"},
        ).stdout
        for _, runs in chart.containers([job])
    ]


# The tree


def test_its_commands_run(tree: Path) -> None:
    for program, option, says in (
        ("usr/bin/nvctl", "--help", "Tenant networks"),
        ("usr/bin/svctl", "--help", "Tenant disks"),
        ("usr/libexec/virtkit/virtkit-cni", "--version", "virtkit-cni 0.1.0"),
    ):
        done = subprocess.run(
            [tree / program, option], env={}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert says in done.stdout


def test_its_packages_are_complete(tree: Path, tmp_path: Path) -> None:
    """Of Debian's packages they need those of the Dockerfile; of this checkout, nothing."""
    debian = tmp_path / "dist-packages"
    debian.mkdir()
    for name in ("ovs", "sortedcontainers", "nftables"):
        (debian / name).symlink_to(Path("/usr/lib/python3/dist-packages") / name)
    program = """
import sys
sys.path[:0] = sys.argv[1:]
import netvirt.agent.agent, netvirt.cli, netvirt.backends.nftables
import ovs.json
from tenancy.backends import codec
codec.schema_text()
assert ovs.json.PARSER == ovs.json.PARSER_C, ovs.json.PARSER
print(netvirt.__path__[0])
"""
    packages = tree / "usr" / "lib" / "virtkit"
    done = subprocess.run(
        # -S: no packages but those named.
        ["/usr/bin/python3", "-S", "-sP", "-W", "ignore", "-c", program, packages, debian],
        env={},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{packages}/netvirt\n"
    assert not (packages / "lab").exists()


def test_it_is_not_laid_out_over_something(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    layout = Path(__file__).parents[2] / "packaging" / "image" / "layout"

    done = subprocess.run([layout, tmp_path], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert done.stderr == f"layout: {tmp_path} is not empty. Name another directory.\n"
    assert [one.name for one in tmp_path.iterdir()] == ["precious"]


# What the chart puts on a node


def test_a_node_gets_what_nvctl_installs(tmp_path: Path) -> None:
    """The chart's defaults are those of the command, to the byte."""
    by_chart, by_hand = tmp_path / "chart", tmp_path / "hand"
    options = [f"--bin-dir={by_hand}/opt/cni/bin", f"--conf-dir={by_hand}/etc/cni/net.d"]
    program = image_tree() / "usr" / "libexec" / "virtkit" / "virtkit-cni"

    states = node_files(VALUES, by_chart)
    subprocess.run(
        [image_tree() / "usr/bin/nvctl", "cni", "install", *options, f"--program={program}"],
        check=True,
        capture_output=True,
        timeout=60,
    )

    assert states == {
        "/opt/cni/bin/virtkit": "written",
        "/etc/cni/net.d/10-virtkit.conflist": "written",
    }
    for name in states:
        assert (tmp_path / f"chart{name}").read_bytes() == (tmp_path / f"hand{name}").read_bytes()


def test_values_are_found_in_the_conflist(tmp_path: Path) -> None:
    (tmp_path / "cni" / "bin").mkdir(parents=True)
    for plugin in ("tuning", "portmap"):
        (tmp_path / "cni" / "bin" / plugin).touch()
    values = {
        "tenant": {"name": "red"},
        "network": {"name": "front"},
        "cni": {
            "binDir": "/cni/bin",
            "confDir": "/cni/conf",
            "conflist": "05-red.conflist",
            "name": "red-front",
            "cniVersion": "1.1.0",
            "chain": ["tuning", "portmap"],
            "sysctls": {"net.core.somaxconn": "512"},
            "allow": [],
        },
    }

    assert list(node_files(values, tmp_path)) == ["/cni/bin/virtkit", "/cni/conf/05-red.conflist"]

    assert json.loads((tmp_path / "cni" / "conf" / "05-red.conflist").read_text()) == {
        "cniVersion": "1.1.0",
        "name": "red-front",
        "plugins": [
            {
                "type": "virtkit",
                "tenant": "red",
                "network": "front",
                "capabilities": {"ips": True, "mac": True},
                "allow": [],
            },
            {"type": "tuning", "sysctl": {"net.core.somaxconn": "512"}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


# The fabric database


def test_the_database_is_served_and_probed(lab: Lab) -> None:
    """By the chart's own command, from the file that is there; probed by its probe."""
    runs = container_of("StatefulSet", "-database", "database")
    argv = [word.replace("$(NODE_IP)", underlay.CTL_ADDRESS) for word in confined(runs)]
    lab.ctl.daemons["fabric"] = replace(
        lab.ctl.daemons["fabric"], argv=tuple(argv), before=_nothing, environment=environment()
    )

    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert runs[probe]["exec"]["command"] == ["/usr/libexec/virtkit/probe-database"]

    def answers() -> bool:
        return lab.ctl.run([script("probe-database")], check=False).returncode == 0

    assert lab.ctl.stop("fabric")
    assert not answers()
    lab.ctl.start("fabric")
    assert answers()
    lab.ctl.pause("fabric")
    try:
        assert not answers()
    finally:
        lab.ctl.resume("fabric")
    assert lab.ctl.run(["nvctl", "--db", DATABASE, "db", "status"]).returncode == 0


# The first network


def test_the_job_makes_tenant_and_network_once(lab: Lab, fabric: Fabric) -> None:
    network = fabric("nvctl network get pods -t default")

    assert run_job(lab) == ["tenant default is there.\n", "network pods is there.\n"]

    assert fabric("nvctl network get pods -t default") == network
    assert network["cidr"] == ["10.244.0.0/16"]
    assert network["host_access"] is True
    assert network["mtu"] == 1450


def test_jobs_at_the_same_time_make_one(lab: Lab, fabric: Fabric) -> None:
    values = chart.merged(
        VALUES,
        {"tenant": {"name": "rush", "quota": {"ports": 12}}, "network": {"cidrs": ["10.9.0.0/24"]}},
    )
    tenant, network = (
        confined(runs) for _, runs in chart.containers([chart.one(chart.manifests(values), "Job")])
    )
    for argv in (tenant, network):
        together = [
            lab.ctl.popen(
                argv,
                environment={**environment(), "VIRTKIT_DB": DATABASE},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for process in together:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said

    assert [one["name"] for one in fabric("nvctl network list -t rush")] == ["pods"]
    assert fabric("nvctl tenant get rush")["quota"]["ports"]["limit"] == 12
    fabric.remove_tenant("rush")


def test_the_job_waits_for_the_database_and_gives_up(lab: Lab, fabric: Fabric) -> None:
    def job(patience_s: int) -> "subprocess.Popen[str]":
        return lab.ctl.popen(
            [script("ensure"), "tenant", "late"],
            environment={
                **environment(),
                "VIRTKIT_DB": DATABASE,
                "PATIENCE": str(patience_s),
            },
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    assert lab.ctl.stop("fabric")
    impatient, patient = job(1), job(60)
    _, said = impatient.communicate(timeout=30)
    lab.ctl.start("fabric")
    patient.communicate(timeout=60)

    assert impatient.returncode == 1
    assert said.endswith("tenant late: gave up waiting for the fabric database after 1 s.\n")
    assert patient.returncode == 0
    fabric.do("nvctl tenant delete late --yes")


@pytest.mark.usefixtures("fabric")
def test_a_network_that_cannot_be_made_is_said_not_hidden(lab: Lab) -> None:
    done = lab.ctl.run(
        [script("ensure"), "network", "bad", "--tenant=default", "--cidr=banana"],
        environment={**environment(), "VIRTKIT_DB": DATABASE},
        check=False,
    )

    assert done.returncode == 1
    assert "network bad: 'banana' is not a CIDR" in done.stderr


# Open vSwitch and the agent


@pytest.fixture(scope="module")
def pair(fabric: Fabric) -> tuple[Container, Container]:
    """A container on the chart's host, and one on an ordinary one."""
    fabric("nvctl tenant create red")
    fabric("nvctl network create front -t red --cidr 10.1.0.0/24")
    a, b = (fabric.container(host, "red", "front", host) for host in ("h1", "h2"))
    assert a.ping(b.ip) == 3
    return a, b


def vsctl(host: Host, *words: str) -> str:
    return host.run(["ovs-vsctl", "--timeout=5", *words]).stdout.strip()


def probes(host: Host, kind: str, ending: str, name: str) -> set[int]:
    """How the probes of a container end."""
    runs = container_of(kind, ending, name)
    ends = set()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, *words = runs[probe]["exec"]["command"]
        place = script(Path(program).name) if program.startswith("/usr/libexec") else program
        ends.add(host.run([place, *words], check=False, timeout_s=40).returncode)
    return ends


SWITCH = ("DaemonSet", "-openvswitch")


def test_a_switch_that_ends_is_back_with_its_flows(
    h1: Host, pair: tuple[Container, Container]
) -> None:
    """It waits for the agent before it forwards; and with the agent it does not wait for long."""
    assert probes(h1, *SWITCH, "ovs-vswitchd") == {0}
    assert h1.stop("ovs-vswitchd")
    assert 0 not in probes(h1, *SWITCH, "ovs-vswitchd")
    h1.stop("agent")

    # Without `after`, which changes the database and waits for the switch to have followed.
    h1.start("ovs-vswitchd")
    waits = vsctl(h1, "get", "Open_vSwitch", ".", "other_config")
    h1.start("agent")

    assert waits == '{flow-restore-wait="true"}'
    until(
        lambda: vsctl(h1, "get", "Open_vSwitch", ".", "other_config") == "{}",
        what="the switch is not told to go on",
        timeout_s=10,
    )
    a, b = pair
    until(lambda: a.ping(b.ip, count=1) == 1, what="no ping is answered", timeout_s=20)
    assert a.ping(b.ip) == 3
    assert probes(h1, *SWITCH, "ovs-vswitchd") == {0}


def test_a_switch_without_an_agent_does_not_wait_for_ever(
    h1: Host, pair: tuple[Container, Container]
) -> None:
    patient = h1.daemons["ovs-vswitchd"]
    h1.daemons["ovs-vswitchd"] = replace(
        patient, environment={**patient.environment, "VIRTKIT_FLOWS_PATIENCE": "2"}
    )
    try:
        assert h1.stop("agent")
        assert h1.stop("ovs-vswitchd")
        h1.start("ovs-vswitchd")
        until(
            lambda: vsctl(h1, "get", "Open_vSwitch", ".", "other_config") == "{}",
            what="the switch waits although nobody comes",
            timeout_s=10,
        )
    finally:
        h1.daemons["ovs-vswitchd"] = patient
        h1.start("agent")
    a, b = pair
    until(lambda: a.ping(b.ip, count=1) == 1, what="no ping is answered", timeout_s=20)


def test_the_database_of_the_switch_outlives_its_container(
    h1: Host, pair: tuple[Container, Container]
) -> None:
    """The userspace datapath stands still without it, see docs/kubernetes.md, and goes on."""
    before = vsctl(h1, "list-ports", "br-int")
    assert probes(h1, *SWITCH, "ovsdb-server") == {0}

    assert h1.stop("ovsdb-server")
    try:
        assert 0 not in probes(h1, *SWITCH, "ovsdb-server")
    finally:
        h1.start("ovsdb-server")

    assert vsctl(h1, "list-ports", "br-int") == before
    assert probes(h1, *SWITCH, "ovsdb-server") == {0}
    a, b = pair
    # The switch looks for its database every 8 s at least.
    until(lambda: a.ping(b.ip, count=1) == 1, what="no ping is answered", timeout_s=20)
    assert a.ping(b.ip) == 3


def test_an_open_vswitch_of_the_node_is_left_alone(lab: Lab) -> None:
    h2 = lab.host("h2")
    before = vsctl(h2, "show")

    done = h2.run(confined(container_of(*SWITCH, "ovsdb-server")), check=False)

    assert done.returncode == 1
    assert "one is running already" in done.stderr
    assert "openvswitch.enabled=false" in done.stderr
    assert vsctl(h2, "show") == before


AGENT = ("DaemonSet", "-node", "agent")


@pytest.mark.usefixtures("fabric")
def test_an_agent_is_probed(lab: Lab, h1: Host) -> None:
    def said(word: str) -> int:
        return h1.run([script("probe-agent"), word], check=False, timeout_s=40).returncode

    until(lambda: said("ready") == 0, what="the agent is not ready", timeout_s=20)
    assert probes(h1, *AGENT) == {0}
    # Without the database it cannot attach containers, and lives.
    assert lab.ctl.stop("fabric")
    try:
        until(lambda: said("ready") == 1, what="the agent does not notice", timeout_s=20)
        assert said("alive") == 0
    finally:
        lab.ctl.start("fabric")
    until(lambda: said("ready") == 0, what="the agent is not ready again", timeout_s=30)
    # One that hangs does not answer, one that has ended neither.
    h1.pause("agent")
    try:
        assert said("alive") == 1
    finally:
        h1.resume("agent")
    assert h1.stop("agent")
    assert said("alive") == 1
    h1.start("agent")
    until(lambda: said("ready") == 0, what="the agent is not ready again", timeout_s=20)


def test_commands_in_the_agents_container_know_who_they_are(h1: Host) -> None:
    """The script writes down what it was told."""
    done = h1.run([f"{image_tree()}/usr/bin/nvctl", "host", "get", "h1", "-o", "json"])

    assert json.loads(done.stdout)["tunnel_ip"] == h1.address


# The container runtime


@contextmanager
def keep_cni(
    h1: Host, values: dict[str, Any], *, remove: bool = False
) -> Iterator["subprocess.Popen[str]"]:
    """The chart's `cni` container on h1, ended by SIGTERM as kubelet ends it."""
    runs = container_of("DaemonSet", "-node", "cni", values)
    place = script("virtkit-cni")
    process = h1.popen(
        [*confined(runs), f"--program={place}"],
        environment={
            **environment(),
            "VIRTKIT_DB": DATABASE,
            "REMOVE_ON_EXIT": "true" if remove else "false",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
        process.terminate()
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_node_is_given_its_conflist_when_it_can_serve(h1: Host, fabric: Fabric) -> None:
    """Not before the network is there, nor before the agent; and it keeps it afterwards."""
    values = chart.merged(VALUES, {"tenant": {"name": "dawn"}})
    file = h1.path("/etc/cni/net.d/10-virtkit.conflist")
    program = h1.path("/opt/cni/bin/virtkit")
    assert h1.stop("agent")

    with keep_cni(h1, values) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(6)
        assert not program.exists()
        fabric("nvctl tenant create dawn")
        fabric("nvctl network create pods -t dawn --cidr 10.8.0.0/24")
        until(program.exists, what="no program is installed", timeout_s=20)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        assert not file.exists()

        h1.start("agent")
        until(file.exists, what="no conflist is written", timeout_s=20)

        # Somebody takes it away.
        written = file.read_bytes()
        file.unlink()
        until(file.exists, what="the conflist is not put back", timeout_s=30)
        assert file.read_bytes() == written
    assert file.exists()
    assert json.loads(written)["plugins"][0]["tenant"] == "dawn"

    program.unlink()
    with keep_cni(h1, values, remove=True):
        until(program.exists, what="no program is installed", timeout_s=20)
    assert not file.exists()
    assert not program.exists()
    fabric.remove_tenant("dawn")


def test_pods_of_a_real_runtime_use_what_the_chart_put_on_their_nodes(
    lab: Lab, fabric: Fabric, tmp_path: Path
) -> None:
    """Network by the Job, files by the `cni` container; on h1 switch and agent by the chart too."""
    archive = images.write_archive(tmp_path / "images.tar")
    pods = []
    for host in lab.hosts:
        conflist.install_reference_plugins(host)
        node_files(VALUES, host.path("/"), wait_for_agent=True)
        runtime = Containerd.install(host, archive)
        pods.append((runtime, runtime.run_pod(f"on-{host.name}")))
    try:
        (_, a), (_, b) = pods
        network = fabric("nvctl network get pods -t default")
        for pod, other in ((a, b), (b, a)):
            assert ip_address(pod.ip) in ip_network(network["cidr"][0])
            assert pod.answers_first_ping_to(other.ip)
        # As kubelet probes it, and the plugin that the conflist chains.
        plugins = json.loads(lab.host("h1").path("/etc/cni/net.d/10-virtkit.conflist").read_text())[
            "plugins"
        ]
        assert [plugin["type"] for plugin in plugins] == ["virtkit", "portmap"]
        a.serve(8080, "a pod")
        assert fetch(lab.host("h1"), f"http://{a.ip}:8080/") == "a pod"
    finally:
        for runtime, _ in pods:
            runtime.remove_all()


# Guarding the database


def test_containers_do_not_reach_the_database(h1: Host) -> None:
    """Through the gateway device. Other ports they do reach, and the host reaches this one."""
    port = "16640"
    guard = confined(container_of("DaemonSet", "-node", "guard", chart.SMALLEST))
    h1.run(guard)
    h1.run(guard)
    netns = "guarded"
    h1.add_netns(netns)
    h1.run(["ip", "link", "add", "vh0123456789a", "type", "veth", "peer", "eth0", "netns", netns])
    try:
        h1.run(["ip", "address", "add", "192.0.2.1/24", "dev", "vh0123456789a"])
        h1.run(["ip", "link", "set", "vh0123456789a", "up"])
        h1.run(["ip", "address", "add", "192.0.2.2/24", "dev", "eth0"], netns=netns)
        h1.run(["ip", "link", "set", "eth0", "up"], netns=netns)
        servers = [
            h1.popen(["python3", "-m", "http.server", number, "--bind", "192.0.2.1"],
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for number in (port, "16641")
        ]  # fmt: skip

        def reaches(number: str, netns: str | None = None) -> bool:
            program = "import socket, sys; socket.create_connection(('192.0.2.1', sys.argv[1]), 1)"
            argv = ["python3", "-c", program, number]
            return h1.run(argv, netns=netns, check=False).returncode == 0

        try:
            for number in (port, "16641"):
                until(lambda n=number: reaches(n), what="no server", timeout_s=10)
            assert not reaches(port, netns)
            assert reaches("16641", netns)
            rules = h1.run(["nft", "list", "table", "inet", "virtkit_guard"]).stdout
            assert rules.count("dport 16640") == 1
            assert "counter packets 0" not in rules
        finally:
            for server in servers:
                server.terminate()
                server.wait(10)
    finally:
        h1.run(["ip", "link", "delete", "vh0123456789a"])
        h1.delete_netns(netns)
        h1.run(["nft", "delete", "table", "inet", "virtkit_guard"])


def test_a_daemon_of_the_lab_is_what_it_was_taken_for(h1: Host) -> None:
    """The tests above would prove nothing if h1 ran the lab's own daemons."""
    daemon: Daemon
    for daemon in (h1.daemons[name] for name in ("ovsdb-server", "ovs-vswitchd", "agent")):
        assert any(word.startswith(str(image_tree())) for word in daemon.argv)
        assert h1.is_running(daemon.name)
