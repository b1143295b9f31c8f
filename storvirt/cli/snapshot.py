"""`svctl snapshot`."""

from typing import Annotated, Any

import typer

from storvirt.cli.bulk import show_outcome
from storvirt.cli.common import TenantOption, fabric_and_ceph
from storvirt.cli.progress import progress_bar
from storvirt.model import Snapshot, SnapshotRef, image_name, snapshot_name, snapshot_ref
from tenancy.cli import Format, Output, Yes, confirm, session, show
from tenancy.errors import InvalidRequest
from tenancy.names import format_size

app = typer.Typer(help="Snapshots of images.", no_args_is_help=True)

Refs = Annotated[
    list[str] | None, typer.Argument(metavar="[IMAGE@SNAPSHOT]...", show_default=False)
]
Every = Annotated[bool, typer.Option("--all", help="Of all the tenant's images.")]
Named = Annotated[
    str | None, typer.Option("--name", help="With --all: the snapshots' name.", show_default=False)
]
Ref = Annotated[str, typer.Argument(metavar="IMAGE@SNAPSHOT", show_default=False)]


@app.command("create")
def create(
    context: typer.Context,
    tenant: TenantOption,
    refs: Refs = None,
    every: Every = False,
    name: Named = None,
    protect: Annotated[bool, typer.Option(help="Protect it, so that it can be cloned.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Keep an image as it is now, or many, or all of the tenant's."""
    from storvirt.service import snapshots

    wanted, common = _wanted(refs, every, name)
    if len(wanted) == 1:
        with fabric_and_ceph(context) as (fabric, cluster):
            made = snapshots.create(fabric, cluster, tenant, wanted[0], protect=protect)
        show(_record(made), output)
        return
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar("taking snapshots") as progress,
    ):
        wanted = wanted or snapshots.of_all_images(fabric, tenant, snapshot_name(common))
        taken = snapshots.create_all(
            fabric, cluster, tenant, wanted, protect=protect, progress=progress
        )
    show_outcome(taken, "snapshots", "taken", "were there", output)


@app.command("list")
def list_(
    context: typer.Context, image: str, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """List the snapshots of an image."""
    from storvirt.service import snapshots

    wanted = image_name(image)
    with session(context).fabric() as fabric:
        found = snapshots.list_all(fabric, tenant, wanted)
    show([_record(snapshot) for snapshot in found], output)


@app.command("protect")
def protect(
    context: typer.Context, ref: Ref, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Keep a snapshot from being deleted, so that it can be cloned."""
    from storvirt.service import snapshots

    wanted = snapshot_ref(ref)
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(snapshots.protect(fabric, cluster, tenant, wanted)), output)


@app.command("unprotect")
def unprotect(
    context: typer.Context, ref: Ref, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Let a snapshot without clones be deleted again."""
    from storvirt.service import snapshots

    wanted = snapshot_ref(ref)
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(snapshots.unprotect(fabric, cluster, tenant, wanted)), output)


@app.command("delete")
def delete(
    context: typer.Context,
    tenant: TenantOption,
    refs: Refs = None,
    every: Every = False,
    name: Named = None,
    yes: Yes = False,
) -> None:
    """Delete snapshots that are not protected and have no clones."""
    from storvirt.service import snapshots

    wanted, common = _wanted(refs, every, name)
    what = f"snapshot {wanted[0]}" if len(wanted) == 1 else f"all snapshots {common or 'named'}"
    confirm(f"Delete {what} of tenant {tenant}?", yes=yes)
    if len(wanted) == 1:
        with fabric_and_ceph(context) as (fabric, cluster):
            snapshots.delete(fabric, cluster, tenant, wanted[0])
        return
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar("deleting snapshots") as progress,
    ):
        wanted = wanted or snapshots.of_all_images(fabric, tenant, snapshot_name(common))
        gone = snapshots.delete_all(fabric, cluster, tenant, wanted, progress=progress)
    show_outcome(gone, "snapshots", "deleted", "were not there", Format.TABLE)


@app.command("rollback")
def rollback(context: typer.Context, ref: Ref, tenant: TenantOption, yes: Yes = False) -> None:
    """Make an image what it was when the snapshot was taken. Refused while it is open."""
    from storvirt.service import rollback as service

    wanted = snapshot_ref(ref)
    confirm(f"Take image {wanted.image} back to {ref} and lose what came since?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        service.rollback(fabric, cluster, tenant, wanted)


def _wanted(refs: list[str] | None, every: bool, name: str | None) -> tuple[list[SnapshotRef], str]:
    """The snapshots that were named; or none, and the name that all images' have."""
    if every == bool(refs) or every != (name is not None):
        raise InvalidRequest("say which: IMAGE@SNAPSHOT ..., or --all --name SNAPSHOT.")
    if every:
        return [], snapshot_name(name or "")
    return list(dict.fromkeys(snapshot_ref(ref) for ref in refs or ())), ""


def _record(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "snapshot": f"{snapshot.image}@{snapshot.name}",
        "size": format_size(snapshot.size_bytes),
        "state": str(snapshot.state),
        "protected": snapshot.protected,
        "held_by": snapshot.holder,
    }
