"""What `nvctl doctor` makes of facts, one check at a time."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from uuid import UUID, uuid4

import pytest

from netvirt.checks import fabric as fabric_checks
from netvirt.checks import flows as flow_checks
from netvirt.checks import hosts as host_checks
from netvirt.checks import paths as path_checks
from netvirt.checks.fabric import Account, FabricFacts, Lease, Recount
from netvirt.checks.flows import PutFlows
from netvirt.checks.hosts import HostFacts, Link
from netvirt.checks.paths import PathFacts
from netvirt.model import (
    Attachment,
    AttachmentId,
    Binding,
    BindingId,
    Host,
    Mac,
    Network,
    NetworkId,
    Overlay,
    Port,
    PortId,
    PortKind,
)
from netvirt.observed import Interface
from netvirt.pipeline.fields import METADATA, OUTPUT
from netvirt.pipeline.flow import Category, Condition, Flow, Goto, SetField
from tenancy.database_checks import ServerFacts, servers
from tenancy.diagnosis import Finding
from tenancy.model import TenantId

NOW_S = 1_000_000
TENANT = TenantId(uuid4())
FRONT = Network(
    id=NetworkId(uuid4()),
    tenant=TENANT,
    name="front",
    overlay=Overlay.VXLAN,
    segment_id=1,
    mtu_bytes=1450,
)
WEB = Port(
    id=PortId(uuid4()),
    tenant=TENANT,
    network=FRONT.id,
    name="web",
    mac=Mac(0x0A0000000001),
    kind=PortKind.CONTAINER,
    addresses=(IPv4Address("10.1.0.2"),),
)
H1 = Host(
    name="h1",
    tunnel_ip=IPv4Address("10.0.0.1"),
    overlays=frozenset(Overlay),
    underlay_mtu_bytes=1500,
    cfg=7,
    heartbeat_s=NOW_S - 3,
    version="1",
)
FACTS = FabricFacts(
    now_s=NOW_S,
    cfg=7,
    version="1",
    hosts=(H1,),
    networks={FRONT.id: FRONT},
    ports={WEB.id: WEB},
    leases=(),
    bindings=(),
    attachments=(),
    accounts=(),
    alive=frozenset({"h1"}),
)


def kinds(findings: list[Finding]) -> list[str]:
    return [one.kind for one in findings]


def binding(host: str) -> Binding:
    return Binding(
        id=BindingId(uuid4()), port=WEB.id, network=FRONT.id, host=host, claim=1, active=True
    )


def attachment(host: str) -> Attachment:
    return Attachment(
        id=AttachmentId(uuid4()),
        host=host,
        conflist="pods",
        container="c1",
        interface="eth0",
        netns="/run/netns/c1",
        port=WEB.id,
        network=FRONT.id,
    )


def lease(**changes: object) -> Lease:
    found = Lease(
        id=uuid4(),
        ip=IPv4Address("10.1.0.2"),
        port=WEB.id,
        network=FRONT.id,
        host=None,
        subnet=ip_network("10.1.0.0/24"),
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_healthy_fabric_has_no_findings() -> None:
    facts = replace(FACTS, leases=(lease(),), bindings=(binding("h1"),))
    assert fabric_checks.check(facts) == []


@pytest.mark.parametrize(
    ("host", "alive", "kind"),
    [
        (replace(H1, heartbeat_s=NOW_S - 500), False, "agent-silent"),
        (replace(H1, heartbeat_s=0), False, "agent-silent"),
        (replace(H1, heartbeat_s=NOW_S + 60), True, "clock-skew"),
        (replace(H1, cfg=6), True, "agent-behind"),
        (replace(H1, problems=frozenset({"no way out"})), True, "agent-problem"),
        (replace(H1, version="2"), True, "version-differs"),
    ],
)
def test_an_agent_that_is_not_well_is_found(host: Host, alive: bool, kind: str) -> None:
    facts = replace(FACTS, hosts=(host,), alive=frozenset({"h1"} if alive else ()))
    assert kinds(fabric_checks.agents(facts)) == [kind]


def test_an_endpoint_of_two_hosts_is_found() -> None:
    assert kinds(fabric_checks.endpoints([H1, replace(H1, name="h2")])) == ["endpoint-shared"]
    other = replace(H1, name="h2", tunnel_ip=IPv4Address("10.0.0.2"))
    assert fabric_checks.endpoints([H1, other, replace(H1, name="h3", tunnel_ip=None)]) == []


def test_what_is_bound_to_a_host_that_is_not_known_is_found() -> None:
    facts = replace(FACTS, bindings=(binding("nowhere"),), attachments=(attachment("nowhere"),))
    assert kinds(fabric_checks.check(facts)) == ["binding-without-host", "attachment-without-host"]


@pytest.mark.parametrize(
    "changed",
    [
        {"port": PortId(uuid4())},
        {"host": "h2"},
        {"network": NetworkId(uuid4())},
        {"subnet": None},
        {"ip": IPv4Address("10.2.0.2")},
    ],
)
def test_an_address_that_no_port_has_is_found(changed: dict[str, object]) -> None:
    facts = replace(FACTS, leases=(lease(**changed),))
    assert kinds(fabric_checks.leases(facts)) == ["address-of-nobody"]


def test_a_network_that_is_too_large_for_a_host_is_found() -> None:
    narrow = replace(H1, underlay_mtu_bytes=1499)
    facts = replace(FACTS, hosts=(narrow,), bindings=(binding("h1"),))
    (found,) = fabric_checks.underlays(facts)
    assert "--mtu 1449" in found.remedy
    assert fabric_checks.underlays(replace(FACTS, bindings=(binding("h1"),))) == []


def test_a_hosts_port_that_its_host_did_not_outlive_is_found() -> None:
    network = replace(FRONT, host_access=True)
    own = replace(WEB, kind=PortKind.HOST, name="host-h9")
    facts = replace(FACTS, networks={FRONT.id: network}, ports={own.id: own})
    assert kinds(fabric_checks.host_ports(facts)) == ["host-port-left"]
    mine = replace(own, name="host-h1")
    assert fabric_checks.host_ports(replace(facts, ports={mine.id: mine})) == []
    closed = replace(facts, networks={FRONT.id: FRONT}, ports={mine.id: mine})
    assert kinds(fabric_checks.host_ports(closed)) == ["host-port-left"]


def test_a_quota_is_recounted_unless_more_is_there_than_may_be() -> None:
    account = Account(
        quota_id=uuid4(), tenant="red", resource="ports", limit=5, booked=2, counted=3
    )
    (found,) = fabric_checks.accounts([account])
    assert found.mend == Recount(account.quota_id)
    (beyond,) = fabric_checks.accounts([replace(account, counted=6)])
    assert beyond.mend is None
    assert fabric_checks.accounts([replace(account, counted=2)]) == []


# A host

LINK = "vk00000000001"
TUNNELS = {"vk-vxlan": "vxlan"}
TUNNEL = Interface(name="vk-vxlan", ofport=1, iface_id=None, type="vxlan")
ON_BRIDGE = Interface(name=LINK, ofport=3, iface_id=WEB.id)
HOST = HostFacts(
    host="h1",
    agent_runs=True,
    tunnels=TUNNELS,
    interfaces={"vk-vxlan": TUNNEL, LINK: ON_BRIDGE},
    links=(Link(name=LINK, port=WEB.id, maker="port"),),
    half_made=frozenset(),
    ports={WEB.id: WEB},
    bound={WEB.id: BindingId(uuid4())},
    attachments=(),
    lost=frozenset(),
    own_names={WEB.id: frozenset({LINK})},
    switch_version="3.1.0",
)


def test_a_healthy_host_has_no_findings() -> None:
    assert host_checks.check(HOST) == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"agent_runs": False}, ["agent-not-running"]),
        ({"switch_version": None}, ["switch-silent"]),
        ({"switch_version": "2.15.1"}, ["version-differs"]),
        ({"interfaces": {LINK: ON_BRIDGE}}, ["tunnel-missing"]),
        ({"ports": {}}, ["interface-orphaned"]),
        ({"half_made": frozenset({"vk0"})}, ["link-half-made"]),
        ({"half_made": frozenset({LINK})}, []),
        ({"interfaces": {"vk-vxlan": TUNNEL}}, ["interface-missing"]),
        ({"interfaces": {"vk-vxlan": TUNNEL}, "ports": {}}, ["link-orphaned"]),
        ({"interfaces": {"vk-vxlan": TUNNEL}, "links": ()}, ["binding-without-interface"]),
    ],
)
def test_what_is_wrong_on_a_host_is_found(changed: dict[str, object], found: list[str]) -> None:
    assert kinds(host_checks.check(replace(HOST, **changed))) == found  # type: ignore[arg-type]


def test_what_others_have_made_is_left_to_them() -> None:
    tap = Interface(name="vnet0", ofport=4, iface_id=UUID(int=9))
    geneve = Interface(name="ovn-1", ofport=5, iface_id=None, type="geneve")
    facts = replace(HOST, interfaces={**HOST.interfaces, "vnet0": tap, "ovn-1": geneve})
    findings = host_checks.check(facts)
    assert kinds(findings) == ["tunnel-foreign", "interface-orphaned"]
    assert [one.mend for one in findings] == [None, None]


def test_a_device_that_is_gone_is_taken_off() -> None:
    broken = replace(ON_BRIDGE, ofport=None, error="the device has been deleted")
    facts = replace(HOST, interfaces={"vk-vxlan": TUNNEL, LINK: broken}, links=(), bound={})
    assert kinds(host_checks.check(facts)) == ["interface-orphaned"]


def test_a_running_agent_sees_to_its_bindings_itself() -> None:
    facts = replace(HOST, interfaces={"vk-vxlan": TUNNEL}, links=())
    (watched,) = host_checks.bindings(facts)
    (alone,) = host_checks.bindings(replace(facts, agent_runs=False))
    assert watched.mend is None
    assert alone.mend is not None


def test_a_container_is_lost_when_its_namespace_and_its_link_are() -> None:
    facts = replace(HOST, attachments=(attachment("h1"),), lost=frozenset({WEB.id}))
    assert host_checks.containers(facts) == []
    assert kinds(host_checks.containers(replace(facts, links=()))) == ["attachment-lost"]


# Flows

GOOD = Flow(
    table=60,
    priority=100,
    match=(Condition(METADATA, 1),),
    actions=(SetField(OUTPUT, 3), Goto(80)),
    category=Category.LOCAL_PORT,
)
WANTED = {GOOD.cookie: GOOD}
MATCH = "table=60 priority=100,metadata=0x1"


def test_flows_are_told_apart_by_what_they_match() -> None:
    lines = [
        f"-{MATCH} cookie={GOOD.cookie:#x} actions=drop",
        f"+{MATCH} cookie={GOOD.cookie:#x} actions=set_field:0x3->reg15,goto_table:80",
        "-priority=7,ip actions=drop",
    ]
    altered, unknown = flow_checks.flows("h1", lines, WANTED)
    assert (altered.kind, unknown.kind) == ("flow-altered", "flow-unknown")
    assert "cookie kept" in altered.found
    assert altered.mend == PutFlows(add=(GOOD,), delete=())
    assert unknown.mend == PutFlows(add=(), delete=(0,))
    assert unknown.object == "host h1, flow table=0 priority=7,ip"


def test_a_missing_flow_is_put_back() -> None:
    line = f"+{MATCH} cookie={GOOD.cookie:#x} actions=drop"
    (found,) = flow_checks.flows("h1", [line], WANTED)
    assert (found.kind, found.mend) == ("flow-missing", PutFlows(add=(GOOD,), delete=()))


def test_a_flow_that_bears_anothers_cookie_does_not_take_that_with_it() -> None:
    line = f"-table=9 priority=1 cookie={GOOD.cookie:#x} actions=drop"
    (found,) = flow_checks.flows("h1", [line], WANTED)
    assert found.mend == PutFlows(add=(GOOD,), delete=(GOOD.cookie,))


# Paths

H2 = replace(H1, name="h2", tunnel_ip=IPv4Address("10.0.0.2"))


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (PathFacts(needed_bytes=1500, passed_bytes=1500, clock_offset_s=0.4), []),
        (PathFacts(needed_bytes=1500, passed_bytes=1400), ["mtu-too-small"]),
        (PathFacts(needed_bytes=1500, passed_bytes=None), ["path-silent"]),
        (
            PathFacts(needed_bytes=1500, passed_bytes=1500, back_bytes=1396),
            ["mtu-too-small-back"],
        ),
        (PathFacts(needed_bytes=1500, passed_bytes=1500, clock_offset_s=-30), ["clock-skew"]),
    ],
)
def test_what_a_path_shows(facts: PathFacts, found: list[str]) -> None:
    endpoint = IPv4Address("10.0.0.2")
    assert kinds(path_checks.paths("h1", {endpoint: H2}, {endpoint: facts})) == found


def test_a_path_needs_what_the_largest_network_does() -> None:
    gre = replace(FRONT, overlay=Overlay.GRE, mtu_bytes=1460)
    assert path_checks.needed_bytes([FRONT, gre]) == 1502
    assert path_checks.needed_bytes([]) is None


# The database


def test_servers_that_are_silent_cut_off_or_of_another_version_are_found() -> None:
    well = ServerFacts(remote="tcp:a", schema="1.2.0", model="clustered")
    found = servers(
        [
            well,
            ServerFacts(remote="tcp:b", failure="Connection refused"),
            replace(well, remote="tcp:c", connected=False),
            replace(well, remote="tcp:d", schema="1.1.0"),
        ],
        "1.2.0",
    )
    assert [(one.kind, one.object[-1]) for one in found] == [
        ("database-silent", "b"),
        ("database-without-quorum", "c"),
        ("schema-differs", "d"),
    ]
