"""What a CNI plugin may answer, version by version, and nothing besides.

Written after the result sections of the CNI specification 0.3.1, 0.4.0, 1.0.0 and 1.1.0, not
after what virtkit does. A key that its version does not have is an error, and so is a value that
means nothing: an index of no interface, a gateway that is no address.
"""

import re
from ipaddress import ip_address, ip_interface, ip_network
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from tests.functional.cni_calls import Answer, Container

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")

Text = Annotated[str, Meta(min_length=1)]
Natural = Annotated[int, Meta(ge=0)]
MacText = Annotated[str, Meta(pattern="^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """A key that is optional may be missing; it may not be null."""


class Interface(Strict):
    """Since 0.3.0. `sandbox` is there for those in the container and for no others."""

    name: Text
    mac: MacText | msgspec.UnsetType = msgspec.UNSET
    sandbox: str | msgspec.UnsetType = msgspec.UNSET


class Interface110(Interface):
    """1.1.0 adds what a device is besides."""

    mtu: Natural | msgspec.UnsetType = msgspec.UNSET
    socketPath: Text | msgspec.UnsetType = msgspec.UNSET
    pciID: Text | msgspec.UnsetType = msgspec.UNSET


class Ip(Strict):
    """Since 1.0.0: the address says what version it is of."""

    address: Text
    gateway: Text | msgspec.UnsetType = msgspec.UNSET
    interface: Natural | msgspec.UnsetType = msgspec.UNSET


class Ip031(Ip, kw_only=True):
    """0.3.0 to 0.4.0 say it besides."""

    version: Literal["4", "6"]


class Route(Strict):
    dst: Text
    gw: Text | msgspec.UnsetType = msgspec.UNSET


class Route110(Route):
    mtu: Natural | msgspec.UnsetType = msgspec.UNSET
    advmss: Natural | msgspec.UnsetType = msgspec.UNSET
    priority: Natural | msgspec.UnsetType = msgspec.UNSET
    table: Natural | msgspec.UnsetType = msgspec.UNSET
    scope: Natural | msgspec.UnsetType = msgspec.UNSET


class Dns(Strict):
    nameservers: list[Text] = []
    domain: Text | msgspec.UnsetType = msgspec.UNSET
    search: list[Text] = []
    options: list[Text] = []


class Result031(Strict):
    cniVersion: Literal["0.3.1", "0.4.0"]
    interfaces: list[Interface]
    ips: list[Ip031]
    routes: list[Route] = []
    dns: Dns = msgspec.field(default_factory=Dns)


class Result100(Strict):
    cniVersion: Literal["1.0.0"]
    interfaces: list[Interface]
    ips: list[Ip]
    routes: list[Route] = []
    dns: Dns = msgspec.field(default_factory=Dns)


class Result110(Strict):
    cniVersion: Literal["1.1.0"]
    interfaces: list[Interface110]
    ips: list[Ip]
    routes: list[Route110] = []
    dns: Dns = msgspec.field(default_factory=Dns)


Result = Result031 | Result100 | Result110

_OF_VERSION: dict[str, type[Result]] = {
    "0.3.1": Result031,
    "0.4.0": Result031,
    "1.0.0": Result100,
    "1.1.0": Result110,
}


class Error(Strict):
    """The same in all versions. The reference plugins leave the version out."""

    code: Natural
    msg: Text
    details: str = ""
    cniVersion: str = ""

    @property
    def text(self) -> str:
        """All that it says."""
        return f"{self.msg} {self.details}".strip()


class Versions(Strict):
    """What VERSION answers."""

    cniVersion: Text
    supportedVersions: list[Text]


def read_result(answer: Answer, version: str, about: Container) -> Result:
    """The result of an ADD that succeeded, checked as far as it can be without looking further."""
    assert answer.status == 0, answer
    assert answer.stderr == b"", answer
    result = msgspec.json.decode(answer.stdout, type=_OF_VERSION[version])
    assert result.cniVersion == version
    inside = [one for one in result.interfaces if one.sandbox not in (msgspec.UNSET, "")]
    assert [(one.name, one.sandbox) for one in inside] == [(about.interface, about.netns)]
    for ip in result.ips:
        interface = ip_interface(ip.address)
        assert "/" in ip.address, ip
        assert ip.interface is not msgspec.UNSET, ip
        assert result.interfaces[ip.interface] == inside[0], ip
        if isinstance(ip, Ip031):
            assert ip.version == str(interface.version)
        if ip.gateway is not msgspec.UNSET:
            assert ip_address(ip.gateway) in interface.network
    for route in result.routes:
        destination = ip_network(route.dst)
        if route.gw is not msgspec.UNSET:
            assert ip_address(route.gw).version == destination.version
    for server in result.dns.nameservers:
        ip_address(server)
    return result


def read_error(answer: Answer, *, house_style: bool = True) -> Error:
    """The error of a call that failed: an object for programs, and sentences for people.

    `house_style` also holds it to what virtkit promises: exit status 1, nothing on standard
    error but sentences, and a message that says what to do.
    """
    assert answer.status != 0, answer
    error = msgspec.json.decode(answer.stdout, type=Error)
    assert 1 <= error.code <= 9999, error
    if house_style:
        assert answer.status == 1, answer
        assert error.cniVersion in VERSIONS, error
        assert _is_prose(error.msg), error
        assert not error.details or _is_prose(error.details), error
        said = answer.stderr.decode()
        assert not said or _is_prose(said), said
    return error


def _is_prose(text: str) -> bool:
    """Whole sentences, in one line, without a program's insides."""
    insides = re.search(r"Traceback|Error\(|Errno|Exception|\bNone\b|<[a-z_.]+ |msgspec", text)
    return text.strip().endswith(".") and "\n" not in text.strip() and not insides
