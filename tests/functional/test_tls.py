"""Hosts that come in to the fabric database with certificates: all that agents do goes on.

What a certificate does *not* allow is tried in tests/unit/test_tenancy_tls.py, on the database
alone; here a host is driven as whoever has taken it over would.
"""

import json
import os
import stat
from collections.abc import Iterator

import pytest

from lab.lab import Lab
from lab.waiting import until
from tests.functional.tenants import Fabric, pinging
from tests.functional.test_cni_faults import call

pytestmark = pytest.mark.functional


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    with Lab.up(f"test-tls-{os.getpid()}", hosts=2, tls=True) as lab:
        fabric = Fabric(lab)
        fabric("nvctl tenant create red")
        fabric("nvctl network create front -t red --cidr 10.1.0.0/24 --cidr fd00:1::/64")
        fabric("nvctl tenant create default")
        fabric("nvctl network create pods -t default --cidr 10.2.0.0/24 --host-access")
        yield fabric


def test_hosts_reach_the_database_by_tls_alone(fabric: Fabric) -> None:
    ctl, h1 = fabric.lab.ctl, fabric.lab.host("h1")
    listening = ctl.run(["ss", "-Hltn", "sport = :6640"]).stdout

    assert listening.count("LISTEN") == 1
    plain = h1.run(["nvctl", "--db", f"tcp:{ctl.address}:6640", "host", "list"], check=False)
    assert plain.returncode == 1 and "does not answer" in plain.stderr
    assert [host["name"] for host in fabric("nvctl host list", h1)] == ["h1", "h2"]
    key = h1.path("/etc/virtkit/tls/key.pem")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_text().splitlines()[1]
    assert secret not in h1.path("/var/log/virtkit/agent.log").read_text()
    assert "PRIVATE" not in h1.run(["ps", "auxww"]).stdout


def test_ports_are_bound_and_followed(fabric: Fabric) -> None:
    a = fabric.container("h1", "red", "front", "a")
    b = fabric.container("h2", "red", "front", "b")

    assert a.ping(b.ip, count=1) == 1
    with pinging(a, b.ip) as lost:
        a.host.kill("agent")
        a.host.start("agent")
    assert lost == []
    fabric.remove(a)
    fabric.remove(b)


def test_containers_come_and_go_by_the_cni(fabric: Fabric) -> None:
    """Their ports, made by the agent, are its host's own; and so is its place in the network."""
    h1, h2 = fabric.lab.host("h1"), fabric.lab.host("h2")
    keys = {"name": "tls", "network": "pods"}
    addresses = {}
    for host in (h1, h2):
        host.add_netns("pod")
        added = call(host, "ADD", "pod", **keys).result()
        addresses[host.name] = added["ips"][0]["address"].partition("/")[0]
    assert h1.run(["ping", "-c1", "-W5", addresses["h2"]], netns="pod").returncode == 0
    # By the host's own port, which the agent has entered.
    assert h1.run(["ping", "-c1", "-W5", addresses["h1"]]).returncode == 0
    ports = {port["host"]: port for port in fabric("nvctl port list -t default")}
    assert {port["only_host"] for port in ports.values()} == {"h1", "h2"}

    for host in (h1, h2):
        assert call(host, "DEL", "pod", **keys).succeeded()
        host.delete_netns("pod")
    left = fabric("nvctl port list -t default")
    assert sorted(port["kind"] for port in left) == ["host", "host"]


def test_a_host_that_was_taken_over_changes_nothing_of_anothers(fabric: Fabric) -> None:
    """With the operators' own command, from that host and with its certificate."""
    h1 = fabric.lab.host("h1")
    web = fabric.container("h2", "red", "front", "web")
    fabric(f"nvctl port set {web.port_id} --host h2")
    probe = fabric.container("h2", "red", "front", "probe")
    assert probe.ping(web.ip) == 3
    before = fabric(f"nvctl port get {web.port_id}")

    for line in (
        "nvctl tenant create evil",
        "nvctl tenant set red --quota ports=100000",
        "nvctl network create evil -t red --cidr 10.9.0.0/24",
        "nvctl network delete front -t red --yes",
        "nvctl port create evil -t red -n front",
        f"nvctl port set {web.port_id} --host h1",
        f"nvctl port delete {web.port_id} --force --yes",
        "nvctl host delete h2 --force --yes",
    ):
        sentence = fabric.refused(line, h1)
        assert "does not let this machine's certificate" in sentence, (line, sentence)
    assert "only host h2 may hold it" in fabric.refused(f"nvctl port plug {web.port_id} --tap", h1)
    # Nor by what libvirt would do, which asks nobody.
    with pinging(probe, web.ip) as lost:
        h1.run(["ip", "tuntap", "add", "taken", "mode", "tap"])
        ids = f"external_ids:iface-id={web.port_id}"
        h1.run(["ovs-vsctl", "add-port", "br-int", "taken", "--", "set", "Interface", "taken", ids])
        until(
            lambda: "ofport" in h1.run(["ovs-vsctl", "list", "Interface", "taken"]).stdout,
            what="the switch does not open it",
            timeout_s=10,
        )
        fabric("nvctl network set front -t red --label seen=by-all --wait")
        h1.run(["ovs-vsctl", "del-port", "br-int", "taken"])
    assert lost == []
    assert fabric(f"nvctl port get {web.port_id}") == before

    # What it may do to others is nothing, and the fabric knows it all the same.
    assert {row["name"] for row in fabric("nvctl host list")} == {"h1", "h2"}
    fabric(f"nvctl port set {web.port_id} --any-host")
    for container in (web, probe):
        fabric.remove(container)


def test_an_agent_with_anothers_certificate_says_so(fabric: Fabric) -> None:
    h1, h2 = fabric.lab.host("h1"), fabric.lab.host("h2")
    file = h1.path("/etc/virtkit/virtkit.toml")
    text = file.read_text()
    h1.stop("agent")
    file.write_text(text.replace('name = "h1"', 'name = "h2"'))
    log = h1.path("/var/log/virtkit/agent.log")
    seen = len(log.read_text())
    heartbeat = fabric("nvctl host get h2")
    try:
        process = h1.popen(["nvctl", "agent", "run"], stdout=log.open("a"))
        try:
            until(
                lambda: "refuses what this host reports" in log.read_text()[seen:],
                what="nothing is said",
                timeout_s=40,
            )
        finally:
            process.terminate()
            process.wait(20)
    finally:
        file.write_text(text)
        h1.start("agent")
    assert fabric("nvctl host get h2")["tunnel_ip"] == heartbeat["tunnel_ip"]
    assert h2.is_running("agent")
    assert json.loads(h1.path("/run/virtkit/agent.ready").read_text())["flows"] > 0
