"""`svctl backup`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from storvirt.backups import Manifest, Piece
from storvirt.cli.common import PoolOption, TenantOption, fabric_and_ceph, say
from storvirt.cli.progress import progress_bar
from storvirt.model import image_name, pool_name, snapshot_ref
from tenancy.cli import Format, Output, Yes, confirm, show
from tenancy.names import format_size, rough_size

app = typer.Typer(help="Backups of images, each with what changed.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(help="Where the chain is.", show_default=False)]


@app.command("create")
def create(
    context: typer.Context,
    image: str,
    tenant: TenantOption,
    to: Annotated[Path, typer.Option("--to", help="The chain's directory.", show_default=False)],
    output: Output = Format.TABLE,
) -> None:
    """Back an image up: whole the first time, then what changed since the last time."""
    from storvirt.service import backups

    wanted = image_name(image)
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar(f"backing up {image}") as progress,
    ):
        piece = backups.create(fabric, cluster, tenant, wanted, to, progress=progress, say=say)
    show(_piece(piece), output)


@app.command("list")
def list_(directory: Directory, output: Output = Format.TABLE) -> None:
    """List the backups of a chain."""
    from storvirt.service import backups

    show([_piece(piece) for piece in backups.list_all(directory)], output)


@app.command("verify")
def verify(directory: Directory, output: Output = Format.TABLE) -> None:
    """Read a whole chain, and check that each restore would give what the image held."""
    from storvirt.service import backups

    with progress_bar(f"verifying {directory}") as progress:
        manifest = backups.verify(directory, progress=progress)
    show(_chain(manifest), output)


@app.command("restore")
def restore(
    context: typer.Context,
    directory: Directory,
    image: Annotated[str, typer.Argument(help="The new image.", show_default=False)],
    tenant: TenantOption,
    number: Annotated[
        int | None, typer.Option("--number", help="Which backup.", show_default="the newest")
    ] = None,
    pool: PoolOption = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a new image from a backup. Interrupted, the same command goes on."""
    from storvirt.service import backups

    wanted, where = image_name(image), pool and pool_name(pool)
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar(f"restoring {image}") as progress,
    ):
        made = backups.restore(
            fabric,
            cluster,
            tenant,
            wanted,
            directory,
            number=number,
            pool=where or None,
            progress=progress,
            say=say,
        )
    show(
        {
            "tenant": made.tenant,
            "name": made.name,
            "size": format_size(made.size_bytes),
            "size_bytes": made.size_bytes,
            "pool": made.pool,
            "state": str(made.state),
            "source": made.source,
        },
        output,
    )


@app.command("prune")
def prune(
    directory: Directory,
    keep: Annotated[int, typer.Option(help="How many, the newest ones.", show_default=False)],
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Drop the oldest backups: what the others build on is merged."""
    from storvirt.service import backups

    confirm(f"Drop all backups in {directory} but the newest {keep}?", yes=yes)
    with progress_bar(f"pruning {directory}") as progress:
        manifest = backups.prune(directory, keep, progress=progress)
    show(_chain(manifest), output)


@app.command("release")
def release(
    context: typer.Context,
    snapshot: Annotated[str, typer.Argument(metavar="IMAGE@SNAPSHOT", show_default=False)],
    tenant: TenantOption,
    yes: Yes = False,
) -> None:
    """Delete the snapshot that a chain goes on from, when the chain is given up."""
    from storvirt.service import backups

    ref = snapshot_ref(snapshot)
    confirm(f"Delete snapshot {ref}, so that what relies on it cannot go on?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        backups.release(fabric, cluster, tenant, ref)


def _piece(piece: Piece) -> dict[str, Any]:
    return {
        "number": piece.number,
        "kind": "full" if piece.since is None else "increment",
        "taken": piece.taken,
        "size": format_size(piece.size_bytes),
        "file": piece.file,
        "file_size": rough_size(piece.file_bytes),
        "content": piece.content,
    }


def _chain(manifest: Manifest) -> dict[str, Any]:
    return {
        "chain": manifest.chain,
        "tenant": manifest.tenant,
        "image": manifest.image,
        "backups": [piece.number for piece in manifest.pieces],
        "content": manifest.pieces[-1].content,
    }
