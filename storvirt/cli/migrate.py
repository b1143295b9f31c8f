"""`svctl migrate`."""

from pathlib import Path
from typing import Annotated

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph, say
from storvirt.cli.progress import progress_bar
from storvirt.model import image_name, pool_name
from tenancy.cli import Format, Output, show
from tenancy.errors import InvalidRequest


def migrate(
    context: typer.Context,
    image: str,
    tenant: TenantOption,
    to_pool: Annotated[
        str | None, typer.Option("--to-pool", help="Where to.", show_default=False)
    ] = None,
    qmp: Annotated[
        Path | None,
        typer.Option(help="QMP socket of the guest that goes on using it.", show_default=False),
    ] = None,
    abort: Annotated[bool, typer.Option("--abort", help="Undo what is not complete.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Move an image to another pool. Interrupted, the same command goes on, --abort undoes."""
    from storvirt.service import migrating

    wanted = image_name(image)
    if not abort and to_pool is None:
        raise InvalidRequest("say where to: --to-pool POOL.")
    pool = None if to_pool is None else pool_name(to_pool)
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar(f"moving {image}") as progress,
    ):
        if abort or pool is None:
            moved = migrating.abort(fabric, cluster, tenant, wanted, qmp=qmp)
        else:
            moved = migrating.migrate(
                fabric, cluster, tenant, wanted, pool, qmp=qmp, progress=progress, say=say
            )
    show({"tenant": moved.tenant, "name": moved.name, "pool": moved.pool}, output)
