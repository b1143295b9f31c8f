"""`nvctl doctor` in a lab: what is broken by hand is found, left alone by a dry run, and mended."""

import json
import time
from collections.abc import Collection, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tests.functional.tenants import Container, Fabric

pytestmark = [pytest.mark.functional, pytest.mark.timeout(900)]

SOCKET = "unix:/run/virtkit/fabric.sock"
DATABASE = "Virtkit_Fabric"


class Doctor:
    """`nvctl doctor` on a host, as a program reads it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __call__(self, *options: str) -> dict[str, Any]:
        done = self.host.run(["nvctl", "doctor", "--json", *options], check=False, timeout_s=240)
        assert done.returncode in (0, 1), done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert report["clean"] is (done.returncode == 0)
        return report

    def kinds(self, *options: str) -> set[str]:
        return {one["kind"] for one in self(*options)["findings"]}

    def outcomes(self, *options: str) -> dict[str, set[str]]:
        """What became of the findings of each kind."""
        found: dict[str, set[str]] = {}
        for one in self(*options)["findings"]:
            found.setdefault(one["kind"], set()).add(one["outcome"])
        return found


@pytest.fixture(scope="module")
def fabric() -> Iterator[Fabric]:
    """Two hosts, and a container of one network on each."""
    name = f"test-doctor-{uuid4().hex[:8]}"
    with Lab.up(name, hosts=2, ceph=False) as lab:
        fabric = Fabric(lab)
        fabric("nvctl tenant create red")
        fabric("nvctl network create front -t red --cidr 10.1.0.0/24")
        yield fabric


@pytest.fixture(scope="module")
def web(fabric: Fabric) -> Container:
    return fabric.container("h1", "red", "front", "web")


@pytest.fixture(scope="module")
def db(fabric: Fabric) -> Container:
    return fabric.container("h2", "red", "front", "db")


def transact(fabric: Fabric, *operations: dict[str, Any]) -> list[Any]:
    """Change the fabric database behind everybody's back."""
    request = json.dumps([DATABASE, *operations])
    done = fabric.lab.ctl.run(["ovsdb-client", "transact", SOCKET, request])
    answer: list[Any] = json.loads(done.stdout)
    assert not [one for one in answer if one and "error" in one], answer
    return answer


def insert(table: str, **row: Any) -> dict[str, Any]:
    return {"op": "insert", "table": table, "row": row}


def uuid(value: str | UUID) -> list[str]:
    return ["uuid", str(value)]


def row_id(fabric: Fabric, table: str, **equals: Any) -> list[str]:
    where = [[column, "==", value] for column, value in equals.items()]
    (answer,) = transact(
        fabric, {"op": "select", "table": table, "where": where, "columns": ["_uuid"]}
    )
    found: list[str] = answer["rows"][0]["_uuid"]
    return found


def flow_of(host: Host, match: str) -> str:
    dump = ["ovs-ofctl", "-O", "OpenFlow15", "--no-stats", "dump-flows", "br-int", match]
    return host.run(dump).stdout.strip()


def state(fabric: Fabric, host: Host) -> Any:
    """All that a doctor might change: rows but for reports of agents, flows, ports, links."""
    tables = ["Tenant", "Quota", "Network", "Port", "Address", "Binding", "Attachment"]
    rows = transact(fabric, *({"op": "select", "table": t, "where": []} for t in tables))
    links = json.loads(host.run(["ip", "-j", "link"]).stdout)
    return (
        [sorted(json.dumps(row, sort_keys=True) for row in one["rows"]) for one in rows],
        fabric.flows(host),
        host.run(["ovs-vsctl", "list-ports", "br-int"]).stdout,
        sorted(link["ifname"] for link in links),
    )


def settles(host: Host, besides: Collection[str] = ()) -> None:
    """Agents take a moment to hear from the database again, and to report."""

    def is_well() -> bool:
        nonlocal found
        found = Doctor(host).kinds("--dry-run") - set(besides)
        return not found

    found: set[str] = set()
    until(is_well, what=f"{host.name} is not well", timeout_s=90, explain=lambda: str(found))


def reaches(one: Container, other: Container) -> None:
    until(lambda: one.ping(other.ip) == 3, what="packets are lost", timeout_s=60)


def break_flows(h1: Host, web: Container) -> None:
    """One is altered with its cookie kept, one goes, one comes."""
    ofctl = ("ovs-ofctl", "-O", "OpenFlow15")
    match = f"table=60,metadata=1,dl_dst={web.mac}"
    before = flow_of(h1, match)
    h1.run([*ofctl, "mod-flows", "br-int", f"{match},actions=drop"])
    cookie = before[before.index("cookie=") :].partition(",")[0]
    assert cookie in flow_of(h1, match)
    h1.run([*ofctl, "--strict", "del-flows", "br-int", "table=60,priority=0"])
    h1.run([*ofctl, "add-flow", "br-int", "table=60,priority=7,ip,actions=drop"])


def break_links(fabric: Fabric, h1: Host) -> None:
    """Veths and ports of the switch that are nobody's, or whose container is gone."""
    h1.run(["ip", "link", "add", "vk00000000abc", "type", "veth", "peer", "name", "half0"])
    alone, plugged = uuid4(), uuid4()
    for id_, peer in ((alone, "alone0"), (plugged, "plugged0")):
        name = f"vk{id_.hex[:11]}"
        h1.run(["ip", "link", "add", name, "type", "veth", "peer", "name", peer])
        h1.run(["ip", "link", "set", name, "alias", f"virtkit port {id_}"])
    port = f"vk{plugged.hex[:11]}"
    ids = f"external_ids:iface-id={plugged}"
    h1.run(["ovs-vsctl", "add-port", "br-int", port, "--", "set", "interface", port, ids])
    gone = fabric.container("h1", "red", "front", "gone")
    h1.run(["ip", "link", "delete", gone.link])
    off = fabric.container("h1", "red", "front", "off")
    h1.run(["ovs-vsctl", "del-port", "br-int", off.link])


def break_rows(fabric: Fabric, h2: Host) -> None:
    """Rows that refer to what is not there, and a host that is another one's double."""
    network = row_id(fabric, "Network", name="front")
    tenant = row_id(fabric, "Tenant", name="red")
    subnet = row_id(fabric, "Subnet", network=network)
    stray = uuid(fabric("nvctl port create stray -t red -n front")["id"])
    lost = uuid(fabric("nvctl port create lost -t red -n front")["id"])
    place = {"port": lost, "network": network, "host": "h1"}
    address = {"network": network, "subnet": subnet, "port": stray}
    quota = [["tenant", "==", tenant], ["resource", "==", "ports"]]
    transact(
        fabric,
        insert("Binding", port=stray, network=network, host="nowhere", claim=1, active=True),
        insert("Attachment", **place, container="c9", interface="eth0", netns="/run/netns/c9"),
        insert("Address", **address, ip="10.1.0.200", host="h2"),
        {
            "op": "mutate",
            "table": "Quota",
            "where": quota,
            "mutations": [["available", "-=", 5]],
        },
        insert(
            "Host",
            name="double",
            tunnel_ip=h2.address,
            heartbeat=int(time.time()) + 5000,
            version="0.0.1",
        ),
    )


# Every kind of breakage above, and whether the doctor mends it.
MENDED = {
    "flow-altered",
    "flow-missing",
    "flow-unknown",
    "link-half-made",
    "link-orphaned",
    "interface-orphaned",
    "interface-missing",
    "binding-without-host",
    "attachment-lost",
    "address-of-nobody",
    "quota-miscounted",
}
LEFT = {"clock-skew", "endpoint-shared", "version-differs"}


def test_what_is_broken_is_found_then_mended_and_then_gone(
    fabric: Fabric, web: Container, db: Container
) -> None:
    h1, h2 = fabric.lab.host("h1"), fabric.lab.host("h2")
    doctor = Doctor(h1)
    assert doctor("--dry-run")["findings"] == []

    break_links(fabric, h1)
    break_rows(fabric, h2)
    break_flows(h1, web)
    before = state(fabric, h1)
    dry = doctor.outcomes("--dry-run")
    assert dry.keys() >= MENDED | LEFT, dry
    assert {kind for kind, found in dry.items() if "would be mended" in found} == MENDED
    assert state(fabric, h1) == before

    wet = doctor.outcomes()
    assert {kind: found for kind, found in wet.items() if kind in MENDED} == {
        kind: {"mended"} for kind in MENDED
    }
    assert {kind for kind, found in wet.items() if found == {"for you to do"}} >= LEFT

    transact(fabric, {"op": "delete", "table": "Host", "where": [["name", "==", "double"]]})
    settles(h1)
    settles(h2)
    reaches(db, web)


def test_without_an_agent_tunnels_and_what_follows_are_made_anew(
    fabric: Fabric, web: Container, db: Container
) -> None:
    h1 = fabric.lab.host("h1")
    h1.kill("agent")
    try:
        h1.run(["ovs-vsctl", "del-port", "br-int", "vk-vxlan"])
        doctor = Doctor(h1)
        assert doctor.kinds("--dry-run") >= {"agent-not-running", "tunnel-missing"}

        outcomes = doctor.outcomes()

        assert outcomes["tunnel-missing"] == {"mended"}
        assert outcomes["agent-not-running"] == {"for you to do"}
        # Its last report may have been long ago by now.
        settles(h1, besides={"agent-not-running", "agent-silent"})
        reaches(db, web)
    finally:
        h1.start("agent")
    settles(h1)


def test_a_path_that_is_too_narrow_is_found_from_both_ends(
    fabric: Fabric, web: Container, db: Container
) -> None:
    del web, db
    h1, h2 = fabric.lab.host("h1"), fabric.lab.host("h2")
    uplink = ["ovs-vsctl", "set", "interface", "uplink"]
    h2.run([*uplink, "mtu_request=1400"])
    try:
        for host in (h1, h2):
            found = Doctor(host)("--dry-run")["findings"]
            narrow = [one for one in found if one["kind"] == "mtu-too-small"]
            # The database's answers don't reach the narrow host, so it may know of no other.
            assert narrow, found
            assert "1500" in narrow[0]["found"]
            assert "1400 do" in narrow[0]["found"]
    finally:
        h2.run([*uplink, "mtu_request=1500"])
    settles(h2)


def test_whatever_is_down_is_a_finding_and_the_rest_is_looked_at(
    fabric: Fabric, web: Container, db: Container
) -> None:
    del web, db
    h1, ctl = fabric.lab.host("h1"), fabric.lab.ctl
    ctl.stop("fabric")
    try:
        assert "database-silent" in Doctor(h1).kinds()
        assert Doctor(ctl).kinds() == {"database-silent"}
    finally:
        ctl.start("fabric")
    h1.pause("ovs-vswitchd")
    try:
        # In a lab the way to the database leads through the switch, too.
        assert Doctor(h1).kinds() >= {"switch-silent"}
    finally:
        h1.resume("ovs-vswitchd")
    settles(h1)
    h1.stop("ovsdb-server")
    try:
        assert "host-silent" in Doctor(h1).kinds()
    finally:
        h1.start("ovsdb-server")
    settles(h1)


def test_a_healthy_lab_under_load_has_no_findings(
    fabric: Fabric, web: Container, db: Container
) -> None:
    del web, db
    h1 = fabric.lab.host("h1")
    rounds = h1.path("/run/rounds")
    # Ports come and go as fast as commands can be started, until the file goes.
    script = """
        touch /run/rounds
        for n in $(seq 1000); do
            nvctl port create load -t red -n front >/dev/null || exit 1
            ip netns add load
            nvctl port plug load -t red -n front --netns load >/dev/null || exit 1
            nvctl port unplug load -t red -n front || exit 1
            ip netns delete load
            nvctl port delete load -t red -n front --yes || exit 1
            [ -e /run/rounds ] || exit 0
            echo >> /run/rounds
        done
    """
    load = h1.popen(["sh", "-c", script], start_new_session=True)
    try:
        until(lambda: rounds.exists() and rounds.stat().st_size > 0, what="no load", timeout_s=60)
        before = rounds.stat().st_size
        for host in (h1, fabric.lab.host("h2"), fabric.lab.ctl, h1):
            assert Doctor(host)("--dry-run")["findings"] == []
        until(lambda: rounds.stat().st_size > before, what="the load has ended", timeout_s=60)
    finally:
        rounds.unlink(missing_ok=True)
        assert load.wait(120) == 0
