"""What a runtime asks for, from the environment and the input that it gave. Pure.

Every name is checked here, before anything is done with it: names become rows, links and labels.
See "Parameters" and "Network configuration" in the CNI specification, and CONVENTIONS.md beside
it for `args`, `runtimeConfig` and `CNI_ARGS`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Any, NamedTuple

import msgspec

from netvirt.cni.errors import CniError, Code
from netvirt.cni.frames import Request
from netvirt.model import IPAddress, Mac
from tenancy.errors import InvalidRequest
from tenancy.names import shortened, validate_name

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]


class Verb(StrEnum):
    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


# The version that first has a verb.
_SINCE = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}
# Verbs that are about one interface of one container.
_OF_INTERFACE = (Verb.ADD, Verb.DEL, Verb.CHECK)

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,252}")
# The kernel fills in a `%d`, and counts bytes.
_INTERFACE = re.compile(r"[^\s/:%\0]{1,15}")
_INTERFACE_BYTES = 15
# What arguments of a single container may choose, and what of it without being told.
CHOICES = ("ips", "mac", "network", "tenant")
DEFAULT_ALLOW = ("ips", "mac", "network")
# Keys that runtimes add or that concern others.
_IGNORED = ("disableCheck", "disableGC", "cniVersions", "loadOnlyInlinedPlugins")
_KUBERNETES_ARGS = (
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_INFRA_CONTAINER_ID",
    "K8S_POD_UID",
)
_KNOWN_ARGS = ("IP", "MAC", "TENANT", "NETWORK", "IgnoreUnknown", *_KUBERNETES_ARGS)
_VALID_ATTACHMENTS = ("cni.dev/valid-attachments", "cni.dev/attachments")


# What is more than this is a mistake, and keeps the agent from its other work.
MOST_ROUTES = 1000
_Text = Annotated[str, msgspec.Meta(max_length=255)]
_Texts = Annotated[list[_Text], msgspec.Meta(max_length=100)]


class RouteKeys(msgspec.Struct, forbid_unknown_fields=True):
    dst: str
    gw: str | None = None


class DnsKeys(msgspec.Struct, forbid_unknown_fields=True):
    nameservers: _Texts = []
    domain: _Text | None = None
    search: _Texts = []
    options: _Texts = []


class _Choices(msgspec.Struct):
    """Of a container's arguments, those that are ours; others may hold anything."""

    ips: list[str] | str | None = None
    mac: str | None = None
    tenant: str | None = None
    network: str | None = None


class _Args(msgspec.Struct):
    cni: _Choices = msgspec.field(default_factory=_Choices)


class _Configuration(msgspec.Struct, forbid_unknown_fields=True):
    """The keys of the plugin's own configuration; see docs/cni.md."""

    name: str
    type: str
    tenant: str | None = None
    network: str | None = None
    mtu: int | None = None
    ips: list[str] = []
    mac: str | None = None
    dns: DnsKeys | None = None
    routes: Annotated[list[RouteKeys], msgspec.Meta(max_length=MOST_ROUTES)] = []
    defaultRoute: bool | None = None
    allow: list[str] | None = None
    capabilities: dict[str, bool] = {}
    runtimeConfig: _Choices = msgspec.field(default_factory=_Choices)
    args: _Args = msgspec.field(default_factory=_Args)
    prevResult: dict[str, Any] | None = None


class _ValidAttachment(msgspec.Struct):
    containerID: str
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRoute:
    """A route to add in the container; without a gateway, over the interface itself."""

    destination: Any  # IPv4Network | IPv6Network
    via: IPAddress | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the plugin. What a verb has no use for is empty."""

    verb: Verb
    version: str
    conflist: str = ""
    container: str = ""
    interface: str = ""
    netns: str = ""
    tenant: str = ""
    network: str = ""
    mtu_bytes: int | None = None
    addresses: tuple[IPAddress, ...] = ()
    mac: Mac | None = None
    dns: DnsKeys | None = None
    routes: tuple[WantedRoute, ...] = ()
    default_route: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    previous: Mapping[str, Any] | None = None
    valid: frozenset[tuple[str, str]] = frozenset()

    @property
    def key(self) -> tuple[str, str]:
        """What one attachment on a host is called by."""
        return (self.container, self.interface)

    @property
    def subject(self) -> str:
        return f"container {shortened(self.container)}, interface {self.interface}"


def answer_version(request: Request) -> str:
    """The version in which to answer: the one asked in, if it is one that we know."""
    try:
        version = _document(request.input).get("cniVersion")
    except CniError:
        return NEWEST
    return str(version) if version in VERSIONS else NEWEST


def parse(request: Request) -> Call:
    """The call. Raises `CniError` with its number, or `InvalidRequest` for a bad configuration."""
    environment = request.environment
    verb = _verb(environment)
    if verb is Verb.VERSION:
        # Asked what it speaks, a plugin must answer whoever asks.
        return Call(verb=verb, version=answer_version(request))
    document = _document(request.input)
    version = _version(document)
    if verb in _SINCE and VERSIONS.index(version) < VERSIONS.index(_SINCE[verb]):
        raise CniError(
            Code.INCOMPATIBLE_VERSION,
            f"CNI_COMMAND {verb} exists since version {_SINCE[verb]}, and the configuration is of "
            f"version {version}. Raise its cniVersion.",
        )
    names = _names(environment, verb) if verb in _OF_INTERFACE else _Names("", "", "")
    if verb is Verb.DEL:
        # Whatever has become of the rest of the configuration, what was attached must go.
        return Call(
            verb=verb,
            version=version,
            container=names.container,
            interface=names.interface,
            netns=names.netns,
        )
    keys = _configuration(document)
    if verb is Verb.GC:
        return Call(verb=verb, version=version, conflist=keys.name, valid=_valid(document))
    given = _choices(keys, _arguments(environment))
    if not given["tenant"] or not given["network"]:
        missing = "tenant" if not given["tenant"] else "network"
        raise InvalidRequest(
            f"network configuration {keys.name}: key {missing!r} is missing. Say which "
            f"{missing} containers join; `nvctl {missing} list` shows what there is."
        )
    if verb is Verb.CHECK and keys.prevResult is None:
        raise InvalidRequest(
            f"network configuration {keys.name}: CHECK without prevResult has nothing to compare "
            "with. The runtime must pass what ADD answered."
        )
    return Call(
        verb=verb,
        version=version,
        conflist=keys.name,
        container=names.container,
        interface=names.interface,
        netns=names.netns,
        tenant=validate_name("tenant", given["tenant"]),
        network=validate_name("network", given["network"]),
        mtu_bytes=_mtu(keys),
        addresses=_addresses(keys.name, given["ips"]),
        mac=Mac.parse(given["mac"]) if given["mac"] else None,
        dns=_dns(keys),
        routes=_routes(keys),
        default_route=keys.defaultRoute,
        labels=_labels(environment, names.container),
        previous=keys.prevResult,
    )


def _verb(environment: Mapping[str, str]) -> Verb:
    text = environment.get("CNI_COMMAND", "")
    try:
        return Verb(text)
    except ValueError as error:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_COMMAND {shortened(text)!r} is none. It is one of {', '.join(Verb)}.",
        ) from error


def _document(text: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(
            Code.UNDECODABLE,
            f"network configuration: the input is not JSON ({error}). Correct the file in the "
            "runtime's configuration directory.",
        ) from error
    if not isinstance(document, dict):
        raise CniError(
            Code.UNDECODABLE,
            "network configuration: the input is no JSON object. Correct the file in the runtime's "
            "configuration directory.",
        )
    return document


def _version(document: Mapping[str, Any]) -> str:
    if "cniVersion" not in document:
        what = "key 'cniVersion' is missing"
    elif (version := document["cniVersion"]) in VERSIONS:
        return str(version)
    else:
        what = f"cniVersion {_shown(version)} is none that virtkit speaks"
    raise CniError(
        Code.INCOMPATIBLE_VERSION,
        f"network configuration: {what}. Use one of {', '.join(VERSIONS)}.",
    )


def _shown(value: Any) -> str:
    """A value of the input, as it stands there."""
    return shortened(msgspec.json.encode(value).decode())


class _Names(NamedTuple):
    container: str
    interface: str
    netns: str


def _text(environment: Mapping[str, str], name: str) -> str:
    """A variable that is going to be stored, where there is no place for bytes that are no text."""
    value = environment.get(name, "")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"{name} {shortened(ascii(value))} is not UTF-8. Name what it names otherwise.",
        ) from error
    return value


def _names(environment: Mapping[str, str], verb: Verb) -> _Names:
    container = _text(environment, "CNI_CONTAINERID")
    interface = _text(environment, "CNI_IFNAME")
    # DEL does not need it, and must not fail for it.
    netns = _text(environment, "CNI_NETNS") if verb is not Verb.DEL else ""
    if not _ID.fullmatch(container):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_CONTAINERID {shortened(container)!r} is none. It begins with a letter or digit, "
            "and goes on with letters, digits, `_`, `.` and `-`, up to 253.",
        )
    if (
        not _INTERFACE.fullmatch(interface)
        or len(interface.encode()) > _INTERFACE_BYTES
        or interface in (".", "..", "all", "default")
    ):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_IFNAME {shortened(interface)!r} is no name of an interface. It has 1 to "
            f"{_INTERFACE_BYTES} bytes, without space, `/`, `:` and `%`.",
        )
    if verb is not Verb.DEL and not netns.startswith("/"):
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_NETNS {shortened(netns)!r} is no path of a network namespace. The runtime must "
            "give an absolute one.",
        )
    return _Names(container, interface, netns)


def _configuration(document: Mapping[str, Any]) -> _Configuration:
    name = document.get("name")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        what = f"name {_shown(name)} is none" if "name" in document else "key 'name' is missing"
        raise CniError(
            Code.INVALID_CONFIGURATION,
            f"network configuration: {what}. It begins with a letter or digit, and goes on with "
            "letters, digits, `_`, `.` and `-`.",
        )
    if document.get("ipam"):
        raise CniError(
            Code.INVALID_CONFIGURATION,
            f"network configuration {name}: key 'ipam' does not go with virtkit, which takes "
            "addresses from the tenant network. Remove it; `ips` fixes an address.",
        )
    own = {
        key: value
        for key, value in document.items()
        if "." not in key and key not in _IGNORED and key not in ("cniVersion", "ipam")
    }
    known = msgspec.structs.fields(_Configuration)
    unknown = sorted(own.keys() - {one.encode_name for one in known})
    if unknown:
        raise CniError(
            Code.INVALID_CONFIGURATION,
            f"network configuration {name}: key {shortened(unknown[0])!r} is unknown. Known are "
            f"{', '.join(one.encode_name for one in known)}.",
        )
    try:
        return msgspec.convert({"type": "virtkit", **own}, _Configuration)
    except msgspec.ValidationError as error:
        raise CniError(
            Code.INVALID_CONFIGURATION,
            f"network configuration {name}: {plain(str(error))}. Correct the file in the "
            "runtime's configuration directory.",
        ) from error


def plain(error: str) -> str:
    """`Expected `str`, got `int` - at `$.tenant`` as a sentence about the key."""
    what, _, where = error.partition(" - at ")
    return f"key {where.strip('`').removeprefix('$.')!r}: {what}" if where else what


def _arguments(environment: Mapping[str, str]) -> dict[str, str]:
    """CNI_ARGS, `KEY=VALUE;KEY=VALUE`."""
    found: dict[str, str] = {}
    for pair in _text(environment, "CNI_ARGS").split(";"):
        key, equals, value = pair.partition("=")
        if not pair:
            continue
        if not equals:
            raise CniError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_ARGS: {shortened(pair)!r} is no KEY=VALUE. Separate them by semicolons.",
            )
        found[key] = value
    tolerant = found.get("IgnoreUnknown", "").lower() in ("1", "true")
    unknown = sorted(found.keys() - set(_KNOWN_ARGS))
    if unknown and not tolerant:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"CNI_ARGS: key {shortened(unknown[0])!r} is unknown. Known are "
            f"{', '.join(_KNOWN_ARGS)}; with IgnoreUnknown=1 others are ignored.",
        )
    return found


def _choices(keys: _Configuration, arguments: Mapping[str, str]) -> dict[str, Any]:
    """What the file says, overruled by what this container's arguments may choose."""
    allow = DEFAULT_ALLOW if keys.allow is None else tuple(keys.allow)
    if unknown := sorted(set(allow) - set(CHOICES)):
        raise InvalidRequest(
            f"network configuration {keys.name}: key 'allow' holds {shortened(unknown[0])!r}. It "
            f"is a list out of {', '.join(CHOICES)}."
        )
    in_arguments = {
        "ips": [text for text in arguments.get("IP", "").split(",") if text] or None,
        "mac": arguments.get("MAC"),
        "tenant": arguments.get("TENANT"),
        "network": arguments.get("NETWORK"),
    }
    runtime = {
        name: getattr(keys.runtimeConfig, name) if keys.capabilities.get(name, True) else None
        for name in CHOICES
    }
    chosen: dict[str, Any] = {}
    for name in CHOICES:
        sources = (runtime[name], getattr(keys.args.cni, name), in_arguments[name])
        asked = next((value for value in sources if value), None)
        in_file = getattr(keys, name)
        if asked and asked != in_file and name not in allow:
            raise InvalidRequest(
                f"network configuration {keys.name}: a container's arguments ask for {name} "
                f"{shortened(str(asked))!r}, which the configuration does not allow. Add {name!r} "
                "to its key 'allow'."
            )
        chosen[name] = asked or in_file
    if isinstance(chosen["ips"], str):
        chosen["ips"] = chosen["ips"].split(",")
    return chosen


def _addresses(name: str, texts: Iterable[str]) -> tuple[IPAddress, ...]:
    addresses = tuple(_address(name, text) for text in texts)
    if len({address.version for address in addresses}) < len(addresses):
        shown = ", ".join(map(str, addresses))
        raise InvalidRequest(
            f"network configuration {name}: ips are {shortened(shown)}. A container's interface "
            "has one address of each family: leave one of either."
        )
    return addresses


def _address(name: str, text: str) -> IPAddress:
    """An address, with or without a prefix length: the network's is the one that counts.

    One with a zone (`%eth0`) would be another text for the same address, and so be given twice.
    """
    try:
        if "%" in text:
            raise ValueError(text)
        return ip_interface(text).ip if "/" in text else ip_address(text)
    except ValueError as error:
        raise InvalidRequest(
            f"network configuration {name}: {shortened(text)!r} is no IP address. Write it as "
            "10.1.0.7."
        ) from error


def _dns(keys: _Configuration) -> DnsKeys | None:
    for server in keys.dns.nameservers if keys.dns else ():
        _address(keys.name, server)
    return keys.dns


def _routes(keys: _Configuration) -> tuple[WantedRoute, ...]:
    """The routes, of which the kernel keeps one to each destination."""
    routes = tuple(_route(keys.name, route) for route in keys.routes)
    destinations = Counter(route.destination for route in routes)
    if twice := [destination for destination, times in destinations.items() if times > 1]:
        raise InvalidRequest(
            f"network configuration {keys.name}: key 'routes' leads to {twice[0]} twice. "
            "Leave one of them."
        )
    return routes


def _route(name: str, keys: RouteKeys) -> WantedRoute:
    try:
        if "%" in keys.dst:
            raise ValueError(keys.dst)
        destination = ip_network(keys.dst)
    except ValueError as error:
        raise InvalidRequest(
            f"network configuration {name}: route destination {shortened(keys.dst)!r} is no CIDR. "
            "Write it as 10.0.0.0/8."
        ) from error
    via = _address(name, keys.gw) if keys.gw else None
    if via is not None and via.version != destination.version:
        raise InvalidRequest(
            f"network configuration {name}: route to {destination} over {via} mixes IPv4 and IPv6."
            " Give a gateway of the same family."
        )
    return WantedRoute(destination=destination, via=via)


def _mtu(keys: _Configuration) -> int | None:
    if keys.mtu is not None and not 576 <= keys.mtu <= 65535:
        raise InvalidRequest(
            f"network configuration {keys.name}: mtu {keys.mtu} is none. Choose 576 up to the "
            "network's, or omit it and the network's is taken."
        )
    return keys.mtu


def _labels(environment: Mapping[str, str], container: str) -> dict[str, str]:
    """Whose port it is, for whoever lists ports."""
    arguments = _arguments(environment)
    labels = {"container": container}
    if arguments.get("K8S_POD_NAME"):
        labels["pod"] = arguments["K8S_POD_NAME"]
        labels["pod-namespace"] = arguments.get("K8S_POD_NAMESPACE", "default")
    return {key: value[:253] for key, value in labels.items()}


def _valid(document: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    key = next((key for key in _VALID_ATTACHMENTS if key in document), None)
    if key is None:
        # To take a missing list for an empty one would detach every container.
        raise InvalidRequest(
            f"GC: key {_VALID_ATTACHMENTS[0]!r} is missing, so that nothing may be collected. "
            "The runtime must list the attachments that are in use."
        )
    try:
        # libcni writes null for an empty list.
        listed = [] if document[key] is None else document[key]
        valid = msgspec.convert(listed, list[_ValidAttachment])
    except msgspec.ValidationError as error:
        raise InvalidRequest(
            f"GC: key {key!r} is no list of attachments ({plain(str(error))}). Each has "
            "containerID and ifname."
        ) from error
    return frozenset((one.containerID, one.ifname) for one in valid)
