"""The conformance suite's own reader of results: what is of another version, it does not take."""

import json
from typing import Any

import msgspec
import pytest

from tests.functional.cni_calls import Answer, Container
from tests.functional.cni_formats import VERSIONS, read_error, read_result

ABOUT = Container(id="c", netns="/run/netns/c", interface="eth0")
INSIDE = {"name": "eth0", "mac": "0a:00:00:00:00:01", "sandbox": "/run/netns/c"}


def right(version: str) -> dict[str, Any]:
    ip: dict[str, Any] = {"address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1}
    return {
        "cniVersion": version,
        "interfaces": [
            {"name": "veth0"},
            {**INSIDE, "mtu": 1450} if version == "1.1.0" else INSIDE,
        ],
        "ips": [{**ip, "version": "4"} if version < "1" else ip],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        "dns": {"nameservers": ["10.1.0.53"]},
    }


def answer(document: Any, *, status: int = 0, stderr: bytes = b"") -> Answer:
    return Answer(status=status, stdout=json.dumps(document).encode(), stderr=stderr)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_right_result_is_read(version: str) -> None:
    assert read_result(answer(right(version)), version, ABOUT).cniVersion == version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("other", VERSIONS)
def test_a_result_of_another_version_is_not(version: str, other: str) -> None:
    if version != other:
        with pytest.raises((msgspec.ValidationError, AssertionError)):
            read_result(answer({**right(version), "cniVersion": other}), version, ABOUT)
    if (version < "1") != (other < "1") or version == "1.1.0" != other:
        with pytest.raises(msgspec.ValidationError):
            read_result(answer({**right(version), "cniVersion": other}), other, ABOUT)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"surplus": 1},
        {"interfaces": []},
        {"interfaces": [{"name": "veth0"}, {**INSIDE, "sandbox": "/run/netns/d"}]},
        {"interfaces": [{"name": "veth0"}, {**INSIDE, "mac": "0A:00:00:00:00:01"}]},
        {"interfaces": None},
        {"ips": [{"address": "10.1.0.2", "interface": 1}]},
        {"ips": [{"address": "10.1.0.2/24", "interface": 0}]},
        {"ips": [{"address": "10.1.0.2/24", "interface": 2}]},
        {"ips": [{"address": "10.1.0.2/24", "interface": 1, "gateway": "10.9.0.1"}]},
        {"routes": [{"dst": "10.1.0.1/8"}]},
        {"routes": [{"dst": "10.0.0.0/8", "gw": "fd00::1"}]},
        {"dns": {"nameservers": ["x"]}},
        {"dns": {"server": []}},
    ],
)
def test_a_wrong_result_is_not_read(version: str, wrong: dict[str, Any]) -> None:
    if version < "1" and isinstance(wrong.get("ips"), list):
        wrong = {"ips": [{**wrong["ips"][0], "version": "4"}]}
    with pytest.raises((msgspec.ValidationError, AssertionError, ValueError, IndexError)):
        read_result(answer({**right(version), **wrong}), version, ABOUT)


ERROR = {"cniVersion": "1.0.0", "code": 7, "msg": "The key x is unknown.", "details": "Drop it."}


def test_a_right_error_is_read() -> None:
    assert read_error(answer(ERROR, status=1)).text == "The key x is unknown. Drop it."


@pytest.mark.parametrize(
    "wrong",
    [
        answer(ERROR, status=0),
        answer(ERROR, status=2),
        answer(ERROR, status=1, stderr=b"Traceback (most recent call last):\n"),
        answer({**ERROR, "cniVersion": "0.2.0"}, status=1),
        answer({**ERROR, "code": "7"}, status=1),
        answer({**ERROR, "code": 0}, status=1),
        answer({**ERROR, "msg": ""}, status=1),
        answer({**ERROR, "msg": "no sentence"}, status=1),
        answer({**ERROR, "msg": "name None is none."}, status=1),
        answer({**ERROR, "surplus": 1}, status=1),
        Answer(status=1, stdout=b"", stderr=b""),
    ],
)
def test_a_wrong_error_is_not_read(wrong: Answer) -> None:
    with pytest.raises((msgspec.ValidationError, msgspec.DecodeError, AssertionError)):
        read_error(wrong)
