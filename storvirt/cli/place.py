"""`svctl place`."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph, say
from storvirt.model import image_name
from storvirt.placement.ranking import Objective
from tenancy.cli import Format, Output, show
from tenancy.errors import InvalidRequest

if TYPE_CHECKING:
    from storvirt.service.placing import Placement

_COLUMNS = ["host", "score", "role", "local", "guests", "reason"]


def place(
    context: typer.Context,
    tenant: TenantOption,
    images: Annotated[list[str] | None, typer.Argument(metavar="IMAGE...")] = None,
    count: Annotated[int, typer.Option(help="Guests of each, one after the other.")] = 1,
    objective: Annotated[
        Objective, typer.Option(help="Which reads count.")
    ] = Objective.FIRST_OBJECT,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what would bring more than the place.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Remember the answer, for --check.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare what was kept with the newest map.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Rank the hosts for images' VMs. The nearest to what they read comes first."""
    from storvirt.service import pinning, placing, replacing

    wanted = [image_name(image) for image in images or ()]
    if check:
        if keep:
            raise InvalidRequest("--keep and --check can't be given together. Give one.")
        with fabric_and_ceph(context) as (fabric, cluster):
            kept = replacing.check(fabric, cluster, tenant, wanted)
            for cleaned in pinning.clean(fabric, cluster, say=say):
                say(f"pg {cleaned.pg}: its pin to {cleaned.host} is no use any more; given back.")
        show(
            [asdict(one) for one in kept],
            output,
            ["image", "objective", "host", "local", "verdict", "host_now", "local_now"],
        )
        return
    if not wanted:
        raise InvalidRequest("no image is named. Name those to be placed.")
    with fabric_and_ceph(context) as (fabric, cluster):
        found = placing.place(fabric, cluster, tenant, wanted, objective=objective, count=count)
        if keep:
            replacing.keep(fabric, tenant, wanted, found)
    if output is not Format.TABLE:
        records = [asdict(one) for one in found]
        show(records[0] if len(records) == 1 else records, output)
        return
    for placement in found:
        _print(placement, count, explain)


def _print(placement: "Placement", count: int, explain: bool) -> None:
    say(
        f"{placement.image}: first object {placement.object_name} of {placement.read_from} "
        f"is in pg {placement.pg}, served by osd.{placement.primary_osd} "
        f"on {placement.primary_host} (osdmap {placement.epoch})"
    )
    if placement.objective is not Objective.FIRST_OBJECT:
        say(
            f"counted by {placement.objective}: {placement.groups} placement groups; "
            f"{placement.first_share:.0%} of it is the first object"
        )
    if count > 1:
        hosts = Counter(placement.hosts)
        records: list[dict[str, Any]] = [
            {**asdict(ranked), "new": hosts[ranked.host]} for ranked in placement.ranking
        ]
        show(records, Format.TABLE, ["host", "new", *_COLUMNS[1:]])
    else:
        show([asdict(ranked) for ranked in placement.ranking], Format.TABLE, _COLUMNS)
    if explain:
        say(f"reads that would be served on {placement.hosts[0]} itself:")
        show(
            [
                {"action": one.action, "local": f"{one.local:.1%}", "how": one.how}
                for one in placement.options
            ],
            Format.TABLE,
        )
