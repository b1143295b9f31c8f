"""`svctl group`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli.common import MaybeTenant, PoolOption, TenantOption, fabric_and_ceph
from storvirt.model import image_name, pool_name, snapshot_ref
from tenancy.cli import Format, Output, Yes, confirm, session, show

if TYPE_CHECKING:
    from storvirt.service.groups import Group

app = typer.Typer(
    help="Images whose snapshots are taken at one moment: a VM's disks.", no_args_is_help=True
)

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", show_default=False)]
Ref = Annotated[str, typer.Argument(metavar="GROUP@SNAPSHOT", show_default=False)]


@app.command("create")
def create(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    pool: PoolOption = None,
    output: Output = Format.TABLE,
) -> None:
    """Create an empty group."""
    from storvirt.service import groups

    wanted, where = image_name(name), pool_name(pool) if pool else None
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(groups.create(fabric, cluster, tenant, wanted, where)), output)


@app.command("list")
def list_(
    context: typer.Context, tenant: MaybeTenant = None, output: Output = Format.TABLE
) -> None:
    """List the groups."""
    from storvirt.service import groups

    with session(context).fabric() as fabric:
        found = groups.list_all(fabric, tenant)
    show([_record(group) for group in found], output)


@app.command("get")
def get(
    context: typer.Context, name: str, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Show a group with its images and snapshots."""
    from storvirt.service import groups

    wanted = image_name(name)
    with session(context).fabric() as fabric:
        show(_record(groups.get(fabric, tenant, wanted)), output)


@app.command("add")
def add(
    context: typer.Context,
    name: str,
    images: Images,
    tenant: TenantOption,
    output: Output = Format.TABLE,
) -> None:
    """Put images into a group."""
    from storvirt.service import groups

    wanted, members = image_name(name), [image_name(image) for image in images]
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(groups.add(fabric, cluster, tenant, wanted, members)), output)


@app.command("remove")
def remove(
    context: typer.Context,
    name: str,
    images: Images,
    tenant: TenantOption,
) -> None:
    """Take images out of a group."""
    from storvirt.service import groups

    wanted, members = image_name(name), [image_name(image) for image in images]
    with fabric_and_ceph(context) as (fabric, cluster):
        groups.remove(fabric, cluster, tenant, wanted, members)


@app.command("delete")
def delete(context: typer.Context, name: str, tenant: TenantOption, yes: Yes = False) -> None:
    """Delete a group without snapshots. Its images stay."""
    from storvirt.service import groups

    wanted = image_name(name)
    confirm(f"Delete group {name} of tenant {tenant}? Its images stay.", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        groups.delete(fabric, cluster, tenant, wanted)


@app.command("snapshot")
def snapshot(
    context: typer.Context, ref: Ref, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Keep all images of a group as they are at one moment, also while guests write."""
    from storvirt.service import groups

    wanted = snapshot_ref(ref)
    with fabric_and_ceph(context) as (fabric, cluster):
        group = groups.snapshot(fabric, cluster, tenant, wanted.image, wanted.snapshot)
    show(_record(group), output)


@app.command("delete-snapshot")
def delete_snapshot(
    context: typer.Context, ref: Ref, tenant: TenantOption, yes: Yes = False
) -> None:
    """Delete the snapshots of one moment."""
    from storvirt.service import groups

    wanted = snapshot_ref(ref)
    confirm(f"Delete snapshot {ref} of tenant {tenant}?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        groups.delete_snapshot(fabric, cluster, tenant, wanted.image, wanted.snapshot)


@app.command("rollback")
def rollback(context: typer.Context, ref: Ref, tenant: TenantOption, yes: Yes = False) -> None:
    """Make all images of a group what they were at that moment. Refused while one is open."""
    from storvirt.service import groups

    wanted = snapshot_ref(ref)
    confirm(f"Take all images of group {wanted.image} back to {ref}?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        groups.roll_back(fabric, cluster, tenant, wanted.image, wanted.snapshot)


def _record(group: "Group") -> dict[str, Any]:
    return {
        "tenant": group.tenant,
        "name": group.name,
        "pool": group.pool,
        "state": str(group.state),
        "images": list(group.images),
        "snapshots": list(group.snapshots),
    }
