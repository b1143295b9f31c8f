"""`svctl image take`."""

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph
from storvirt.model import image_name
from tenancy.cli import Format, Output, Yes, confirm, show


def take(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Take an image from whoever has it open, alive or not: they can't write any more."""
    from storvirt.service import taking

    wanted = image_name(name)
    confirm(f"Cut off every client that has image {name} open?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        fenced = taking.take(fabric, cluster, tenant, wanted)
    show({"tenant": tenant, "name": name, "fenced": fenced}, output)
