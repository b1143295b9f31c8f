"""`svctl image export`."""

from pathlib import Path
from typing import Annotated

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph, say
from storvirt.cli.progress import progress_bar
from storvirt.exports import ExportFormat, format_for
from storvirt.model import image_name, snapshot_name
from tenancy.cli import Format, Output, show
from tenancy.names import format_size


def export(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="IMAGE[@SNAPSHOT]", show_default=False)],
    tenant: TenantOption,
    to: Annotated[Path, typer.Option("--to", help="The file to write.", show_default=False)],
    format: Annotated[
        ExportFormat | None,
        typer.Option(help="What to write.", show_default="raw, or as the file's name ends"),
    ] = None,
    compress: Annotated[bool, typer.Option("--compress", help="For qcow2: smaller.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Write an image to a file; a guest may go on using it. Interrupted, run it again."""
    from storvirt.service import exporting

    image, at, snapshot = name.partition("@")
    wanted, moment = image_name(image), snapshot_name(snapshot) if at else None
    chosen = format_for(to, format, compress=compress)
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar(f"exporting {name}") as progress,
    ):
        done = exporting.export(
            fabric,
            cluster,
            tenant,
            wanted,
            to,
            snapshot=moment,
            format=chosen,
            compress=compress,
            force=force,
            progress=progress,
            say=say,
        )
    show(
        {
            "image": name,
            "file": str(done.file),
            "format": str(done.format),
            "size": format_size(done.size_bytes),
            "size_bytes": done.size_bytes,
            "sha256": done.sha256,
        },
        output,
    )
