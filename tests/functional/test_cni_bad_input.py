"""Calls of the CNI program that are wrong: each is refused in a sentence, and nothing is left.

Each is made in every version, and for every verb that reads what is wrong with it. The fabric,
the switch, the host's links and what is in every container's namespace are compared.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from tests.functional.cni_calls import Answer, Container
from tests.functional.cni_formats import VERSIONS, Error, read_error
from tests.functional.cni_node import Node, node, unchanged

pytestmark = pytest.mark.functional

MTU = 1450
NETWORKS = {
    "plain": "--cidr 10.1.0.0/24",
    "pods": "--cidr 10.244.0.0/24 --host-access",
    "small": "--cidr 10.3.0.0/29 --pool 10.3.0.2-10.3.0.2",
}
IN_USE: dict[str, Any] = {"ips": ["10.1.0.240"], "mac": "0a:00:00:00:00:f0"}

INCOMPATIBLE_VERSION, UNKNOWN_CONTAINER, INVALID_ENVIRONMENT = 1, 3, 4
UNDECODABLE, INVALID_CONFIGURATION = 6, 7
QUOTA_EXCEEDED, NO_ADDRESS_LEFT, TAKEN = 100, 101, 102

SINCE = {"ADD": "0.3.1", "DEL": "0.3.1", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
OF_INTERFACE = ("ADD", "DEL", "CHECK")


def config(version: str = "1.1.0", **keys: Any) -> dict[str, Any]:
    return {
        "cniVersion": version,
        "name": "bad",
        "type": "virtkit",
        "tenant": "default",
        "network": "plain",
        **keys,
    }


@pytest.fixture(scope="module")
def n() -> Iterator[Node]:
    """The node. A container stays on either network; the one of `plain` has what `IN_USE` says."""
    with node("input", NETWORKS) as n, n.container("plain") as a, n.container("pods") as b:
        n.plugin.add(config(name="stays", **IN_USE), a).result()
        n.plugin.add(config(name="stays", network="pods"), b).result()
        yield n


@pytest.fixture
def c(n: Node) -> Iterator[Container]:
    """A container that is not attached; nothing of what is done with it stays."""
    with n.container() as c, unchanged(n):
        yield c


def versions_of(verb: str) -> Sequence[str]:
    return VERSIONS[VERSIONS.index(SINCE[verb]) :]


def complete(
    n: Node, verb: str, c: Container, version: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Environment and configuration of a call that would be right, were c attached."""
    about = c if verb in OF_INTERFACE else None
    keys = config(version, **({"prevResult": _previous(c)} if verb == "CHECK" else {}))
    if verb == "GC":
        keys["cni.dev/valid-attachments"] = []
    return n.plugin.environment(verb, about), keys


def _previous(c: Container) -> dict[str, Any]:
    return {
        "interfaces": [{"name": "vk0"}, {"name": c.interface, "sandbox": c.netns}],
        "ips": [{"address": "10.1.0.2/24", "interface": 1}],
    }


@contextmanager
def case(*what: object) -> Iterator[None]:
    """What is tried in the block is named if it fails: many are, between two looks at the node."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the case of {what!r}"[:500])
        raise


def refused(answer: Answer, *codes: int, names: str | None = None) -> Error:
    """The error, which has one of these numbers and speaks of what is wrong."""
    error = read_error(answer)
    assert error.code in codes, error
    assert names is None or names in error.text, error
    return error


# The environment


@pytest.mark.parametrize(
    ("verb", "missing"),
    [
        (verb, name)
        for verb, names in {
            "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
            "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
            "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
        }.items()
        for name in names
    ],
)
@pytest.mark.parametrize("how", ["unset", "empty"])
def test_a_missing_variable_is_named(
    n: Node, c: Container, verb: str, missing: str, how: str
) -> None:
    for version in versions_of(verb):
        environment, keys = complete(n, verb, c, version)
        if how == "unset":
            del environment[missing]
        else:
            environment[missing] = ""
        error = refused(n.plugin.call(environment, keys), INVALID_ENVIRONMENT, names=missing)
        assert error.cniVersion == version


@pytest.mark.parametrize("command", [None, "", "add", "ADD ", "INIT", "FINALIZE", "A" * 5000])
def test_a_verb_that_is_none_is_refused(n: Node, c: Container, command: str | None) -> None:
    for version in VERSIONS:
        environment, keys = complete(n, "ADD", c, version)
        if command is None:
            del environment["CNI_COMMAND"]
        else:
            environment["CNI_COMMAND"] = command
        refused(n.plugin.call(environment, keys), INVALID_ENVIRONMENT, names="CNI_COMMAND")


CONTAINER_IDS = [
    "-a",
    ".a",
    "_a",
    "..",
    "../../etc",
    "a/b",
    "a b",
    "a\n",
    "a\tb",
    "a:b",
    "a;b",
    "a'b",
    'a"b',
    "ä",
    "a\udcff",
    "a" * 5000,
]


@pytest.mark.parametrize("verb", OF_INTERFACE)
def test_a_container_id_that_is_none_is_refused(n: Node, c: Container, verb: str) -> None:
    for version in versions_of(verb):
        environment, keys = complete(n, verb, c, version)
        for container in CONTAINER_IDS:
            with case(container, version):
                answer = n.plugin.call({**environment, "CNI_CONTAINERID": container}, keys)
                refused(answer, INVALID_ENVIRONMENT, names="CNI_CONTAINERID")


INTERFACES = [
    ".",
    "..",
    "a" * 16,
    "é" * 8,
    "a/b",
    "../a",
    "a:b",
    "a b",
    "a\tb",
    "a\n",
    "a\vb",
    "a\u2003b",
    "eth%d",
    "%d",
    "a" * 5000,
]


@pytest.mark.parametrize("verb", OF_INTERFACE)
def test_an_interface_name_that_is_none_is_refused(n: Node, c: Container, verb: str) -> None:
    """The specification's rules, the kernel's 15 bytes, and its pattern `%d`."""
    for version in versions_of(verb):
        environment, keys = complete(n, verb, c, version)
        for interface in INTERFACES:
            with case(interface, version):
                answer = n.plugin.call({**environment, "CNI_IFNAME": interface}, keys)
                refused(answer, INVALID_ENVIRONMENT, names="CNI_IFNAME")


def test_the_loopback_is_taken(n: Node, c: Container) -> None:
    for version in VERSIONS:
        environment, keys = complete(n, "ADD", c, version)
        environment["CNI_IFNAME"] = "lo"
        refused(n.plugin.call(environment, keys), TAKEN, INVALID_ENVIRONMENT, names="lo")


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize(
    ("netns", "codes"),
    [
        # Code 3 tells the runtime that there is nothing to clean up.
        ("/run/netns/gone", (UNKNOWN_CONTAINER,)),
        ("/run/netns/gone/deeper", (UNKNOWN_CONTAINER,)),
        ("relative", (INVALID_ENVIRONMENT,)),
        ("../run/netns/c1", (INVALID_ENVIRONMENT,)),
        ("/etc/hostname", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/etc", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/dev/zero", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/run/pipe", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/run/virtkit/cni.sock", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/proc/1/ns/mnt", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/proc/1/ns/uts", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/proc/1/ns/pid", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/proc/1/ns/net", (INVALID_ENVIRONMENT,)),
        ("/proc/self/ns/net", (INVALID_ENVIRONMENT,)),
        ("/" + "x" * 300, (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/x" * 2500, (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/run/netns/\udcff", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
        ("/run/netns/a\nb", (UNKNOWN_CONTAINER, INVALID_ENVIRONMENT)),
    ],
    ids=lambda one: ascii(one[:24]) if isinstance(one, str) else "",
)
def test_a_namespace_that_is_none_is_refused(
    n: Node, c: Container, verb: str, netns: str, codes: tuple[int, ...]
) -> None:
    pipe = n.host.path("/run/pipe")
    if netns == "/run/pipe":
        os.mkfifo(pipe)
    try:
        for version in versions_of(verb):
            environment, keys = complete(n, verb, c, version)
            environment["CNI_NETNS"] = netns
            # To CHECK, the container is unknown in any case.
            also = (UNKNOWN_CONTAINER,) if verb == "CHECK" else ()
            refused(n.plugin.call(environment, keys), *codes, *also)
    finally:
        pipe.unlink(missing_ok=True)
    assert n.plugin.status(config()).succeeded()


@pytest.mark.parametrize(
    ("args", "codes", "names"),
    [
        ("nonsense", (INVALID_ENVIRONMENT,), "CNI_ARGS"),
        ("FOO=BAR", (INVALID_ENVIRONMENT,), "FOO"),
        ("IgnoreUnknown=0;FOO=BAR", (INVALID_ENVIRONMENT,), "FOO"),
        ("IP=10.1.0.999", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), "10.1.0.999"),
        ("IP=10.9.9.9", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), "10.9.9.9"),
        ("IP=fd00::1", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), "fd00::1"),
        ("MAC=zz", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), "zz"),
        ("MAC=01:00:5e:00:00:01", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), "01:00:5e"),
        ("NETWORK=nowhere", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), "nowhere"),
        ("NETWORK=../x", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), "../x"),
        ("TENANT=other", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), "tenant"),
        ("IP=10.1.0.240", (TAKEN,), "10.1.0.240"),
        ("MAC=0a:00:00:00:00:f0", (TAKEN,), "0a:00:00:00:00:f0"),
        ("IP=\udcff", (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), None),
        ("IP=" + "1" * 30000, (INVALID_ENVIRONMENT, INVALID_CONFIGURATION), None),
        ("A" * 100_000, (INVALID_ENVIRONMENT,), None),
    ],
    ids=lambda one: ascii(one[:24]) if isinstance(one, str) else "",
)
def test_arguments_that_say_nothing_good_are_refused(
    n: Node, c: Container, args: str, codes: tuple[int, ...], names: str | None
) -> None:
    for version in VERSIONS:
        answer = n.plugin.add(config(version), c, args=args)
        refused(answer, *codes, names=names)


# The input as such

JSON_IT_IS_NOT: dict[str, bytes] = {
    "nothing": b"",
    "space": b" \n",
    "nonsense": b"nonsense",
    "cut off": b'{"cniVersion": "1.0.0", "name": ',
    "two": b"{}{}",
    "trailing": b'{"cniVersion": "1.0.0"} x',
    "no UTF-8": b'{"cniVersion": "1.0.0", "name": "\xff\xfe"}',
    "a NUL": b"\0",
    "a comment": b'{"cniVersion": "1.0.0" /* newest */}',
    "not a number": b'{"cniVersion": "1.0.0", "mtu": NaN}',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "a list": b"[]",
    "a text": b'"virtkit"',
    "a number": b"5",
    "null": b"null",
    "half a surrogate": b'{"cniVersion": "1.0.0", "name": "\\ud800"}',
    "1 MiB and more": b" " * (1 << 20) + b"{}",
    "5 MiB of a key": b'{"' + b"k" * (5 << 20) + b'": 1}',
}


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_an_input_that_is_no_json_object_is_refused(n: Node, c: Container, verb: str) -> None:
    environment, _ = complete(n, verb, c, "1.1.0")
    for what, stdin in JSON_IT_IS_NOT.items():
        # What can be read as far as its version and name may be refused for these.
        also = {
            "deep and closed": (INCOMPATIBLE_VERSION,),
            "half a surrogate": (INVALID_CONFIGURATION,),
        }.get(what, ())
        with case(what):
            refused(n.plugin.call(environment, stdin), UNDECODABLE, *also)


def test_an_input_of_1_mib_is_read(n: Node) -> None:
    """The largest there may be, and nothing on the way cuts it off."""
    with n.container() as c:
        text = json.dumps(config()).encode()
        full = text + b" " * ((1 << 20) - len(text))
        environment = n.plugin.environment("ADD", c)
        assert n.plugin.call(environment, full).result()["cniVersion"] == "1.1.0"
        refused(n.plugin.call(environment, full + b" "), UNDECODABLE)
        assert n.plugin.delete(config(), c).succeeded()


# Keys

WRONG: dict[str, list[Any]] = {
    "cniVersion": [5, None, [], {}, True],
    "name": [5, None, [], "", "../x", "a/b", "-a", ".a", " a", "a b", "a\n", "ä", "a" * 5000],
    "tenant": [5, None, [], "", "../x", "a/b", "A B", "nobody", "a\0b", "x" * 5000],
    "network": [5, None, [], "", "../x", "a/b", "A B", "nowhere", "a\0b", "x" * 5000],
    "mtu": ["1400", 1.5, -1, 0, 10, MTU + 1, 70000, 1 << 40, 1 << 70, True, [], {}],
    "ips": [
        "x",
        5,
        {},
        [5],
        [None],
        [""],
        ["x"],
        ["10.1.0.999"],
        ["10.1.0.0/99"],
        ["10.9.9.9"],
        ["10.1.0.0"],
        ["10.1.0.255"],
        ["10.1.0.1"],
        ["10.1.0.50", "10.1.0.50"],
        ["fd00::1"],
        ["::ffff:10.1.0.50"],
        ["127.0.0.1"],
        ["0.0.0.0"],
    ],
    "mac": [5, [], {}, "zz", "0a:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "0" * 12],
    "dns": [
        5,
        [],
        "10.1.0.53",
        {"nameservers": "10.1.0.53"},
        {"nameservers": [5]},
        {"nameservers": ["no address"]},
        {"domain": 5},
        {"search": "a.org"},
        {"options": {}},
        {"server": ["10.1.0.53"]},
    ],
    "routes": [
        5,
        {},
        "10.0.0.0/8",
        ["10.0.0.0/8"],
        [{}],
        [{"gw": "10.1.0.1"}],
        [{"dst": "x"}],
        [{"dst": 5}],
        [{"dst": "10.0.0.1/8"}],
        [{"dst": "10.0.0.0/99"}],
        [{"dst": "10.0.0.0/8", "gw": "x"}],
        [{"dst": "10.0.0.0/8", "gw": "10.99.0.1"}],
        [{"dst": "10.0.0.0/8", "gw": "fd00::1"}],
        [{"dst": "fd00::/8", "gw": "10.1.0.1"}],
        [{"dst": "10.0.0.0/8", "gw": "10.1.0.9"}, {"dst": "10.0.0.0/8", "gw": "10.1.0.8"}],
        [{"dst": "10.0.0.0/8", "metric": 5}],
    ],
    "defaultRoute": ["yes", 1, [], {}],
    "allow": ["ips", 5, {}, [5], ["everything"], ["ips", "IPS"]],
    "capabilities": [5, [], "ips", {"ips": "yes"}, {"ips": 1}],
    "runtimeConfig": [5, [], "x", {"ips": 5}, {"ips": [5]}, {"mac": 5}, {"ips": ["x"]}],
    "args": [5, [], "x", {"cni": 5}, {"cni": {"ips": 5}}, {"cni": {"mac": []}}],
    "prevResult": [5, "x", [], {"interfaces": 5}, {"ips": [5]}, {"routes": {}}, {"dns": "x"}],
    "ipam": [{"type": "host-local"}, {"type": "host-local", "subnet": "10.1.0.0/24"}, 5, "dhcp"],
    "netwrok": ["plain", None, 5],
    "bridge": ["br0"],
    "": [1],
}
# How else a message may name a key.
WORDS = {"ips": "address", "routes": "route"}


@pytest.mark.parametrize("key", WRONG)
def test_a_key_that_is_wrong_is_named(n: Node, c: Container, key: str) -> None:
    codes: tuple[int, ...] = (INVALID_CONFIGURATION,)
    if key == "cniVersion":
        codes = (INCOMPATIBLE_VERSION, UNDECODABLE)
    for value in WRONG[key]:
        for version in VERSIONS:
            with case(value, version):
                error = refused(n.plugin.add({**config(version), key: value}, c), *codes)
                shown = (key, WORDS.get(key, key), _shown(value))
                assert any(word in error.text for word in shown), error


def _shown(value: Any) -> str:
    """What of a value a message shows at least, if it does not name its key."""
    while isinstance(value, list | dict) and value:
        value = value[-1] if isinstance(value, list) else list(value.values())[-1]
    return str(value)[:8]


@pytest.mark.parametrize("key", ["cniVersion", "name", "tenant", "network"])
def test_a_key_that_is_missing_is_named(n: Node, c: Container, key: str) -> None:
    for version in VERSIONS:
        keys = config(version)
        del keys[key]
        code = INCOMPATIBLE_VERSION if key == "cniVersion" else INVALID_CONFIGURATION
        refused(n.plugin.add(keys, c), code, names=key)


def test_an_unknown_key_is_named_with_those_that_are_known(n: Node, c: Container) -> None:
    for verb in ("ADD", "CHECK"):
        for version in versions_of(verb):
            environment, keys = complete(n, verb, c, version)
            answer = n.plugin.call(environment, {**keys, "netwrok": "plain"})
            error = refused(answer, INVALID_CONFIGURATION, names="netwrok")
            for known in ("tenant", "network", "mtu", "ips", "mac", "routes", "allow"):
                assert known in error.text


def test_addresses_of_a_plugin_of_their_own_are_refused_with_a_hint(n: Node, c: Container) -> None:
    keys = config(ipam={"type": "host-local", "subnet": "10.1.0.0/24"})
    error = refused(n.plugin.add(keys, c), INVALID_CONFIGURATION, names="ipam")
    assert "ips" in error.details


@pytest.mark.parametrize("verb", ["CHECK", "GC", "STATUS"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../x"), ("name", 5), ("netwrok", "plain"), ("mtu", "x"), ("ipam", {"type": "x"})],
)
def test_other_verbs_refuse_a_wrong_key_too(
    n: Node, c: Container, verb: str, key: str, value: Any
) -> None:
    for version in versions_of(verb):
        environment, keys = complete(n, verb, c, version)
        answer = n.plugin.call(environment, {**keys, key: value})
        refused(answer, INVALID_CONFIGURATION, names=key)


# What is right in itself, but cannot be had


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"ips": IN_USE["ips"]}, "10.1.0.240"),
        ({"mac": IN_USE["mac"]}, "0a:00:00:00:00:f0"),
        ({"args": {"cni": {"ips": IN_USE["ips"]}}}, "10.1.0.240"),
        ({"runtimeConfig": {"mac": IN_USE["mac"]}}, "0a:00:00:00:00:f0"),
        ({"mac": "0A:00:00:00:00:F0"}, "0a:00:00:00:00:f0"),
    ],
)
def test_what_another_has_is_taken(n: Node, c: Container, keys: dict[str, Any], names: str) -> None:
    for version in VERSIONS:
        refused(n.plugin.add(config(version, **keys), c), TAKEN, names=names)


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ({"args": {"cni": {"ips": ["10.1.0.50"]}}}, "ips"),
        ({"args": {"cni": {"mac": "0a:00:00:00:00:01"}}}, "mac"),
        ({"args": {"cni": {"network": "pods"}}}, "network"),
        ({"args": {"cni": {"tenant": "other"}}}, "tenant"),
        ({"runtimeConfig": {"ips": ["10.1.0.50"]}, "capabilities": {"ips": True}}, "ips"),
        ({"runtimeConfig": {"mac": "0a:00:00:00:00:01"}, "capabilities": {"mac": True}}, "mac"),
    ],
)
def test_what_a_container_may_not_choose_is_refused(
    n: Node, c: Container, asked: dict[str, Any], choice: str
) -> None:
    for version in VERSIONS:
        answer = n.plugin.add(config(version, allow=[], **asked), c)
        error = refused(answer, INVALID_CONFIGURATION, names=choice)
        assert "allow" in error.text


def test_a_subnet_that_is_full_says_so(n: Node) -> None:
    """It has one address to give."""
    with n.container() as first, n.container() as second:
        n.plugin.add(config(network="small"), first).result()
        with unchanged(n):
            for version in VERSIONS:
                answer = n.plugin.add(config(version, network="small"), second)
                refused(answer, NO_ADDRESS_LEFT, names="small")
        assert n.plugin.delete(config(), first).succeeded()


def test_a_quota_that_is_used_up_says_so(n: Node, c: Container) -> None:
    used = n.fabric("nvctl tenant get default")["quota"]["ports"]["used"]
    n.fabric(f"nvctl tenant set default --quota ports={used}")
    try:
        for version in VERSIONS:
            answer = n.plugin.add(config(version), c)
            refused(answer, QUOTA_EXCEEDED, names="default")
    finally:
        n.fabric("nvctl tenant set default --quota ports=10000")


# The agent outlives all of it


def test_calls_that_are_cut_off_do_not_matter(n: Node, c: Container) -> None:
    """The program is killed while it waits for its input, and while the agent works."""
    environment = n.plugin.environment("ADD", c)
    for wait_s in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
        _cut_off(n, environment, wait_s)
        assert n.plugin.delete(config(), c).succeeded()
    assert n.plugin.status(config()).succeeded()


def _cut_off(n: Node, environment: dict[str, str], wait_s: float) -> None:
    pipe = subprocess.PIPE
    process = n.host.popen(
        [n.plugin.program], environment=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert process.stdin
    process.stdin.write(json.dumps(config()).encode())
    process.stdin.flush()
    if wait_s:
        process.stdin.close()
        time.sleep(wait_s)
    process.kill()
    process.wait(10)
