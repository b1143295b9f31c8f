"""`svctl trash`."""

import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from storvirt.cli.bulk import show_outcome
from storvirt.cli.common import MaybeTenant, TenantOption, fabric_and_ceph
from storvirt.cli.progress import progress_bar
from storvirt.cli.rounds import repeat
from storvirt.model import duration, image_name
from tenancy.cli import Format, Output, Yes, confirm, session, show
from tenancy.errors import InvalidRequest
from tenancy.names import format_size

app = typer.Typer(
    help="Images that were deleted with --trash. They count against quota until purged.",
    no_args_is_help=True,
)

_COLUMNS = ["tenant", "name", "size", "pool", "expires", "id"]


@app.command("list")
def list_(
    context: typer.Context, tenant: MaybeTenant = None, output: Output = Format.TABLE
) -> None:
    """List what is in the trash, the oldest first."""
    from storvirt.service import trash

    with session(context).fabric() as fabric:
        found = trash.list_all(fabric, tenant)
    records: list[dict[str, Any]] = [
        {
            "tenant": one.tenant,
            "name": one.name,
            "size": format_size(one.size_bytes),
            "size_bytes": one.size_bytes,
            "pool": one.pool,
            "trashed": _time(one.trashed_at),
            "expires": _time(one.expires_at),
            "expired": one.expires_at <= time.time(),
            "id": one.id,
        }
        for one in found
    ]
    show(records, output, _COLUMNS)


@app.command("restore")
def restore(
    context: typer.Context,
    which: Annotated[str, typer.Argument(metavar="NAME|ID", show_default=False)],
    tenant: TenantOption,
    name: Annotated[
        str | None, typer.Option(help="Under this name.", show_default="the old one")
    ] = None,
) -> None:
    """Take an image out of the trash."""
    from storvirt.service import trash

    wanted = image_name(name) if name else None
    with fabric_and_ceph(context) as (fabric, cluster):
        trash.restore(fabric, cluster, tenant, which, wanted)


@app.command("purge")
def purge(
    context: typer.Context,
    which: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|ID]...", show_default=False)
    ] = None,
    tenant: MaybeTenant = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what has not expired yet.")
    ] = False,
    every: Annotated[
        str | None,
        typer.Option(help="Go on, and do it again after this time.", show_default="once"),
    ] = None,
    yes: Yes = False,
) -> None:
    """Delete for good what has expired, or these images, and give their quota back."""
    from storvirt.service import trash

    if which and everything:
        raise InvalidRequest("name images, or give --all, not both.")
    if every is not None:
        if which or everything:
            raise InvalidRequest("--every is for what expires: name no images, and not --all.")
        owner = ["--tenant", tenant] if tenant else []
        repeat(session(context), ["trash", "purge", *owner], duration(every))
    if which or everything:
        confirm(f"Delete {', '.join(which) if which else 'all'} in the trash for good?", yes=yes)
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar("purging") as progress,
    ):
        gone = trash.purge(
            fabric,
            cluster,
            tenant,
            which or (),
            now=int(time.time()),
            everything=everything,
            progress=progress,
        )
    show_outcome(gone, "images", "purged", "", Format.TABLE)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
