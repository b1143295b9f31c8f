"""What a runtime asks for: every verb, version and key, in order and out of it."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netvirt.cni import errors
from netvirt.cni.call import (
    CHOICES,
    NEWEST,
    VERSIONS,
    Call,
    DnsKeys,
    Verb,
    answer_version,
    parse,
)
from netvirt.cni.errors import CniError, Code
from netvirt.cni.frames import MAX_OUTPUT_BYTES, Request
from netvirt.model import Mac
from tenancy.errors import InvalidRequest, VirtkitError

ADDRESS, OTHER, THIRD, LAST = (f"10.1.0.{number}" for number in (7, 8, 9, 10))
MAC = "0a:00:00:00:00:01"


def environment(verb: str = "ADD", **variables: str) -> dict[str, str]:
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_PATH": "/opt/cni/bin",
        **variables,
    }


def configuration(version: str = NEWEST, **keys: Any) -> dict[str, Any]:
    required = {"name": "list", "type": "virtkit", "tenant": "red", "network": "front"}
    return {"cniVersion": version, **required, **keys}


def request(
    verb: str = "ADD", *, text: str | None = None, version: str = NEWEST, **keys: Any
) -> Request:
    variables = environment(verb) if text is None else environment(verb, CNI_ARGS=text)
    return Request(environment=variables, input=json.dumps(configuration(version, **keys)).encode())


def raw(document: bytes, verb: str = "ADD", **variables: str) -> Request:
    return Request(environment=environment(verb, **variables), input=document)


def without(key: str, verb: str = "ADD", **keys: Any) -> Request:
    document = configuration(**keys)
    del document[key]
    return raw(json.dumps(document).encode(), verb)


def refusal(of: Request) -> VirtkitError:
    """The error of a call, which can be told to a runtime."""
    with pytest.raises(VirtkitError) as caught:
        parse(of)
    told = errors.render(caught.value, answer_version(of))
    document = msgspec.json.decode(told)
    assert set(document) == {"cniVersion", "code", "msg", "details"}
    assert document["cniVersion"] in VERSIONS
    assert len(told) < MAX_OUTPUT_BYTES
    return caught.value


def assert_refused(of: Request, code: Code, *names: str) -> None:
    """It is refused with this number, in a message that speaks of these."""
    error = refusal(of)
    assert errors.code_of(error) is code, error
    for name in names:
        assert name in str(error)


# Verbs and versions


@pytest.mark.parametrize("version", VERSIONS)
def test_add_has_everything_that_was_said(version: str) -> None:
    call = parse(
        request(
            text="K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;"
            "K8S_POD_UID=5",
            version=version,
            mtu=1400,
            ips=[f"{ADDRESS}/24"],
            mac=MAC,
            dns={"nameservers": ["10.1.0.53"], "search": ["shop"]},
            routes=[{"dst": "10.9.0.0/16", "gw": "10.1.0.1"}, {"dst": "10.8.0.0/16"}],
            defaultRoute=False,
        )
    )

    routes = [(str(one.destination), one.via and str(one.via)) for one in call.routes]
    assert routes == [("10.9.0.0/16", "10.1.0.1"), ("10.8.0.0/16", None)]
    assert [str(address) for address in call.addresses] == [ADDRESS]
    assert call == Call(
        verb=Verb.ADD,
        version=version,
        conflist="list",
        container="c1",
        interface="eth0",
        netns="/run/netns/c1",
        tenant="red",
        network="front",
        mtu_bytes=1400,
        addresses=call.addresses,
        mac=Mac.parse(MAC),
        dns=DnsKeys(nameservers=["10.1.0.53"], search=["shop"]),
        routes=call.routes,
        default_route=False,
        labels={"container": "c1", "pod": "web-0", "pod-namespace": "shop"},
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_add_of_little_leaves_the_rest_to_the_network(version: str) -> None:
    assert parse(request(version=version)) == Call(
        verb=Verb.ADD,
        version=version,
        conflist="list",
        container="c1",
        interface="eth0",
        netns="/run/netns/c1",
        tenant="red",
        network="front",
        labels={"container": "c1"},
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, id="nothing wrong"),
        pytest.param({"netwrok": "x", "mtu": [], "ips": 5, "ipam": {"type": "x"}}, id="bad keys"),
        pytest.param({"name": 5, "tenant": "../x", "prevResult": "x"}, id="bad names"),
    ],
)
def test_delete_reads_nothing_of_the_configuration(version: str, keys: dict[str, Any]) -> None:
    of = request("DEL", text="nonsense \udcff", version=version, **keys)

    assert parse(of) == Call(verb=Verb.DEL, version=version, container="c1", interface="eth0")


@pytest.mark.parametrize("netns", ["", "relative", "/run/netns/\udcff"])
def test_delete_needs_no_namespace(netns: str) -> None:
    assert parse(raw(b'{"cniVersion": "1.0.0"}', "DEL", CNI_NETNS=netns)).key == ("c1", "eth0")


@pytest.mark.parametrize("version", VERSIONS)
def test_check_has_the_result_of_add(version: str) -> None:
    of = request("CHECK", version=version, prevResult={"ips": []})
    if version == "0.3.1":
        assert_refused(of, Code.INCOMPATIBLE_VERSION, "0.4.0")
        return

    call = parse(of)

    assert (call.verb, call.version, call.previous) == (Verb.CHECK, version, {"ips": []})


@pytest.mark.parametrize("version", VERSIONS)
def test_gc_has_what_is_in_use(version: str) -> None:
    listed = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c2", "ifname": "net1"}]
    of = request("GC", version=version, **{"cni.dev/valid-attachments": listed})
    if version != "1.1.0":
        assert_refused(of, Code.INCOMPATIBLE_VERSION, "1.1.0")
        return

    assert parse(of) == Call(
        verb=Verb.GC,
        version=version,
        conflist="list",
        valid=frozenset({("c1", "eth0"), ("c2", "net1")}),
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_status_is_about_a_network(version: str) -> None:
    of = Request(
        environment={"CNI_COMMAND": "STATUS"}, input=json.dumps(configuration(version)).encode()
    )
    if version != "1.1.0":
        assert_refused(of, Code.INCOMPATIBLE_VERSION, "1.1.0")
        return

    call = parse(of)

    assert (call.verb, call.tenant, call.network) == (Verb.STATUS, "red", "front")


@pytest.mark.parametrize(
    ("version", "answered"),
    [*((one, one) for one in VERSIONS), ("0.1.0", NEWEST), ("9", NEWEST)],
)
def test_whoever_asks_for_versions_is_answered(version: str, answered: str) -> None:
    of = raw(json.dumps({"cniVersion": version}).encode(), "VERSION")

    assert parse(of) == Call(verb=Verb.VERSION, version=answered)


@pytest.mark.parametrize("document", [b"", b"x", b"[]", b'{"cniVersion": 1}', b"{}"])
def test_versions_are_told_whatever_the_input(document: bytes) -> None:
    assert parse(raw(document, "VERSION")) == Call(verb=Verb.VERSION, version=NEWEST)


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb is not Verb.VERSION])
@pytest.mark.parametrize(
    "version",
    ["0.2.0", "0.3.0", "1.1", "2.0.0", "", " 1.0.0", 1, None, [], ["1.0.0"], {"1.0.0": 1}, True],
)
def test_a_version_that_is_not_spoken_is_refused(verb: str, version: Any) -> None:
    of = raw(json.dumps({**configuration(), "cniVersion": version}).encode(), verb)

    assert_refused(of, Code.INCOMPATIBLE_VERSION, "cniVersion", *VERSIONS)


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb is not Verb.VERSION])
def test_a_version_must_be_said(verb: str) -> None:
    assert_refused(without("cniVersion", verb), Code.INCOMPATIBLE_VERSION, "cniVersion")


@pytest.mark.parametrize("verb", ["", "add", "ADD ", "INIT", "\udcff", "A" * 5000])
def test_a_verb_that_is_none_is_refused(verb: str) -> None:
    assert_refused(request(verb), Code.INVALID_ENVIRONMENT, "CNI_COMMAND")


# Names


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize(
    "container", ["", ".", "-a", "_a", "../a", "a/b", "a b", "a\n", "ä", "\udcff", "a" * 254]
)
def test_a_container_that_is_none_is_refused(verb: str, container: str) -> None:
    document = json.dumps(configuration(prevResult={})).encode()
    assert_refused(
        raw(document, verb, CNI_CONTAINERID=container), Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID"
    )


@pytest.mark.parametrize("container", ["a", "0", "a.b_c-d", "a" * 253])
def test_a_container_may_be_called(container: str) -> None:
    document = json.dumps(configuration()).encode()
    assert parse(raw(document, CNI_CONTAINERID=container)).container == container


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize(
    "interface",
    [
        *("", ".", "..", "all", "default", "a" * 16, "a/b", "a:b", "a b", "a\t", "a\n"),
        pytest.param("é" * 8, id="sixteen bytes"),
        pytest.param("eth%d", id="what the kernel would count up"),
        pytest.param("\udcff", id="no text"),
    ],
)
def test_an_interface_that_is_none_is_refused(verb: str, interface: str) -> None:
    document = json.dumps(configuration(prevResult={})).encode()
    assert_refused(
        raw(document, verb, CNI_IFNAME=interface), Code.INVALID_ENVIRONMENT, "CNI_IFNAME"
    )


@pytest.mark.parametrize("interface", ["a", "eth0", "net-1.5", "a" * 15, "é" * 7])
def test_an_interface_may_be_called(interface: str) -> None:
    document = json.dumps(configuration()).encode()
    assert parse(raw(document, CNI_IFNAME=interface)).interface == interface


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize("netns", ["", "c1", "../run/netns/c1", "/run/netns/\udcff"])
def test_a_namespace_that_is_no_path_is_refused(verb: str, netns: str) -> None:
    document = json.dumps(configuration(prevResult={})).encode()
    assert_refused(raw(document, verb, CNI_NETNS=netns), Code.INVALID_ENVIRONMENT, "CNI_NETNS")


# The configuration


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb is not Verb.VERSION])
@pytest.mark.parametrize(
    "document",
    [
        *(b"", b"x", b"[]", b"null", b"5", b'"virtkit"', b"\0", b"\xff", b"{}{}"),
        pytest.param(b'{"cniVersion": "1.0.0", "name": "\\ud800"}', id="half a surrogate"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 50_000 + b"1" + b"}" * 50_000, id="deep and whole"),
        pytest.param(b'{"cniVersion":' + b"9" * 100_000 + b"}", id="a very long number"),
    ],
)
def test_what_is_no_configuration_is_refused(verb: str, document: bytes) -> None:
    error = refusal(raw(document, verb))

    assert errors.code_of(error) in (Code.UNDECODABLE, Code.INCOMPATIBLE_VERSION)


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("key", ["netwrok", "IPs", "x" * 5000, "", "é"])
def test_an_unknown_key_is_named_with_those_that_are_known(verb: str, key: str) -> None:
    of = request(verb, **{"prevResult": {}, "cni.dev/valid-attachments": [], key: 1})
    assert_refused(of, Code.INVALID_CONFIGURATION, key[:60], "tenant", "network", "mtu", "allow")


@pytest.mark.parametrize(
    "key", ["cni.dev/attachments", "example.org/x", "disableCheck", "disableGC", "cniVersions"]
)
def test_keys_of_others_are_let_pass(key: str) -> None:
    assert parse(request(**{key: [1]})) == parse(request())


WRONG: dict[str, list[Any]] = {
    "name": [5, None, [], "", "../x", "a b", "a" * 254],
    "type": [5, None, []],
    "tenant": [5, [], "../x", "RED", "a" * 64, "red\n", ""],
    "network": [5, [], "../x", "", "a" * 64],
    "mtu": ["1400", 1.5, True, [], 0, -1, 575, 65536, 10**30],
    "ips": [ADDRESS, [5], ["x"], ["10.1.0.999"], [f"{ADDRESS}/33"], [""], [None], ["fd00::1%a"]],
    "mac": [5, [], "zz", "01:00:5e:00:00:01", "00:00:00:00:00:00", "z" * 500_000],
    "dns": [
        *(5, [], {"nameservers": "x"}, {"nameserver": []}, {"search": [5]}, {"domain": []}),
        {"nameservers": ["dns.example.org"]},
    ],
    "routes": [
        *({}, [5], [{}], [{"dst": "x"}], [{"dst": "10.0.0.1/8"}], [{"dst": 5}]),
        *([{"dst": "10.0.0.0/8", "gw": "fd00::1"}], [{"dst": "10.0.0.0/8", "gw": "x"}]),
        *([{"dst": "fe80::%a/64"}], [{"dst": "fd00::/64", "gw": "fe80::1%a"}]),
        *([{"dst": "10.0.0.0/8", "gateway": "10.1.0.1"}], [{"dst": "10.0.0.0/8"}] * 1001),
        [{"dst": "10.0.0.0/8", "gw": "10.1.0.1"}, {"dst": "10.0.0.0/8"}],
    ],
    "defaultRoute": [1, "yes", []],
    "allow": [5, "ips", [5], ["ip"], ["z" * 500_000]],
    "capabilities": [5, [], {"ips": 1}],
    "runtimeConfig": [5, [], {"ips": 5}, {"mac": []}],
    "args": [5, [], {"cni": 5}, {"cni": {"ips": 5}}, {"cni": {"tenant": []}}],
    "prevResult": [5, "x", []],
    "ipam": [5, "x", {"type": "host-local"}],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(key, value, id=f"{key}-{number}")
        for key, values in WRONG.items()
        for number, value in enumerate(values)
    ],
)
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "STATUS"])
def test_a_wrong_value_is_refused(verb: str, key: str, value: Any) -> None:
    of = request(verb, **{"prevResult": {}, key: value})

    assert errors.code_of(refusal(of)) is Code.INVALID_CONFIGURATION


@pytest.mark.parametrize("key", ["name", "tenant", "network"])
def test_a_missing_key_is_named(key: str) -> None:
    assert_refused(without(key), Code.INVALID_CONFIGURATION, key)


def test_an_ipam_of_nothing_is_no_ipam() -> None:
    assert parse(request(ipam={})) == parse(request())


def test_the_type_may_be_left_out() -> None:
    assert parse(without("type")) == parse(request())


def test_an_interface_has_one_address_of_each_family() -> None:
    call = parse(request(ips=["fd00::7/64", ADDRESS]))
    assert sorted(map(str, call.addresses)) == [ADDRESS, "fd00::7"]

    assert_refused(request(ips=[ADDRESS, OTHER]), Code.INVALID_CONFIGURATION, ADDRESS, OTHER)
    assert_refused(request(ips=[ADDRESS, ADDRESS]), Code.INVALID_CONFIGURATION, ADDRESS)


def test_an_address_is_told_apart_however_it_is_written() -> None:
    """It is a text in the database, and there may be only one of each."""
    spellings = ["fd00::7", "FD00:0::0007/64", "fd00:0:0:0::7"]
    assert {str(parse(request(ips=[one])).addresses[0]) for one in spellings} == {"fd00::7"}


def test_check_without_a_result_has_nothing_to_compare_with() -> None:
    assert_refused(request("CHECK"), Code.INVALID_CONFIGURATION, "prevResult")
    assert_refused(request("CHECK", prevResult=None), Code.INVALID_CONFIGURATION, "prevResult")


# What a single container asks for

ALL = list(CHOICES)


def asked(*, ips: str = "", mac: str = "", tenant: str = "", network: str = "") -> dict[str, Any]:
    given: dict[str, Any] = {"mac": mac, "tenant": tenant, "network": network}
    return {key: value for key, value in {**given, "ips": [ips]}.items() if value and value != [""]}


def test_the_nearest_to_the_container_wins() -> None:
    """runtimeConfig, then args.cni, then CNI_ARGS, then the file; each for itself."""
    macs = [f"0a:00:00:00:00:0{number}" for number in range(1, 5)]
    sources = {
        "runtimeConfig": asked(ips=ADDRESS, mac=macs[0], tenant="t1", network="n1"),
        "args": {"cni": asked(ips=OTHER, mac=macs[1], tenant="t2", network="n2")},
    }
    text = f"IP={THIRD};MAC={macs[2]};TENANT=t3;NETWORK=n3"
    in_file = asked(ips=LAST, mac=macs[3], tenant="t4", network="n4")

    def chosen(text: str | None, **keys: Any) -> tuple[str, ...]:
        call = parse(request(text=text, **{**in_file, "allow": ALL, **keys}))
        return (*map(str, call.addresses), str(call.mac), call.tenant, call.network)

    assert chosen(text, **sources) == (ADDRESS, macs[0], "t1", "n1")
    assert chosen(text, args=sources["args"]) == (OTHER, macs[1], "t2", "n2")
    assert chosen(text) == (THIRD, macs[2], "t3", "n3")
    assert chosen(None) == (LAST, macs[3], "t4", "n4")
    assert chosen(f"IP={THIRD}", runtimeConfig={"mac": macs[0]}) == (THIRD, macs[0], "t4", "n4")


def test_a_capability_that_the_file_switches_off_is_not_looked_at() -> None:
    call = parse(request(runtimeConfig={"ips": [ADDRESS], "mac": MAC}, capabilities={"ips": False}))
    assert (call.addresses, str(call.mac)) == ((), MAC)


@pytest.mark.parametrize("given", [f"{ADDRESS},fd00::7", [ADDRESS, "fd00::7"]])
def test_addresses_may_be_a_list_or_a_text(given: Any) -> None:
    call = parse(request(args={"cni": {"ips": given}}))
    assert sorted(map(str, call.addresses)) == [ADDRESS, "fd00::7"]
    call = parse(request(text=f"IP={ADDRESS},fd00::7/64"))
    assert sorted(map(str, call.addresses)) == [ADDRESS, "fd00::7"]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("source", ["runtimeConfig", "args", "CNI_ARGS"])
def test_only_what_is_allowed_can_be_chosen(choice: str, source: str) -> None:
    value = {"ips": ADDRESS, "mac": MAC, "network": "back", "tenant": "blue"}[choice]
    of_choice: dict[str, Any] = {choice: [value] if choice == "ips" else value}
    name = "IP" if choice == "ips" else choice.upper()
    text = f"{name}={value}" if source == "CNI_ARGS" else None
    keys = {"runtimeConfig": {"runtimeConfig": of_choice}, "args": {"args": {"cni": of_choice}}}

    def call(*allow: str) -> Request:
        return request(text=text, allow=list(allow), **keys.get(source, {}))

    def found(of: Request) -> str:
        chosen = parse(of)
        given = {**{one: getattr(chosen, one) for one in ("mac", "network", "tenant")}}
        given["ips"] = chosen.addresses[0] if chosen.addresses else None
        return str(given[choice])

    assert found(call(choice)) == value
    others = [one for one in CHOICES if one != choice]
    assert_refused(call(*others), Code.INVALID_CONFIGURATION, choice, "allow")


def test_unless_told_containers_do_not_choose_their_tenant() -> None:
    everything_else = f"IP={ADDRESS};MAC={MAC};NETWORK=back"
    assert parse(request(text=everything_else)).network == "back"
    assert_refused(request(text="TENANT=blue"), Code.INVALID_CONFIGURATION, "tenant", "allow")


def test_to_ask_for_what_the_file_says_is_allowed() -> None:
    assert parse(request(text="TENANT=red;NETWORK=front", allow=[])) == parse(request())


@pytest.mark.parametrize("args", ["nonsense", "IP", "=", "FOO=BAR", "ip=10.1.0.7", " IP=10.1.0.7"])
def test_arguments_that_are_none_are_refused(args: str) -> None:
    assert_refused(request(text=args), Code.INVALID_ENVIRONMENT, "CNI_ARGS")


@pytest.mark.parametrize("word", ["1", "true", "True"])
def test_unknown_arguments_may_be_declared_harmless(word: str) -> None:
    assert parse(request(text=f"FOO=BAR;IgnoreUnknown={word}")) == parse(request())
    assert_refused(request(text="FOO=BAR;IgnoreUnknown=0"), Code.INVALID_ENVIRONMENT, "FOO")


def test_arguments_may_be_empty_or_end_with_a_semicolon() -> None:
    assert parse(request(text="")) == parse(request())
    assert parse(request(text="IP=;MAC=;")) == parse(request())


def test_bytes_that_are_no_text_are_refused_where_they_would_be_stored() -> None:
    assert_refused(request(text="K8S_POD_NAME=\udcff"), Code.INVALID_ENVIRONMENT, "CNI_ARGS")


def test_labels_tell_whose_port_it_is() -> None:
    assert parse(request(text="K8S_POD_NAME=web")).labels == {
        "container": "c1",
        "pod": "web",
        "pod-namespace": "default",
    }
    assert parse(request(text="K8S_POD_NAMESPACE=shop")).labels == {"container": "c1"}


# What GC may not misread


def test_gc_without_a_list_takes_nothing() -> None:
    assert_refused(request("GC"), Code.INVALID_CONFIGURATION, "cni.dev/valid-attachments")


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
@pytest.mark.parametrize("empty", [[], None])
def test_gc_of_an_empty_list_takes_all(key: str, empty: Any) -> None:
    """libcni, which is written in Go, writes null for a list of nothing."""
    assert parse(request("GC", **{key: empty})).valid == frozenset()


@pytest.mark.parametrize(
    "listed",
    [
        *({}, "", 0, False, 5, "c1", [5], [None], [[]], [{}], {"containerID": "c1"}),
        *([{"containerID": "c1"}], [{"ifname": "eth0"}], [{"containerID": 1, "ifname": "eth0"}]),
    ],
)
def test_gc_of_what_is_no_list_takes_nothing(listed: Any) -> None:
    of = request("GC", **{"cni.dev/valid-attachments": listed})
    assert_refused(of, Code.INVALID_CONFIGURATION, "cni.dev/valid-attachments")


# Anything

TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=40)
VARIABLES = st.dictionaries(
    st.sampled_from(
        [*(f"CNI_{name}" for name in ("CONTAINERID", "IFNAME", "NETNS", "ARGS", "PATH", "X"))]
    ),
    TEXTS | st.sampled_from(["c1", "eth0", "/run/netns/c1", "IgnoreUnknown=1;A=B", "IP=1;MAC=2"]),
)
VERBS = st.sampled_from([*Verb, "", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [*WRONG, "cniVersion", "cni.dev/valid-attachments", "cni.dev/attachments", "x"]
)


def assert_answered(of: Request) -> None:
    """There is a call, or an error that can be told; nothing else."""
    assert answer_version(of) in VERSIONS
    try:
        call = parse(of)
    except VirtkitError as error:
        told = errors.render(error, answer_version(of))
        assert msgspec.json.decode(told)["code"] in set(Code)
        assert len(told) < MAX_OUTPUT_BYTES
    else:
        assert call.verb in Verb
        assert call.version in VERSIONS


@given(VERBS, VARIABLES, st.binary(max_size=200))
def test_any_bytes_are_answered(verb: str, variables: dict[str, str], document: bytes) -> None:
    assert_answered(raw(document, verb, **variables))


@given(VERBS, VARIABLES, JSON)
def test_any_json_is_answered(verb: str, variables: dict[str, str], document: Any) -> None:
    text = json.dumps(document).encode()
    assert_answered(Request(environment={"CNI_COMMAND": verb, **variables}, input=text))


@settings(max_examples=300)
@given(VERBS, VARIABLES, st.dictionaries(KEYS, JSON, max_size=4))
def test_a_configuration_with_anything_in_it_is_answered(
    verb: str, variables: dict[str, str], keys: dict[str, Any]
) -> None:
    document = {**configuration(), "prevResult": {}, "cni.dev/valid-attachments": [], **keys}
    assert_answered(raw(json.dumps(document).encode(), verb, **variables))


# Errors


def test_an_error_says_what_is_wrong_and_what_to_do_apart() -> None:
    error = CniError(Code.TAKEN, "address 10.1.0.7\nis taken. Choose another. Or none.")

    assert json.loads(errors.render(error, "0.4.0")) == {
        "cniVersion": "0.4.0",
        "code": 102,
        "msg": "address 10.1.0.7 is taken.",
        "details": "Choose another. Or none.",
    }


def test_an_error_has_room_in_an_answer_whatever_it_repeats() -> None:
    error = InvalidRequest("é" * 1_000_000 + ". " + "\udcff" * 1_000_000)

    told = errors.render(error, NEWEST)

    assert len(told) < MAX_OUTPUT_BYTES
    assert msgspec.json.decode(told)["code"] == Code.INVALID_CONFIGURATION
