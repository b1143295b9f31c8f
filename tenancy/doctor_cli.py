"""How both doctors print: an edge, like `tenancy.cli`."""

import sys
from typing import Annotated, Any

import typer

from tenancy.cli import Format, show
from tenancy.diagnosis import Outcome, Report

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what is found and what would be done, no more.")
]
Json = Annotated[bool, typer.Option("--json", help="The same as -o json.")]

# What the command ends with when something is left to be done.
LEFT = 1


def tell(report: Report, output: Format, *, json: bool) -> None:
    """Print a report, and end with 1 if anything is left."""
    chosen = Format.JSON if json else output
    if chosen is Format.TABLE:
        _table(report)
    else:
        show(_record(report), chosen)
    if not report.is_clean:
        raise typer.Exit(LEFT)


def _record(report: Report) -> dict[str, Any]:
    return {
        "clean": report.is_clean,
        "findings": [result.record() for result in report.results],
        "not_looked_at": list(report.unseen),
    }


def _table(report: Report) -> None:
    if report.results:
        columns = ["object", "found", "outcome", "remedy"]
        show([result.record() for result in report.results], Format.TABLE, columns)
    for sentence in report.unseen:
        print(f"Not looked at: {sentence}", file=sys.stderr)
    print(_summary(report), file=sys.stderr)


def _summary(report: Report) -> str:
    if not report.results:
        return "Nothing found."
    count = dict.fromkeys(Outcome, 0)
    for result in report.results:
        count[result.outcome] += 1
    parts = [f"{number} {outcome}" for outcome, number in count.items() if number]
    return f"{len(report.results)} found: {', '.join(parts)}."
