"""`svctl pin` and `svctl unpin`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from storvirt.cli.common import MaybeTenant, TenantOption, fabric_and_ceph, say
from storvirt.model import image_name
from storvirt.placement.ranking import PIN_BUDGET, Objective
from tenancy.cli import Format, Output, show
from tenancy.errors import InvalidRequest

if TYPE_CHECKING:
    from storvirt.service.pinning import Pinned

_COLUMNS = ["pg", "pool", "host", "standing", "primary", "images"]


def pin(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="The image; or `list`, to see all pins.")],
    tenant: MaybeTenant = None,
    host: Annotated[
        str | None, typer.Option(help="Where its guest runs.", show_default=False)
    ] = None,
    budget: Annotated[int, typer.Option(help="Placement groups, at most.")] = PIN_BUDGET,
    objective: Annotated[
        Objective | None,
        typer.Option(help="Which reads count.", show_default="heat, else bytes"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Lead the placement groups that an image reads most from one host. No data moves."""
    from storvirt.service import pinning

    if host is None and image == "list":
        with fabric_and_ceph(context) as (fabric, cluster):
            found = pinning.list_all(fabric, cluster)
        show([asdict(one) for one in found], output, _COLUMNS)
        return
    if host is None:
        raise InvalidRequest(f"image {image}: no host to pin it to. Name it: --host HOST.")
    if tenant is None:
        raise InvalidRequest(f"image {image}: whose it is must be said. Name it: --tenant TENANT.")
    wanted = image_name(image)
    with fabric_and_ceph(context) as (fabric, cluster):
        pinned = pinning.pin(
            fabric,
            cluster,
            tenant,
            wanted,
            host,
            budget=budget,
            objective=objective,
            dry_run=dry_run,
        )
    if output is not Format.TABLE:
        show(asdict(pinned), output)
        return
    _print(pinned, dry_run)


def unpin(
    context: typer.Context, image: str, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Let an image's placement groups be led as they were."""
    from storvirt.service import pinning

    wanted = image_name(image)
    with fabric_and_ceph(context) as (fabric, cluster):
        released = pinning.unpin(fabric, cluster, tenant, wanted, say=say)
    show([asdict(one) for one in released], output, ["pg", "pool", "host", "standing"])


def _print(pinned: "Pinned", dry_run: bool) -> None:
    say(
        f"{pinned.image}: {pinned.host} {'would lead' if dry_run else 'leads'} {pinned.local:.1%} "
        f"of its reads by {pinned.objective}, {pinned.local_before:.1%} before; "
        f"{len(pinned.new)} new pins, {pinned.kept} as they were"
    )
    for reason, count in pinned.left_out.items():
        say(f"{count} placement groups are not pinned: {reason}")
    show([asdict(one) for one in pinned.new], Format.TABLE)
    if pinned.touched:
        say("other images in these placement groups are read from there too:")
        show(
            [
                {
                    "image": one.image,
                    "of its bytes": f"{one.share:.1%}",
                    "first object": one.first_object,
                }
                for one in pinned.touched
            ],
            Format.TABLE,
        )
    if pinned.not_examined:
        say(f"{pinned.not_examined} more images were not looked at")
