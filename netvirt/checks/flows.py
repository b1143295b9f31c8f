"""From the difference between a switch's flows and the wanted ones to findings. Pure.

The agent compares cookies, which are digests of flows; here the flows themselves are compared, so
a flow whose actions were changed by hand, and that kept its cookie, is seen.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from netvirt.pipeline.flow import Flow
from tenancy.diagnosis import Finding

_COOKIE = re.compile(r" cookie=0x([0-9a-f]+)")
_TABLE = re.compile(r"table=(\d+) ")


@dataclass(frozen=True, slots=True, kw_only=True)
class PutFlows:
    """Delete what has these cookies, and add these flows, in one bundle."""

    add: tuple[Flow, ...]
    delete: tuple[int, ...]


def flows(host: str, lines: Iterable[str], wanted: Mapping[int, Flow]) -> list[Finding]:
    """What `ovs-ofctl diff-flows` says (`-` there, `+` wanted), flow by flow."""
    there: dict[str, tuple[int, str]] = {}
    missing: dict[str, Flow] = {}
    for line in lines:
        sign, text = line[:1], line[1:]
        if sign not in "+-" or " actions=" not in text:
            continue
        cookie = _cookie(text)
        if sign == "-":
            there[_match(text)] = cookie, text
        elif cookie in wanted:
            missing[_match(text)] = wanted[cookie]
    findings = []
    for match, flow in missing.items():
        other = there.pop(match, None)
        subject = f"host {host}, flow {match}"
        if other is None:
            findings.append(_missing(subject, flow))
        else:
            findings.append(_altered(subject, flow, *other))
    findings += [
        _unknown(f"host {host}, flow {match}", cookie, text, wanted)
        for match, (cookie, text) in there.items()
    ]
    return findings


def _missing(subject: str, flow: Flow) -> Finding:
    return Finding(
        kind="flow-missing",
        object=subject,
        found="the switch does not have it",
        remedy="it is put back",
        mend=PutFlows(add=(flow,), delete=()),
    )


def _altered(subject: str, flow: Flow, cookie: int, text: str) -> Finding:
    # The one that is added replaces the one with the same match; no packet sees neither.
    kept = ", with its cookie kept" if cookie == flow.cookie else ""
    return Finding(
        kind="flow-altered",
        object=subject,
        found=f"its actions are {_actions(text)} instead of {_actions(' ' + flow.text)}{kept}",
        remedy="it is replaced by the right one",
        mend=PutFlows(add=(flow,), delete=()),
    )


def _unknown(subject: str, cookie: int, text: str, wanted: Mapping[int, Flow]) -> Finding:
    # Deleting goes by the cookie, which a flow that is wanted may have, too.
    namesake = wanted.get(cookie)
    return Finding(
        kind="flow-unknown",
        object=subject,
        found=f"nothing in the fabric asks for it (actions {_actions(text)})",
        remedy="it is deleted: br-int is virtkit's alone",
        mend=PutFlows(add=(namesake,) if namesake else (), delete=(cookie,)),
    )


def _cookie(text: str) -> int:
    found = _COOKIE.search(text)
    return int(found[1], 16) if found else 0


def _match(text: str) -> str:
    """Table, priority and match, as ovs-ofctl writes them; what names a flow."""
    head = _COOKIE.sub("", text.partition(" actions=")[0]).strip()
    found = _TABLE.match(head)
    return head if found else f"table=0 {head}"


def _actions(text: str) -> str:
    return text.partition(" actions=")[2].strip()
