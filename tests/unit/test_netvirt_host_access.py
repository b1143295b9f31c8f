"""Host access on a real database: which network may have it, and what becomes of hosts' ports."""

from collections.abc import Iterator
from ipaddress import IPv4Address
from uuid import UUID, uuid4

import pytest

from netvirt import compile as compiler
from netvirt.agent.dhcp_server import lease_of
from netvirt.compile import Local
from netvirt.model import GATEWAY_MAC, Network, PortKind
from netvirt.pipeline import fields as f
from netvirt.pipeline import tables as t
from netvirt.pipeline.flow import Flow, Goto, SetField
from netvirt.service import host_ports, hosts, networks, ports
from netvirt.service.networks import NetworkRequest
from netvirt.service.plug import plug_tap, unplug
from netvirt.service.ports import PortRequest, PortState
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import GuardFailed
from tenancy.errors import InvalidRequest, Refused
from tenancy.model import Resource


@pytest.fixture(autouse=True)
def red(fabric: Fabric) -> Iterator[None]:
    tenants.create(fabric, "red")
    tenants.create(fabric, "blue")
    make(fabric, "red", "front", "10.1.0.0/24", host_access=True)
    hosts.create(fabric, "h1", tunnel_ip=IPv4Address("192.0.2.1"))
    hosts.create(fabric, "h2", tunnel_ip=IPv4Address("192.0.2.2"))
    return


def make(
    fabric: Fabric, tenant: str, name: str, cidr: str, *, host_access: bool = False
) -> Network:
    request = NetworkRequest(name=name, cidrs=[cidr], host_access=host_access)
    return networks.create(fabric, tenant, request)


def enter_host_port(fabric: Fabric, network: Network, host: str, ip: str) -> UUID:
    """What a host's agent writes when it makes its own port."""
    port_id = uuid4()
    transaction = fabric.transaction()
    columns = {"tenant": network.tenant, "network": network.id, "name": f"host-{host}"}
    mac = f"0a:00:00:00:00:{IPv4Address(ip).packed[3]:02x}"
    transaction.insert_as(port_id, "Port", {**columns, "mac": mac, "kind": "host"})
    subnet = network.subnets[0].id
    columns = {"network": network.id, "subnet": subnet, "port": port_id, "ip": ip}
    transaction.insert("Address", columns)
    columns = {"port": port_id, "network": network.id, "host": host, "claim": 1, "active": True}
    transaction.insert("Binding", columns)
    transaction.commit()
    return port_id


@pytest.fixture
def own(fabric: Fabric) -> PortState:
    """h1's own port in red's network."""
    network = networks.get(fabric, "red", "front")
    return ports.get_by_id(fabric, enter_host_port(fabric, network, "h1", "10.1.0.7"))


def rows_left(fabric: Fabric) -> list[int]:
    return [len(fabric.select(table)) for table in ("Port", "Address", "Binding")]


# Which network may have it


def test_overlapping_networks_cannot_both_have_host_access(fabric: Fabric) -> None:
    make(fabric, "blue", "without", "10.1.0.0/24")

    with pytest.raises(
        Refused,
        match=r"network back: with host access its 10\.1\.0\.0/16 would overlap 10\.1\.0\.0/24 of "
        r"network front of tenant red",
    ):
        make(fabric, "blue", "back", "10.1.0.0/16", host_access=True)
    with pytest.raises(Refused, match="network without: with host access its"):
        networks.change(fabric, "blue", "without", host_access=True)

    assert [network.name for _, network in networks.list_all(fabric, "blue")] == ["without"]
    assert not networks.get(fabric, "blue", "without").host_access


def test_a_network_may_be_given_host_access_when_the_other_has_lost_it(fabric: Fabric) -> None:
    make(fabric, "blue", "back", "10.1.0.0/16")

    networks.change(fabric, "red", "front", host_access=False)
    changed = networks.change(fabric, "blue", "back", host_access=True)

    assert changed.host_access


def test_to_ask_for_what_a_network_has_is_no_change(fabric: Fabric, own: PortState) -> None:
    networks.change(fabric, "red", "front", host_access=True)

    assert ports.get_by_id(fabric, own.port.id) == own


def test_a_network_that_covers_a_tunnel_endpoint_gets_no_host_access(fabric: Fabric) -> None:
    with pytest.raises(
        Refused, match=r"would cover 192\.0\.2\.1, the tunnel endpoint of host h1\. Choose other"
    ):
        make(fabric, "red", "back", "192.0.2.0/24", host_access=True)

    assert make(fabric, "red", "back", "192.0.2.0/24").host_access is False


def test_of_two_at_once_with_the_same_addresses_one_gets_host_access(
    fabric: Fabric, fabric_remote: str
) -> None:
    transaction = fabric.transaction()
    host_ports.check_network(fabric, transaction, "back", [])
    transaction.update(networks.find(fabric, "red", "front"), {"labels": {"x": "y"}})

    with Fabric.connect(fabric_remote) as rival:
        make(rival, "blue", "other", "10.2.0.0/24", host_access=True)

    with pytest.raises(GuardFailed):
        transaction.commit()


# The hosts' own ports


def test_a_hosts_own_port_costs_no_quota_and_is_listed(fabric: Fabric, own: PortState) -> None:
    (listed,) = ports.list_all(fabric, "red")

    assert (listed.port.name, listed.port.kind) == ("host-h1", PortKind.HOST)
    assert listed == own
    usage = tenants.get(fabric, "red").quota
    assert (usage[Resource.PORTS].used, usage[Resource.ADDRESSES].used) == (0, 0)


def test_a_hosts_own_port_is_nobodys_to_make_plug_or_delete(fabric: Fabric, own: PortState) -> None:
    its = "port host-h1 of network front is a host's own and can't be "

    with pytest.raises(InvalidRequest, match="port p: ports of kind host are made by the hosts'"):
        ports.create(fabric, "red", "front", PortRequest(name="p", kind=PortKind.HOST))
    with pytest.raises(Refused, match=its + "deleted"):
        ports.delete(fabric, "red", "front", "host-h1", force=True)
    with pytest.raises(Refused, match=its + "plugged in"):
        plug_tap(fabric, "h1", own)
    with pytest.raises(Refused, match=its + "unplugged"):
        unplug(fabric, own)

    assert rows_left(fabric) == [1, 1, 1]


def test_the_name_of_a_hosts_own_port_is_taken(fabric: Fabric) -> None:
    make(fabric, "red", "back", "10.2.0.0/24")

    with pytest.raises(Refused, match="port host-h1: that is what host h1's own port in network"):
        ports.create(fabric, "red", "front", PortRequest(name="host-h1"))
    ports.create(fabric, "red", "front", PortRequest(name="host-of-nobody"))
    ports.create(fabric, "red", "back", PortRequest(name="host-h2"))
    with pytest.raises(Refused, match="network back: its port host-h2 has the name of a host's"):
        networks.change(fabric, "red", "back", host_access=True)


@pytest.mark.usefixtures("own")
def test_a_network_without_host_access_has_no_host_ports(fabric: Fabric) -> None:
    kept = ports.create(fabric, "red", "front", PortRequest(name="web"))

    networks.change(fabric, "red", "front", host_access=False)

    assert ports.list_all(fabric, "red") == [ports.get_by_id(fabric, kept.port.id)]
    assert rows_left(fabric) == [1, 1, 0]
    usage = tenants.get(fabric, "red").quota
    assert (usage[Resource.PORTS].used, usage[Resource.ADDRESSES].used) == (1, 1)


def test_a_network_goes_with_its_host_ports_and_not_with_others(
    fabric: Fabric, own: PortState
) -> None:
    ports.create(fabric, "red", "front", PortRequest(name="web"))

    with pytest.raises(Refused, match=r"network front of tenant red still has 1 port\. Delete"):
        networks.delete(fabric, "red", "front")
    assert ports.get_by_id(fabric, own.port.id) == own
    ports.delete(fabric, "red", "front", "web")
    networks.delete(fabric, "red", "front")

    assert rows_left(fabric) == [0, 0, 0]
    assert tenants.get(fabric, "red").quota[Resource.NETWORKS].used == 0


def test_a_host_goes_with_its_own_ports_and_not_with_others(fabric: Fabric, own: PortState) -> None:
    other = enter_host_port(fabric, own.network, "h2", "10.1.0.8")

    assert hosts.bound_ports(fabric) == {}
    hosts.delete(fabric, "h1", now_s=1000)

    assert [state.port.id for state in ports.list_all(fabric)] == [other]
    assert rows_left(fabric) == [1, 1, 1]


# What follows


def flows_of(state: PortState) -> list[Flow]:
    return list(compiler.port(state.port, state.network, Local(6), tunnel=1))


def test_what_goes_to_the_gateway_goes_to_the_own_port_of_the_host(own: PortState) -> None:
    to_gateway = [
        flow
        for flow in flows_of(own)
        if (f.ETH_DST, GATEWAY_MAC) in [(c.field, c.value) for c in flow.match]
    ]

    (flow,) = to_gateway
    assert flow.table == t.L2.id
    assert (f.FLAGS, 0, f.FROM_TUNNEL) in [(c.field, c.value, c.mask) for c in flow.match]
    assert flow.actions == (
        SetField(f.ETH_DST, own.port.mac),
        SetField(f.OUTPUT, 6),
        Goto(t.OUTPUT.id),
    )


def test_only_a_host_forwards_what_others_sent(fabric: Fabric, own: PortState) -> None:
    web = ports.create(fabric, "red", "front", PortRequest(name="web"))

    def sources(state: PortState) -> set[int | None]:
        guards = [flow for flow in flows_of(state) if flow.table == t.GUARD_IP.id]
        named = [{c.field: c.value for c in flow.match} for flow in guards]
        return {match.get(f.IPV4_SRC) for match in named}

    assert sources(own) == {None}
    assert sources(web) == {int(web.port.addresses[0])}


def test_with_host_access_guests_get_a_default_route(fabric: Fabric, own: PortState) -> None:
    make(fabric, "red", "back", "10.2.0.0/24")
    web = ports.create(fabric, "red", "front", PortRequest(name="web"))
    other = ports.create(fabric, "red", "back", PortRequest(name="web"))

    leases = [lease_of(state.port, state.network) for state in (web, other)]

    assert [lease and lease.router for lease in leases] == [IPv4Address("10.1.0.1"), None]
    assert lease_of(own.port, own.network) is None
