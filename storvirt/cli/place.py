"""`svctl place`."""

from dataclasses import asdict

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph, say
from storvirt.model import image_name
from tenancy.cli import Format, Output, show


def place(
    context: typer.Context, image: str, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Rank the hosts for an image's VM. The nearest to its first bytes comes first."""
    from storvirt.service import placing

    wanted = image_name(image)
    with fabric_and_ceph(context) as (fabric, cluster):
        placement = placing.place(fabric, cluster, tenant, wanted)
    if output is not Format.TABLE:
        show(asdict(placement), output)
        return
    say(
        f"{placement.image}: first object {placement.object_name} of {placement.read_from} "
        f"is in pg {placement.pg}, served by osd.{placement.primary_osd} "
        f"on {placement.primary_host} (osdmap {placement.epoch})"
    )
    ranking = [asdict(host) for host in placement.ranking]
    show(ranking, output, ["host", "score", "role", "guests", "reason"])
