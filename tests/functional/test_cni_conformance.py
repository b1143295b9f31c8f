"""The CNI specification, from a reader's side: every verb in every version, in and out of order.

Written after the specification (1.1.0, and what 0.3.1 to 1.0.0 say otherwise). The same questions
are put to Debian's `bridge` first, so that what is asked here is what CNI plugins do. What is
wrong with a call is tests/functional/test_cni_bad_input.py, and what CHECK and GC find
tests/functional/test_cni_check.py.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from lab.waiting import until
from tests.functional.cni_calls import REFERENCE, Answer, Config, Container, Plugin
from tests.functional.cni_formats import (
    VERSIONS,
    Interface110,
    Result,
    Versions,
    read_error,
    read_result,
)
from tests.functional.cni_node import Node, node, settles_as, unchanged

pytestmark = pytest.mark.functional

NETWORKS = {
    "plain": "--cidr 10.1.0.0/24 --dns 10.1.0.53",
    "pods": "--cidr 10.244.0.0/24 --host-access",
    "six": "--cidr fd00:244::/64 --host-access",
    "both": "--cidr 10.245.0.0/24 --cidr fd00:245::/64 --host-access",
}
SINCE_040 = VERSIONS[1:]

INCOMPATIBLE_VERSION, UNKNOWN_CONTAINER, INVALID_ENVIRONMENT = 1, 3, 4
UNDECODABLE, INVALID_CONFIGURATION, TRY_AGAIN_LATER, NOT_AVAILABLE = 6, 7, 11, 50
TAKEN = 102


def config(version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    """What a runtime gives to the plugin."""
    return {
        "cniVersion": version,
        "name": "conformance",
        "type": "virtkit",
        "tenant": "default",
        "network": "plain",
        **keys,
    }


@pytest.fixture(scope="module")
def n() -> Iterator[Node]:
    """The node. A container stays on each network, so that what they share stays too."""
    with node("conformance", NETWORKS) as n, ExitStack() as stack:
        for network in NETWORKS:
            stays = stack.enter_context(n.container(network))
            n.plugin.add(config(name="stays", network=network), stays).result()
        yield n


# What plugins do, and what the reference does


def bridge(version: str) -> Config:
    """Debian's `bridge` with `host-local`, which speak 1.0.0 at most."""
    return {
        "cniVersion": version,
        "name": "reference",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "subnet": "10.9.0.0/24",
            "dataDir": "/run/host-local",
            "routes": [{"dst": "0.0.0.0/0"}],
        },
        "dns": {"nameservers": ["10.9.0.53"], "search": ["example.org"]},
    }


Configured = Callable[[str], Config]
PLUGINS = ("bridge", "virtkit")


def either(n: Node, name: str) -> tuple[Plugin, Configured]:
    """One of both plugins, and how it is configured."""
    if name == "bridge":
        return Plugin(REFERENCE / "bridge", n.host), bridge
    return n.plugin, config


def versions_of(name: str) -> tuple[str, ...]:
    return VERSIONS if name == "virtkit" else tuple(one for one in VERSIONS if one != "1.1.0")


EACH = [(name, version) for name in PLUGINS for version in versions_of(name)]


@pytest.mark.parametrize(("name", "version"), EACH)
def test_an_attachment_is_as_its_result_says(n: Node, name: str, version: str) -> None:
    plugin, configured = either(n, name)
    with n.container() as c:
        answer = plugin.add(configured(version), c)

        result = read_result(answer, version, c)
        inside = next(one for one in result.interfaces if one.sandbox == c.netns)
        link = n.links(c)[c.interface]
        assert inside.mac == link["address"]
        assert "UP" in link["flags"]
        assert {ip.address for ip in result.ips} == n.addresses(c) != set()
        assert {route.dst for route in result.routes} == {dst for dst, _ in n.routes(c)}
        if isinstance(inside, Interface110):
            assert inside.mtu == link["mtu"]
        assert plugin.delete(configured(version), c).succeeded()


@pytest.mark.parametrize(("name", "version"), EACH)
def test_an_attachment_may_be_deleted_twice_and_made_again(
    n: Node, name: str, version: str
) -> None:
    plugin, configured = either(n, name)
    with n.container() as c:
        for _ in range(2):
            read_result(plugin.add(configured(version), c), version, c)
            assert c.interface in n.links(c)
            assert plugin.delete(configured(version), c).succeeded()
            assert c.interface not in n.links(c)
            assert plugin.delete(configured(version), c).succeeded()


@pytest.mark.parametrize(("name", "version"), EACH)
def test_an_interface_that_is_there_is_not_made_again(n: Node, name: str, version: str) -> None:
    plugin, configured = either(n, name)
    with n.container() as c:
        first = read_result(plugin.add(configured(version), c), version, c)
        links = n.links(c)

        error = read_error(plugin.add(configured(version), c), house_style=name == "virtkit")

        assert name == "bridge" or error.code == TAKEN
        assert n.links(c) == links
        assert {ip.address for ip in first.ips} == n.addresses(c)
        assert plugin.delete(configured(version), c).succeeded()


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("missing", ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"])
def test_a_variable_that_add_needs_is_named(n: Node, name: str, missing: str) -> None:
    plugin, configured = either(n, name)
    with n.container() as c, unchanged(n):
        environment = plugin.environment("ADD", c)
        del environment[missing]

        answer = plugin.call(environment, configured("1.0.0"))

        if name == "bridge" and missing == "CNI_COMMAND":
            # Called by hand, it introduces itself.
            assert b"CNI bridge plugin" in answer.stderr
            return
        error = read_error(answer, house_style=name == "virtkit")
        assert error.code == INVALID_ENVIRONMENT
        assert missing in error.text


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"", UNDECODABLE),
        (b'{"cniVersion": "1.0.0", ', UNDECODABLE),
        (b'{"cniVersion": "9.9.9", "name": "x", "type": "virtkit"}', INCOMPATIBLE_VERSION),
    ],
)
def test_an_input_that_says_nothing_is_refused(n: Node, name: str, stdin: bytes, code: int) -> None:
    plugin, _ = either(n, name)
    with n.container() as c, unchanged(n):
        answer = plugin.call(plugin.environment("ADD", c), stdin)

        assert read_error(answer, house_style=name == "virtkit").code == code


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("version", VERSIONS)
def test_versions_are_told_to_whoever_asks(n: Node, name: str, version: str) -> None:
    plugin, _ = either(n, name)

    answer = plugin.version(version)

    told = msgspec.json.decode(answer.stdout, type=Versions)
    assert answer.status == 0
    assert set(versions_of(name)) <= set(told.supportedVersions)
    if name == "virtkit":
        assert told == Versions(cniVersion=version, supportedVersions=list(VERSIONS))


@pytest.mark.parametrize(
    "stdin", [b"", b"no JSON", b'{"cniVersion": "9.9.9"}', b'{"cniVersion": 1}']
)
@pytest.mark.parametrize("name", PLUGINS)
def test_versions_are_told_whatever_the_input(n: Node, name: str, stdin: bytes) -> None:
    plugin, _ = either(n, name)

    answer = plugin.call({"CNI_COMMAND": "VERSION"}, stdin)

    assert (answer.status, answer.stderr) == (0, b""), answer
    told = msgspec.json.decode(answer.stdout, type=Versions)
    newest = versions_of(name)[-1]
    assert told.cniVersion == newest
    assert set(versions_of(name)) <= set(told.supportedVersions)


# Attachments: each verb in each version


def attach(n: Node, c: Container, version: str = "1.1.0", **keys: Any) -> Result:
    """ADD that must succeed, with its result checked."""
    return read_result(n.plugin.add(config(version, **keys), c), version, c)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_has_what_its_version_has_and_what_the_network_says(n: Node, version: str) -> None:
    before = n.state()
    with n.container() as c:
        answer = n.plugin.add(config(version, network="pods"), c)
        read_result(answer, version, c)
        document = answer.document()

        host, inside = document["interfaces"]
        (ip,) = document["ips"]
        assert document.keys() == {"cniVersion", "interfaces", "ips", "routes", "dns"}
        in_110 = {"mtu"} if version == "1.1.0" else set()
        assert inside.keys() == {"name", "mac", "sandbox"} | in_110
        assert host.keys() - {"mac"} - in_110 == {"name"}
        in_04x = {"version"} if version < "1" else set()
        assert ip.keys() == {"address", "gateway", "interface"} | in_04x
        assert (ip["gateway"], ip["interface"]) == ("10.244.0.1", 1)
        assert document["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}]
        assert n.routes(c) == {("0.0.0.0/0", "10.244.0.1")}
        assert n.plugin.delete(config(version), c).succeeded()
    settles_as(n, before)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("network", "gateways"),
    [("six", {"6": "fd00:244::1"}), ("both", {"4": "10.245.0.1", "6": "fd00:245::1"})],
)
def test_a_result_of_ipv6_is_as_one_of_ipv4(
    n: Node, version: str, network: str, gateways: dict[str, str]
) -> None:
    everywhere = {"4": "0.0.0.0/0", "6": "::/0"}
    before = n.state()
    with n.container() as c:
        answer = n.plugin.add(config(version, network=network), c)
        result = read_result(answer, version, c)
        document = answer.document()

        assert {ip.address for ip in result.ips} == n.addresses(c)
        assert [ip["gateway"] for ip in document["ips"]] == list(gateways.values())
        if version < "1":
            assert [ip["version"] for ip in document["ips"]] == list(gateways)
        routes = [(everywhere[family], gateway) for family, gateway in gateways.items()]
        assert [(route["dst"], route["gw"]) for route in document["routes"]] == routes
        assert n.routes(c) == set(routes)
        if version in SINCE_040:
            assert n.plugin.check(config(version, network=network), c, document).succeeded()
        assert n.plugin.delete(config(version), c).succeeded()
    settles_as(n, before)


@pytest.mark.parametrize("version", VERSIONS)
def test_name_servers_are_the_networks_unless_the_configuration_has_its_own(
    n: Node, version: str
) -> None:
    own = {"nameservers": ["10.1.0.54"], "domain": "a.org", "search": ["b.org"], "options": ["x"]}
    for keys, told in (({}, {"nameservers": ["10.1.0.53"]}), ({"dns": own}, own)):
        with n.container() as c:
            document = n.plugin.add(config(version, **keys), c).result()
            assert document["dns"] == told
            assert n.plugin.delete(config(version, **keys), c).succeeded()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_goes_on_with_that_of_the_plugin_before(n: Node, version: str) -> None:
    """In a chain, virtkit need not be the first."""
    in_04x = {"version": "4"} if version < "1" else {}
    earlier = {
        "cniVersion": version,
        "interfaces": [{"name": "before0"}],
        "ips": [{"address": "192.0.2.1/32", "interface": 0, **in_04x}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"domain": "example.org"},
    }
    with n.container() as c:
        keys = config(version, network="pods", prevResult=earlier)
        document = n.plugin.add(keys, c).result()

        before, _, inside = document["interfaces"]
        assert (before, inside["name"]) == ({"name": "before0"}, c.interface)
        assert document["ips"][0] == earlier["ips"][0]
        assert document["ips"][1]["interface"] == 2
        assert document["routes"][0] == {"dst": "198.51.100.0/24"}
        assert document["dns"] == {"domain": "example.org"}
        assert n.plugin.delete(config(version), c, previous=document).succeeded()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_container_has_as_many_interfaces_as_it_is_given(n: Node, version: str) -> None:
    before = n.state()
    with n.container() as c:
        interfaces = [
            Container(id=c.id, netns=c.netns, interface=name) for name in ("eth0", "net1", "net2")
        ]
        for one, network in zip(interfaces, ("pods", "plain", "plain"), strict=True):
            attach(n, one, version, network=network)
        assert {"eth0", "net1", "net2"} < n.links(c).keys()
        # Only the first gets a default route: there was none, and its network has a way out.
        assert [len(n.routes(one)) for one in interfaces] == [1, 0, 0]

        assert n.plugin.delete(config(version), interfaces[1]).succeeded()
        assert {"eth0", "net2"} == n.links(c).keys() & {"eth0", "net1", "net2"}
        for one in interfaces:
            assert n.plugin.delete(config(version), one).succeeded()
    settles_as(n, before)


@pytest.mark.parametrize("version", VERSIONS)
def test_add_twice_leaves_the_first_as_it_was(n: Node, version: str) -> None:
    with n.container() as c:
        first = n.plugin.add(config(version), c)
        with unchanged(n):
            for other in ({}, {"network": "pods"}, {"name": "another"}):
                error = read_error(n.plugin.add(config(version, **other), c))
                assert error.code == TAKEN
        if version in SINCE_040:
            assert n.plugin.check(config(version), c, first.result()).succeeded()
        assert n.plugin.delete(config(version), c).succeeded()


@pytest.mark.parametrize("version", VERSIONS)
def test_an_interface_of_somebody_elses_is_not_touched(n: Node, version: str) -> None:
    with n.container() as c:
        n.inside(c, "ip", "link", "add", c.interface, "type", "bridge")
        n.inside(c, "ip", "addr", "add", "192.0.2.1/24", "dev", c.interface)
        with unchanged(n):
            error = read_error(n.plugin.add(config(version), c))
            assert error.code == TAKEN
            assert c.interface in error.text
            # What was never attached is not ours to delete.
            assert n.plugin.delete(config(version), c).succeeded()


def test_one_of_many_equal_adds_at_once_succeeds(n: Node) -> None:
    before = n.state()
    with n.container() as c:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: n.plugin.add(config(), c), range(8)))
        (won,) = [answer for answer in answers if answer.status == 0]
        lost = [read_error(answer) for answer in answers if answer.status != 0]
        assert {error.code for error in lost} == {TAKEN}
        assert n.plugin.check(config(), c, won.result()).succeeded()
        assert n.plugin.delete(config(), c).succeeded()
    settles_as(n, before)


def test_different_containers_at_once_are_different_places(n: Node) -> None:
    before = n.state()
    contexts = [n.container() for _ in range(16)]
    containers = [context.__enter__() for context in contexts]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda c: n.plugin.add(config(), c), containers))
        results = [read_result(a, "1.1.0", c) for a, c in zip(answers, containers, strict=True)]
        assert len({result.ips[0].address for result in results}) == 16
        gone = list(pool.map(lambda c: n.plugin.delete(config(), c), containers))
    assert all(answer.succeeded() for answer in gone)
    for context in contexts:
        context.__exit__(None, None, None)
    settles_as(n, before)


def test_add_and_delete_at_once_end_in_one_of_both(n: Node) -> None:
    before = n.state()
    for _ in range(10):
        with n.container() as c, ThreadPoolExecutor(2) as pool:
            added = pool.submit(n.plugin.add, config(), c)
            deleted = pool.submit(n.plugin.delete, config(), c)
            assert deleted.result().succeeded()
            answer: Answer = added.result()
            if answer.status == 0 and c.interface in n.links(c):
                assert n.plugin.check(config(), c, answer.result()).succeeded()
            assert n.plugin.delete(config(), c).succeeded()
    settles_as(n, before)


# Deleting what is hardly there


@pytest.mark.parametrize("version", VERSIONS)
def test_what_was_never_attached_may_be_deleted(n: Node, version: str) -> None:
    with n.container() as c, unchanged(n):
        assert n.plugin.delete(config(version), c).succeeded()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "netns",
    [None, "", "/run/netns/gone", "/etc/hostname", "/proc/1/ns/net", "relative", "/" + "x" * 5000],
)
def test_an_attachment_is_deleted_wherever_its_namespace_is_said_to_be(
    n: Node, version: str, netns: str | None
) -> None:
    before = n.state()
    with n.container() as c:
        attach(n, c, version)
        environment = n.plugin.environment("DEL", c)
        if netns is None:
            del environment["CNI_NETNS"]
        else:
            environment["CNI_NETNS"] = netns

        assert n.plugin.call(environment, config(version)).succeeded()

        assert c.interface not in n.links(c)
    settles_as(n, before)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_attachment_is_deleted_after_its_namespace(n: Node, version: str) -> None:
    before = n.state()
    with n.container() as c:
        result = n.plugin.add(config(version), c).result()
        n.host.delete_netns(c.netns.rpartition("/")[2])
        assert n.plugin.delete(config(version), c, previous=result).succeeded()
        assert n.plugin.delete(config(version), c, previous=result).succeeded()
    settles_as(n, before)


@pytest.mark.parametrize("previous", ["nonsense", [], {}, {"ips": 5}, {"cniVersion": "9.9.9"}])
def test_an_attachment_is_deleted_whatever_the_runtime_remembers(n: Node, previous: Any) -> None:
    before = n.state()
    with n.container() as c:
        attach(n, c)
        assert n.plugin.delete(config(), c, previous=previous).succeeded()
        assert c.interface not in n.links(c)
    settles_as(n, before)


@pytest.mark.parametrize(
    "keys", [{"surplus": 1}, {"mtu": "x"}, {"network": "gone"}, {"name": "../x"}, {"name": 5}]
)
def test_an_attachment_is_deleted_although_its_configuration_has_gone_bad(
    n: Node, keys: dict[str, Any]
) -> None:
    """Somebody has edited the file meanwhile: what was attached must still be detached."""
    before = n.state()
    with n.container() as c:
        attach(n, c)
        assert n.plugin.delete(config(**keys), c).succeeded()
        assert c.interface not in n.links(c)
    settles_as(n, before)


# Verbs and their versions


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("verb", "since"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")]
)
def test_a_verb_is_refused_in_versions_before_it(
    n: Node, verb: str, since: str, version: str
) -> None:
    with n.container() as c:
        result = n.plugin.add(config(version), c).result()
        with unchanged(n):
            answer = n.plugin.call(
                n.plugin.environment(verb, c if verb == "CHECK" else None),
                {
                    **config(version, name="another" if verb == "GC" else "conformance"),
                    **({"prevResult": result} if verb == "CHECK" else {}),
                    **({"cni.dev/valid-attachments": []} if verb == "GC" else {}),
                },
            )
            if VERSIONS.index(version) >= VERSIONS.index(since):
                assert answer.succeeded()
            else:
                error = read_error(answer)
                assert error.code == INCOMPATIBLE_VERSION
                assert verb in error.text and since in error.text
        assert n.plugin.delete(config(version), c).succeeded()


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "1.0.1", "1.2.0", "2.0.0", "1.1"])
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_a_version_that_is_not_spoken_is_refused(n: Node, verb: str, version: str) -> None:
    with n.container() as c, unchanged(n):
        about = c if verb in ("ADD", "DEL", "CHECK") else None
        error = read_error(n.plugin.call(n.plugin.environment(verb, about), config(version)))
        assert error.code == INCOMPATIBLE_VERSION
        assert version in error.text
        assert all(one in error.text for one in VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_errors_are_in_the_version_of_the_call(n: Node, version: str) -> None:
    with n.container() as c, unchanged(n):
        error = read_error(n.plugin.add(config(version, surplus=1), c))
        assert error.cniVersion == version


# Choosing an address, and who has the last word


def test_what_a_container_asks_for_goes_by_the_order_of_the_conventions(n: Node) -> None:
    """`runtimeConfig` before `args.cni` before `CNI_ARGS` before the file."""
    sources: list[dict[str, Any]] = [
        {"ips": ["10.1.0.201"], "mac": "0a:00:00:00:02:01"},
        {"args": {"cni": {"ips": ["10.1.0.203"], "mac": "0a:00:00:00:02:03"}}},
        {
            "capabilities": {"ips": True, "mac": True},
            "runtimeConfig": {"ips": ["10.1.0.204/24"], "mac": "0a:00:00:00:02:04"},
        },
    ]
    args = "IgnoreUnknown=1;IP=10.1.0.202;MAC=0a:00:00:00:02:02;K8S_POD_NAME=web;OTHER=1"
    cases = [
        (sources[:1], None, 201),
        (sources[:1], args, 202),
        (sources[:2], args, 203),
        (sources, args, 204),
    ]
    for given, arguments, expected in cases:
        keys = {key: value for source in given for key, value in source.items()}
        with n.container() as c:
            answer = n.plugin.add(config(**keys), c, args=arguments)
            result = read_result(answer, "1.1.0", c)
            inside = next(one for one in result.interfaces if one.sandbox == c.netns)
            assert result.ips[0].address == f"10.1.0.{expected}/24"
            assert inside.mac == f"0a:00:00:00:02:0{expected - 200}"
            assert n.links(c)[c.interface]["address"] == inside.mac
            assert n.plugin.delete(config(**keys), c, args=arguments).succeeded()


@pytest.mark.parametrize("version", VERSIONS)
def test_mtu_and_routes_of_the_configuration_are_in_the_container(n: Node, version: str) -> None:
    keys: dict[str, Any] = {
        "mtu": 1300,
        "routes": [{"dst": "10.50.0.0/16", "gw": "10.1.0.9"}, {"dst": "10.51.0.0/16"}],
        "defaultRoute": False,
    }
    with n.container() as c:
        result = attach(n, c, version, **keys)

        assert n.links(c)[c.interface]["mtu"] == 1300
        assert n.routes(c) == {("10.50.0.0/16", "10.1.0.9"), ("10.51.0.0/16", None)}
        assert {route.dst for route in result.routes} == {"10.50.0.0/16", "10.51.0.0/16"}
        assert n.plugin.delete(config(version, **keys), c).succeeded()


def test_keys_of_runtimes_and_of_other_plugins_are_let_pass(n: Node) -> None:
    keys: dict[str, Any] = {
        "cni.dev/anything": {"deep": [1]},
        "capabilities": {"portMappings": True, "bandwidth": True},
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80}]},
        "args": {"cni": {"labels": [{"key": "a", "value": "b"}]}, "example.org/x": 5},
    }
    with n.container() as c:
        attach(n, c, **keys)
        assert n.plugin.delete(config(**keys), c).succeeded()


# Without those that do the work


def test_without_the_agent_every_verb_has_its_answer(n: Node) -> None:
    before = n.state()
    with n.container() as c, n.container() as other:
        result = n.plugin.add(config(), c).result()
        n.host.stop("agent")
        try:
            assert read_error(n.plugin.add(config(), other)).code == TRY_AGAIN_LATER
            assert read_error(n.plugin.check(config(), c, result)).code == TRY_AGAIN_LATER
            assert read_error(n.plugin.collect(config(), [])).code == TRY_AGAIN_LATER
            assert read_error(n.plugin.status(config())).code == NOT_AVAILABLE
            assert n.plugin.version("1.0.0").result()["supportedVersions"] == list(VERSIONS)
            assert n.plugin.delete(config(), c).succeeded()
            assert n.plugin.delete(config(), c).succeeded()
            assert n.plugin.delete(config(), other).succeeded()
        finally:
            n.host.start("agent")
        until(
            lambda: c.interface not in n.links(c),
            what="the agent does not make up for a DEL that it missed",
            timeout_s=10,
        )
    settles_as(n, before)


def test_without_the_fabric_status_says_so_and_nothing_is_attached(n: Node) -> None:
    before = n.state()
    with n.container() as c:
        n.lab.ctl.kill("fabric")
        try:
            until(
                lambda: n.plugin.status(config()).status != 0,
                what="STATUS finds nothing wrong",
                timeout_s=20,
            )
            error = read_error(n.plugin.status(config()))
            assert error.code in (NOT_AVAILABLE, 51)
            assert read_error(n.plugin.add(config(), c)).code == TRY_AGAIN_LATER
            assert c.interface not in n.links(c)
        finally:
            n.lab.ctl.start("fabric")
        until(
            lambda: n.plugin.status(config()).succeeded(),
            what="STATUS does not find the database again",
            timeout_s=30,
        )
        attach(n, c)
        assert n.plugin.delete(config(), c).succeeded()
    settles_as(n, before)


def test_calls_leave_no_file_open_in_the_agent(n: Node) -> None:
    pid = n.host.path("/run/virtlab/agent.pid").read_text().strip()
    directory = n.host.path(f"/proc/{pid}/fd")

    def count() -> int:
        return len(os.listdir(directory))  # noqa: PTH208

    before = count()
    with n.container() as c:
        for _ in range(30):
            attach(n, c)
            read_error(n.plugin.add(config(), c))
            read_error(n.plugin.call(n.plugin.environment("ADD", c), b"no JSON"))
            assert n.plugin.delete(config(), c).succeeded()
    until(
        lambda: count() <= before + 1,
        what="files stay open",
        timeout_s=10,
        explain=lambda: f"{before} before, {count()} now",
    )
