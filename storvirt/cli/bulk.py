"""Naming many objects on a command line, and showing what became of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from storvirt.cli.common import say
from storvirt.model import ImageName, image_name, numbered
from tenancy.cli import Format, show
from tenancy.errors import InvalidRequest, Refused

if TYPE_CHECKING:
    from storvirt.service.parallel import Outcome

# Reasons are mostly alike; whoever wants all of them asks for JSON.
SHOWN = 5


def named(names: Sequence[str], count: int | None) -> list[ImageName]:
    """The images that `NAME...`, or `NAME --count COUNT`, stands for. Raises InvalidRequest."""
    wanted = [image_name(name) for name in names]
    if count is None:
        return list(dict.fromkeys(wanted))
    if len(wanted) > 1:
        raise InvalidRequest("--count goes with one name: NAME stands for NAME-1 to NAME-COUNT.")
    return numbered(wanted[0], count)


def show_outcome(outcome: "Outcome", noun: str, done: str, present: str, output: Format) -> None:
    """Print the outcome, such as `994 images made, 6 were there`; raises Refused if any failed."""
    if output is not Format.TABLE:
        show(
            {
                "done": list(outcome.done),
                "present": list(outcome.present),
                "failed": [
                    {"name": name, "error": " ".join(str(error).split())}
                    for name, error in outcome.failed
                ],
            },
            output,
        )
    parts = [f"{len(outcome.done)} {noun} {done}"]
    if outcome.present:
        parts.append(f"{len(outcome.present)} {present}")
    if outcome.failed:
        parts.append(f"{len(outcome.failed)} failed")
    say(", ".join(parts) + ".")
    for name, error in outcome.failed[:SHOWN]:
        say(f"{name}: {' '.join(str(error).split())}")
    if outcome.failed:
        more = " See all with -o json." if len(outcome.failed) > SHOWN else ""
        raise Refused(
            f"{len(outcome.failed)} of {noun} failed; the others are done. Mend what is said "
            f"above and run the same command again.{more}"
        )


def first_failure(outcome: "Outcome") -> None:
    """Raise the error of the first object that failed, if one did: for requests for one."""
    for _, error in outcome.failed:
        raise error
