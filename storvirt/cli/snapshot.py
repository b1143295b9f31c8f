"""`svctl snapshot`."""

from typing import Annotated, Any

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph
from storvirt.model import Snapshot, image_name, snapshot_ref
from tenancy.cli import Format, Output, Yes, confirm, session, show
from tenancy.names import format_size

app = typer.Typer(help="Snapshots of images.", no_args_is_help=True)

Ref = Annotated[str, typer.Argument(metavar="IMAGE@SNAPSHOT", show_default=False)]


@app.command("create")
def create(
    context: typer.Context,
    ref: Ref,
    tenant: TenantOption,
    protect: Annotated[bool, typer.Option(help="Protect it, so that it can be cloned.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Keep an image as it is now."""
    from storvirt.service import snapshots

    wanted = snapshot_ref(ref)
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(snapshots.create(fabric, cluster, tenant, wanted, protect=protect)), output)


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
def delete(context: typer.Context, ref: Ref, tenant: TenantOption, yes: Yes = False) -> None:
    """Delete a snapshot that is not protected and has no clones."""
    from storvirt.service import snapshots

    wanted = snapshot_ref(ref)
    confirm(f"Delete snapshot {ref} of tenant {tenant}?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        snapshots.delete(fabric, cluster, tenant, wanted)


def _record(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "snapshot": f"{snapshot.image}@{snapshot.name}",
        "size": format_size(snapshot.size_bytes),
        "state": str(snapshot.state),
        "protected": snapshot.protected,
    }
