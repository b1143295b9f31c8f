"""How often a doctor looks, what it takes for a difference, and what it says became of it."""

from collections.abc import Callable, Mapping, Sequence

from tenancy.diagnosis import PAUSES_S, Finding, Key, Outcome, Report, Result, examine, persistent


def finding(kind: str, *, mendable: bool = True) -> Finding:
    return Finding(
        kind=kind, object="it", found="so", remedy="thus", mend="mend" if mendable else None
    )


class Patient:
    """Something with ailments, which come and go with time."""

    def __init__(self, *ailments: str, cures: bool = True) -> None:
        self.ailments = list(ailments)
        self.looks = 0
        self.slept_s = 0.0
        self.mended: list[str] = []
        self.cures = cures
        self.at: dict[int, Callable[[], None]] = {}

    def look(self) -> list[Finding]:
        self.looks += 1
        self.at.get(self.looks, lambda: None)()
        return [finding(kind, mendable=kind != "old age") for kind in self.ailments]

    def pause(self, seconds: float) -> None:
        self.slept_s += seconds

    def mend(self, findings: Sequence[Finding]) -> Mapping[Key, str]:
        for one in findings:
            self.mended.append(one.kind)
            if self.cures:
                self.ailments.remove(one.kind)
        return {}


def outcomes(patient: Patient, *, dry_run: bool = False) -> dict[str, Outcome]:
    results = examine(patient.look, patient.mend, patient.pause, dry_run=dry_run)
    return {result.finding.kind: result.outcome for result in results}


def test_the_healthy_are_looked_at_once() -> None:
    patient = Patient()
    assert outcomes(patient) == {}
    assert (patient.looks, patient.slept_s) == (1, 0)


def test_what_passes_by_itself_is_no_finding() -> None:
    patient = Patient("being made", "broken")
    patient.at[3] = lambda: patient.ailments.remove("being made")
    found = persistent(patient.look, patient.pause)
    assert [one.kind for one in found] == ["broken"]
    assert patient.slept_s == sum(PAUSES_S)


def test_what_appears_while_looking_is_no_finding_yet() -> None:
    patient = Patient("broken")
    patient.at[2] = lambda: patient.ailments.append("just made")
    assert [one.kind for one in persistent(patient.look, patient.pause)] == ["broken"]


def test_a_dry_run_mends_nothing() -> None:
    patient = Patient("broken", "old age")
    assert outcomes(patient, dry_run=True) == {
        "broken": Outcome.WOULD_MEND,
        "old age": Outcome.LEFT,
    }
    assert patient.mended == []


def test_what_mending_brings_to_light_is_mended_too() -> None:
    patient = Patient("tunnel", "old age")
    patient.at[5] = lambda: patient.ailments.append("flow")
    assert outcomes(patient) == {
        "tunnel": Outcome.MENDED,
        "old age": Outcome.LEFT,
        "flow": Outcome.MENDED,
    }


def test_what_is_found_after_it_was_mended_was_not() -> None:
    patient = Patient("stubborn", cures=False)
    assert outcomes(patient) == {"stubborn": Outcome.FAILED}
    assert patient.mended == ["stubborn"] * 3


def test_a_report_is_clean_if_nothing_is_left() -> None:
    def report(*found: Outcome) -> bool:
        results = tuple(Result(finding=finding("any"), outcome=one) for one in found)
        return Report(results=results).is_clean

    assert report()
    assert report(Outcome.MENDED)
    for left in (Outcome.LEFT, Outcome.WOULD_MEND, Outcome.FAILED):
        assert not report(Outcome.MENDED, left)
