"""`svctl namespace`."""

from typing import Annotated, Any

import typer

from storvirt.cli.common import MaybeTenant, fabric_and_ceph
from storvirt.model import Namespace, pool_name
from tenancy.cli import Format, Output, QuotaOption, Yes, confirm, parse_quota, session, show

app = typer.Typer(
    help="A tenant's place in a pool: RBD namespace and cephx key.", no_args_is_help=True
)

Pool = Annotated[str, typer.Option("--pool", help="The pool.", show_default=False)]


@app.command("create")
def create(
    context: typer.Context,
    tenant: str,
    pool: Pool,
    quota: QuotaOption = None,
    output: Output = Format.TABLE,
) -> None:
    """Give a tenant a namespace in a pool, its key the right to it, and its quota."""
    from storvirt.service import namespaces

    wanted, limits = pool_name(pool), parse_quota(quota)
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(namespaces.create(fabric, cluster, tenant, wanted, quota=limits)), output)


@app.command("list")
def list_(
    context: typer.Context, tenant: MaybeTenant = None, output: Output = Format.TABLE
) -> None:
    """List the namespaces."""
    from storvirt.service import namespaces

    with session(context).fabric() as fabric:
        found = namespaces.list_all(fabric, tenant)
    show([_record(one) for one in found], output)


@app.command("repair")
def repair(context: typer.Context, tenant: str, pool: Pool, output: Output = Format.TABLE) -> None:
    """Bring back the key, its caps or the namespace, if Ceph has lost them."""
    from storvirt.service import namespaces

    wanted = pool_name(pool)
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(namespaces.repair(fabric, cluster, tenant, wanted)), output)


@app.command("delete")
def delete(context: typer.Context, tenant: str, pool: Pool, yes: Yes = False) -> None:
    """Take an empty namespace away from a tenant; with the last one goes its key."""
    from storvirt.service import namespaces

    wanted = pool_name(pool)
    confirm(f"Take the namespace in pool {pool} away from tenant {tenant}?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        namespaces.delete(fabric, cluster, tenant, wanted)


def _record(namespace: Namespace) -> dict[str, Any]:
    from storvirt import caps

    return {
        "tenant": namespace.tenant,
        "pool": namespace.pool,
        "state": str(namespace.state),
        "key": caps.entity(namespace.tenant),
    }
