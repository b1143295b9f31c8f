"""`svctl image share` and `unshare`."""

from typing import Annotated

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph
from storvirt.model import image_name
from tenancy.cli import Format, Output, show

Readers = Annotated[
    list[str],
    typer.Option(
        "--with", metavar="TENANT", help="Another tenant; repeatable.", show_default=False
    ),
]


def share(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    readers: Readers,
    output: Output = Format.TABLE,
) -> None:
    """Let other tenants clone an image: they can read it, all its snapshots, and nothing else."""
    from storvirt.service import sharing

    wanted = image_name(name)
    with fabric_and_ceph(context) as (fabric, cluster):
        found = sharing.share(fabric, cluster, tenant, wanted, readers)
    show({"tenant": tenant, "name": name, "shared_with": found}, output)


def unshare(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    readers: Readers,
    output: Output = Format.TABLE,
) -> None:
    """End that, once they have no clones of it."""
    from storvirt.service import sharing

    wanted = image_name(name)
    with fabric_and_ceph(context) as (fabric, cluster):
        found = sharing.unshare(fabric, cluster, tenant, wanted, readers)
    show({"tenant": tenant, "name": name, "shared_with": found}, output)
