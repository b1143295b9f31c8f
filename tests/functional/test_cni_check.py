"""What CHECK finds and GC collects: all that a stranger may have taken away, and nothing else."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lab.waiting import until
from tests.functional.cni_calls import Container
from tests.functional.cni_formats import VERSIONS, read_error
from tests.functional.cni_node import SETTLED_WITHIN_S, Node, node, settles_as, unchanged

pytestmark = pytest.mark.functional

NETWORKS = {"plain": "--cidr 10.1.0.0/24", "pods": "--cidr 10.244.0.0/24 --host-access"}
SINCE_040 = VERSIONS[1:]

UNKNOWN_CONTAINER, INVALID_ENVIRONMENT, INVALID_CONFIGURATION = 3, 4, 7
DIFFERENCE_FOUND = 103
LISTED = "cni.dev/valid-attachments"


def config(version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": version,
        "name": "checked",
        "type": "virtkit",
        "tenant": "default",
        "network": "pods",
        **keys,
    }


@pytest.fixture(scope="module")
def n() -> Iterator[Node]:
    """The node. A container stays on either network, so that what they share stays too."""
    with node("check", NETWORKS) as n, n.container("plain") as a, n.container("pods") as b:
        n.plugin.add(config(name="stays", network="plain"), a).result()
        n.plugin.add(config(name="stays"), b).result()
        yield n


# What a stranger does to an attachment. Each gets the result of ADD.

Mischief = Callable[[Node, Container, dict[str, Any]], None]


def remove_the_link(n: Node, c: Container, _: dict[str, Any]) -> None:
    n.inside(c, "ip", "link", "delete", c.interface)


def remove_the_hosts_link(n: Node, _: Container, result: dict[str, Any]) -> None:
    n.host.run(["ip", "link", "delete", host_link(result)])


def rename_the_link(n: Node, c: Container, _: dict[str, Any]) -> None:
    n.inside(c, "ip", "link", "set", c.interface, "down")
    n.inside(c, "ip", "link", "set", c.interface, "name", "other0")
    n.inside(c, "ip", "link", "set", "other0", "up")


def put_another_in_its_place(n: Node, c: Container, _: dict[str, Any]) -> None:
    """A bridge of that name with all that CHECK can see from inside, but to nowhere."""
    mac = n.links(c)[c.interface]["address"]
    addresses, routes = n.addresses(c), n.routes(c)
    mtu = n.links(c)[c.interface]["mtu"]
    rename_the_link(n, c, {})
    n.inside(c, "ip", "link", "set", "other0", "down")
    n.inside(c, "ip", "addr", "flush", "dev", "other0")
    kind = ("type", "bridge")
    n.inside(c, "ip", "link", "add", c.interface, "address", mac, "mtu", str(mtu), *kind)
    n.inside(c, "ip", "link", "set", c.interface, "up")
    for address in addresses:
        n.inside(c, "ip", "addr", "add", address, "dev", c.interface)
    for destination, gateway in routes:
        n.inside(c, "ip", "route", "add", destination, "via", str(gateway), "dev", c.interface)


def take_the_link_down(n: Node, c: Container, _: dict[str, Any]) -> None:
    routes = n.routes(c)
    n.inside(c, "ip", "link", "set", c.interface, "down")
    assert routes


def take_the_hosts_link_down(n: Node, _: Container, result: dict[str, Any]) -> None:
    n.host.run(["ip", "link", "set", host_link(result), "down"])


def change_the_mac(n: Node, c: Container, _: dict[str, Any]) -> None:
    n.inside(c, "ip", "link", "set", c.interface, "address", "0a:00:00:00:00:01")


def raise_the_mtu(n: Node, c: Container, _: dict[str, Any]) -> None:
    n.inside(c, "ip", "link", "set", c.interface, "mtu", "1500")


def remove_the_address(n: Node, c: Container, result: dict[str, Any]) -> None:
    n.inside(c, "ip", "addr", "delete", result["ips"][0]["address"], "dev", c.interface)


def change_the_prefix(n: Node, c: Container, result: dict[str, Any]) -> None:
    address = result["ips"][0]["address"]
    n.inside(c, "ip", "addr", "add", address.replace("/24", "/16"), "dev", c.interface)
    n.inside(c, "ip", "addr", "delete", address, "dev", c.interface)
    n.inside(c, "ip", "route", "replace", "default", "via", "10.244.0.1", "dev", c.interface)


def remove_the_route(n: Node, c: Container, _: dict[str, Any]) -> None:
    n.inside(c, "ip", "route", "delete", "default")


def lead_the_route_elsewhere(n: Node, c: Container, _: dict[str, Any]) -> None:
    n.inside(c, "ip", "route", "replace", "default", "via", "10.244.0.77", "dev", c.interface)


def remove_the_switch_port(n: Node, _: Container, result: dict[str, Any]) -> None:
    n.host.run(["ovs-vsctl", "del-port", "br-int", host_link(result)])


def unname_the_switch_port(n: Node, _: Container, result: dict[str, Any]) -> None:
    remove = ["ovs-vsctl", "remove", "interface", host_link(result), "external_ids", "iface-id"]
    n.host.run(remove)


def remove_the_flows_to_it(n: Node, c: Container, _: dict[str, Any]) -> None:
    mac = n.links(c)[c.interface]["address"]
    n.host.run(["ovs-ofctl", "del-flows", "br-int", f"dl_dst={mac}"])


def remove_the_flows_from_it(n: Node, _: Container, result: dict[str, Any]) -> None:
    get = ["ovs-vsctl", "get", "interface", host_link(result), "ofport"]
    port = n.host.run(get).stdout.strip()
    n.host.run(["ovs-ofctl", "del-flows", "br-int", f"in_port={port}"])


def remove_all_flows(n: Node, _: Container, __: dict[str, Any]) -> None:
    n.host.run(["ovs-ofctl", "del-flows", "br-int"])


def delete_the_port(n: Node, c: Container, _: dict[str, Any]) -> None:
    """As an operator might who does not know what it is for."""
    mac = n.links(c)[c.interface]["address"]
    (port,) = [one for one in n.fabric("nvctl port list") if one["mac"] == mac]
    n.fabric.do(f"nvctl port delete {port['id']} --yes --force")


MISCHIEF: tuple[Mischief, ...] = (
    remove_the_link,
    remove_the_hosts_link,
    rename_the_link,
    put_another_in_its_place,
    take_the_link_down,
    take_the_hosts_link_down,
    change_the_mac,
    raise_the_mtu,
    remove_the_address,
    change_the_prefix,
    remove_the_route,
    lead_the_route_elsewhere,
    remove_the_switch_port,
    unname_the_switch_port,
    remove_the_flows_to_it,
    remove_the_flows_from_it,
    remove_all_flows,
)


def host_link(result: dict[str, Any]) -> str:
    (name,) = [one["name"] for one in result["interfaces"] if not one.get("sandbox")]
    return str(name)


@pytest.mark.parametrize("version", SINCE_040)
def test_check_finds_nothing_where_nothing_is_wrong(n: Node, version: str) -> None:
    with n.container() as c:
        result = n.plugin.add(config(version), c).result()
        with unchanged(n):
            for _ in range(3):
                assert n.plugin.check(config(version), c, result).succeeded()
        assert n.plugin.delete(config(version), c).succeeded()


@pytest.mark.parametrize("version", SINCE_040)
@pytest.mark.parametrize("mischief", MISCHIEF, ids=lambda one: one.__name__)
def test_check_finds_what_somebody_did(n: Node, mischief: Mischief, version: str) -> None:
    before = n.state()
    with n.container() as c, n.container() as other:
        result = n.plugin.add(config(version), c).result()
        others = n.plugin.add(config(version), other).result()

        mischief(n, c, result)
        answer = n.plugin.check(config(version), c, result)

        error = read_error(answer)
        assert error.code == DIFFERENCE_FOUND
        assert error.cniVersion == version
        assert c.interface in error.text
        # Whatever was done to it, it can be taken away; and a neighbour is well, at the latest
        # when the agent has mended what concerns all.
        assert n.plugin.delete(config(version), c).succeeded()
        until(
            lambda: n.plugin.check(config(version), other, others).succeeded(),
            what="a neighbour is not well",
            timeout_s=SETTLED_WITHIN_S,
        )
        assert n.plugin.delete(config(version), other).succeeded()
    settles_as(n, before)


def test_check_finds_that_the_port_was_deleted(n: Node) -> None:
    before = n.state()
    with n.container() as c:
        result = n.plugin.add(config(), c).result()
        delete_the_port(n, c, result)
        error = read_error(n.plugin.check(config(), c, result))
        assert error.code in (UNKNOWN_CONTAINER, DIFFERENCE_FOUND)
        assert n.plugin.delete(config(), c).succeeded()
        assert c.interface not in n.links(c)
    settles_as(n, before)


@pytest.mark.parametrize("version", SINCE_040)
def test_check_lets_later_plugins_add_to_it(n: Node, version: str) -> None:
    """They may add interfaces, addresses and routes, and say so; and lower the MTU."""
    with n.container() as c:
        result = n.plugin.add(config(version), c).result()
        ip = {"address": "192.0.2.1/32", "interface": 2}
        later = {
            **result,
            "routes": [*result["routes"], {"dst": "198.51.100.0/24"}],
            "interfaces": [*result["interfaces"], {"name": "lo", "sandbox": c.netns}],
            "ips": [*result["ips"], {**ip, "version": "4"} if version < "1" else ip],
        }
        n.inside(c, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
        n.inside(c, "ip", "route", "add", "198.51.100.0/24", "dev", "lo")
        n.inside(c, "ip", "route", "add", "192.0.2.128/25", "dev", c.interface)
        n.inside(c, "ip", "link", "set", c.interface, "mtu", "1200")
        assert n.plugin.check(config(version), c, later).succeeded()
        assert n.plugin.check(config(version), c, result).succeeded()
        assert n.plugin.delete(config(version), c).succeeded()


@pytest.mark.parametrize("version", SINCE_040)
def test_check_of_what_was_never_attached(n: Node, version: str) -> None:
    with n.container() as c, n.container() as attached:
        result = n.plugin.add(config(version), attached).result()
        with unchanged(n):
            error = read_error(n.plugin.check(config(version), c, result))
            assert error.code == UNKNOWN_CONTAINER
            net1 = Container(id=attached.id, netns=attached.netns, interface="net1")
            error = read_error(n.plugin.check(config(version), net1, result))
            assert error.code == UNKNOWN_CONTAINER
        assert n.plugin.delete(config(version), attached).succeeded()
        error = read_error(n.plugin.check(config(version), attached, result))
        assert error.code == UNKNOWN_CONTAINER


@pytest.mark.parametrize("version", SINCE_040)
def test_check_does_not_take_anothers_result_for_its_own(n: Node, version: str) -> None:
    with n.container() as c, n.container() as other:
        result = n.plugin.add(config(version), c).result()
        others = n.plugin.add(config(version), other).result()
        mine_but_elsewhere = json.loads(json.dumps(result).replace(c.netns, other.netns))
        with unchanged(n):
            for foreign in (others, mine_but_elsewhere, {**result, "ips": others["ips"]}):
                error = read_error(n.plugin.check(config(version), c, foreign))
                assert error.code == DIFFERENCE_FOUND, foreign
            # The namespace is another's, or gone: the interface is not where it should be.
            for netns in (other.netns, "/run/netns/gone"):
                moved = Container(id=c.id, netns=netns, interface=c.interface)
                error = read_error(n.plugin.check(config(version), moved, result))
                assert error.code in (UNKNOWN_CONTAINER, DIFFERENCE_FOUND), netns
        for one in (c, other):
            assert n.plugin.delete(config(version), one).succeeded()


MALFORMED: dict[str, Any] = {
    "a text": "nonsense",
    "a number": 5,
    "a list": [],
    "null": None,
    "interfaces are a text": {"interfaces": "eth0"},
    "interfaces are numbers": {"interfaces": [5]},
    "interface without a name": {"interfaces": [{"mac": "x"}]},
    "a name that is a number": {"interfaces": [{"name": 5, "sandbox": "/x"}]},
    "addresses are an object": {"ips": {"address": "10.244.0.2/24"}},
    "address is no address": {"ips": [{"address": "x"}]},
    "address is a number": {"ips": [{"address": 5}]},
    "no address": {"ips": [{}]},
    "index is a text": {"ips": [{"address": "10.244.0.2/24", "interface": "1"}]},
    "index of none": {"ips": [{"address": "10.244.0.2/24", "interface": 99}]},
    "index is negative": {"ips": [{"address": "10.244.0.2/24", "interface": -1}]},
    "routes are numbers": {"routes": [1, 2]},
    "route without destination": {"routes": [{"gw": "10.244.0.1"}]},
    "destination is a list": {"routes": [{"dst": []}]},
    "gateway is a number": {"routes": [{"dst": "0.0.0.0/0", "gw": 1}]},
}


@pytest.mark.parametrize("version", SINCE_040)
def test_check_refuses_a_result_that_is_none(n: Node, version: str) -> None:
    with n.container() as c:
        result = n.plugin.add(config(version), c).result()
        with unchanged(n):
            for what, malformed in MALFORMED.items():
                wrong = {**result, **malformed} if isinstance(malformed, dict) else malformed
                keys = {**config(version), "prevResult": wrong}
                error = read_error(n.plugin.call(n.plugin.environment("CHECK", c), keys))
                assert error.code in (INVALID_CONFIGURATION, DIFFERENCE_FOUND), what
                assert "prevResult" in error.text, what
        assert n.plugin.check(config(version), c, result).succeeded()
        assert n.plugin.delete(config(version), c).succeeded()


def test_check_needs_the_result_of_add(n: Node) -> None:
    with n.container() as c:
        n.plugin.add(config(), c).result()
        with unchanged(n):
            error = read_error(n.plugin.check(config(), c, None))
            assert error.code == INVALID_CONFIGURATION
            assert "prevResult" in error.text
        assert n.plugin.delete(config(), c).succeeded()


# GC


@pytest.fixture
def attached(n: Node) -> Iterator[dict[str, Container]]:
    """Four attachments of two lists: containers a, b and c of `checked`, d of `another`.

    a has a second interface.
    """
    with ExitStack() as stack:
        a, b, c, d = (stack.enter_context(n.container(name)) for name in "abcd")
        found = {"a": a, "a2": Container(id=a.id, netns=a.netns, interface="net1")}
        found |= {"b": b, "c": c, "d": d}
        results = {}
        for name, one in found.items():
            results[name] = n.plugin.add(made_by(name), one).result()
        yield found
        for name, one in found.items():
            assert n.plugin.delete(made_by(name), one).succeeded()


def made_by(name: str) -> dict[str, Any]:
    return config(name="another" if name == "d" else "checked")


def present(n: Node, attached: dict[str, Container]) -> set[str]:
    """Those whose container, switch, port and attachment are all there; they are all or none."""
    dump = n.host.run(["ovs-vsctl", "--format=json", "--columns=external_ids", "list", "Interface"])
    labels = [port["labels"].get("container") for port in n.fabric("nvctl port list -t default")]
    found = set()
    for name, one in attached.items():
        signs = {one.interface in n.links(one)}
        if name not in ("a", "a2"):
            signs |= {one.id in labels, one.id in dump.stdout}
        assert len(signs) == 1, f"{name} is there in part: {signs}"
        if signs == {True}:
            found.add(name)
    return found


def test_gc_takes_away_what_is_not_listed_and_nothing_else(
    n: Node, attached: dict[str, Container]
) -> None:
    keep = [attached["a"], attached["b"]]

    assert n.plugin.collect(config(), keep).succeeded()

    assert present(n, attached) == {"a", "b", "d"}
    with unchanged(n):
        assert n.plugin.collect(config(), keep).succeeded()


def test_gc_of_an_empty_list_takes_all_of_its_own_away(
    n: Node, attached: dict[str, Container]
) -> None:
    assert n.plugin.collect(config(), []).succeeded()

    assert present(n, attached) == {"d"}


def test_gc_takes_nothing_that_is_listed(n: Node, attached: dict[str, Container]) -> None:
    unknown = Container(id="never-seen", netns="", interface="eth0")
    with unchanged(n):
        own = [one for name, one in attached.items() if name != "d"]
        assert n.plugin.collect(config(), [*own, unknown]).succeeded()


def test_gc_of_another_list_touches_nothing(n: Node, attached: dict[str, Container]) -> None:
    with unchanged(n):
        for name in ("nobodys", "check", "checked2", "CHECKED"):
            assert n.plugin.collect(config(name=name), []).succeeded()
    assert present(n, attached) == set(attached)


def test_gc_collects_what_lost_its_namespace(n: Node) -> None:
    before = n.state()
    with n.container() as c:
        n.plugin.add(config(name="lost"), c).result()
        n.host.delete_netns(os.path.basename(c.netns))  # noqa: PTH119
        assert n.plugin.collect(config(name="lost"), []).succeeded()
    settles_as(n, before)


def test_gc_does_not_ask_for_a_network_that_is_there(n: Node) -> None:
    """The file may have been edited since: what it made must go all the same."""
    before = n.state()
    with n.container() as c:
        n.plugin.add(config(name="edited"), c).result()
        edited = config(name="edited", network="elsewhere", tenant="nobody")
        assert n.plugin.collect(edited, []).succeeded()
    settles_as(n, before)


@pytest.mark.parametrize(
    "listed",
    [
        "nonsense",
        5,
        {"containerID": "x", "ifname": "eth0"},
        ["x"],
        [5],
        [{}],
        [{"containerID": "x"}],
        [{"ifname": "eth0"}],
        [{"containerID": 5, "ifname": "eth0"}],
        [{"containerID": "x", "ifname": None}],
    ],
    ids=repr,
)
def test_gc_of_a_malformed_list_takes_nothing(
    n: Node, attached: dict[str, Container], listed: Any
) -> None:
    with unchanged(n):
        keys = {**config(), LISTED: listed}
        error = read_error(n.plugin.call(n.plugin.environment("GC"), keys))
        assert error.code == INVALID_CONFIGURATION
        assert LISTED in error.text
    assert present(n, attached) == set(attached)


def test_gc_without_a_list_takes_nothing(n: Node, attached: dict[str, Container]) -> None:
    """Nobody has said that nothing is in use."""
    with unchanged(n):
        error = read_error(n.plugin.call(n.plugin.environment("GC"), config()))
        assert error.code == INVALID_CONFIGURATION
        assert LISTED in error.text
    assert present(n, attached) == set(attached)


@pytest.mark.parametrize("name", [None, "", "../checked", "a/b", 5, ["checked"]], ids=repr)
def test_gc_of_a_list_without_a_name_takes_nothing(
    n: Node, attached: dict[str, Container], name: Any
) -> None:
    with unchanged(n):
        keys = {**config(), LISTED: [], "name": name}
        if name is None:
            del keys["name"]
        error = read_error(n.plugin.call(n.plugin.environment("GC"), keys))
        assert error.code == INVALID_CONFIGURATION
        assert "name" in error.text
    assert present(n, attached) == set(attached)
