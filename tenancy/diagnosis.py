"""What a doctor finds and what becomes of it: the records and the rules that both doctors share.

Checks are pure functions from observed facts to findings. Nothing here looks or mends.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that differs from what it should be, on one object.

    `remedy` says what the doctor does about it if there is a `mend`, and otherwise what an operator
    should do. A `mend` is data: the module that acts knows what it means.
    """

    kind: str
    object: str
    found: str
    remedy: str
    mend: Hashable | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells whether a finding of a later look is this one."""
        return self.kind, self.object


class Outcome(StrEnum):
    """What became of a finding."""

    WOULD_MEND = "would be mended"
    MENDED = "mended"
    FAILED = "not mended"
    LEFT = "for you to do"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A finding with what became of it; `reason` says why mending failed."""

    finding: Finding
    outcome: Outcome
    reason: str | None = None

    def record(self) -> dict[str, Any]:
        found = self.finding
        return {
            "kind": found.kind,
            "object": found.object,
            "found": found.found,
            "outcome": str(self.outcome),
            "remedy": found.remedy if self.reason is None else f"{found.remedy} ({self.reason})",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one run has to say. `unseen` is what it could not look at, and why."""

    results: tuple[Result, ...]
    unseen: tuple[str, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left to be done; what could not be looked at is a finding as well."""
        return all(result.outcome is Outcome.MENDED for result in self.results)


Key = tuple[str, str]
Look = Callable[[], Sequence[Finding]]
# Does what the findings call for; returns why it could not, for those for which it could not.
Mender = Callable[[Sequence[Finding]], Mapping[Key, str]]

# What is in the middle of being made differs for moments. A difference that survives these pauses,
# in seconds, is one.
PAUSES_S = (0.5, 1.0, 1.5)


def persistent(
    look: Look, pause: Callable[[float], None], known: Collection[Key] = ()
) -> list[Finding]:
    """The findings that every look has, as the last one saw them, but for those that are `known`.

    One look if it finds nothing else.
    """
    found = _unknown(look(), known)
    for pause_s in PAUSES_S:
        if not found:
            break
        pause(pause_s)
        before = {finding.key for finding in found}
        found = [finding for finding in _unknown(look(), known) if finding.key in before]
    return found


def examine(
    look: Look,
    mend: Mender,
    pause: Callable[[float], None],
    *,
    dry_run: bool,
    rounds: int = 3,
) -> list[Result]:
    """Look, mend and look again.

    A mended thing may bring another to light (a tunnel that is back needs other flows), so there
    are a few rounds. What the last look still finds was not mended, whatever `mend` believes.
    """
    results: dict[Key, Result] = {}
    for number in range(rounds + 1):
        given_up = [k for k, result in results.items() if result.outcome is not Outcome.MENDED]
        found = persistent(look, pause, given_up)
        if number == rounds:
            results |= {one.key: _again(one) for one in found}
            break
        results |= _treat(found, mend, dry_run=dry_run)
        if not any(results[one.key].outcome is Outcome.MENDED for one in found):
            break
    return list(results.values())


def _again(finding: Finding) -> Result:
    reason = "it is found again afterwards"
    outcome = Outcome.LEFT if finding.mend is None else Outcome.FAILED
    return Result(finding=finding, outcome=outcome, reason=reason)


def _treat(findings: Sequence[Finding], mend: Mender, *, dry_run: bool) -> dict[Key, Result]:
    results = {one.key: Result(finding=one, outcome=Outcome.LEFT) for one in findings}
    mendable = [one for one in findings if one.mend is not None]
    failures = {} if dry_run else mend(mendable)
    for one in mendable:
        reason = failures.get(one.key)
        outcome = Outcome.WOULD_MEND if dry_run else Outcome.MENDED
        results[one.key] = Result(
            finding=one, outcome=outcome if reason is None else Outcome.FAILED, reason=reason
        )
    return results


def _unknown(found: Iterable[Finding], known: Collection[Key]) -> list[Finding]:
    """Each finding once, but for those that are known."""
    once = {finding.key: finding for finding in found}
    return [finding for key, finding in once.items() if key not in known]
