"""`svctl pool`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli.common import fabric_and_ceph
from storvirt.model import State, pool_name
from tenancy.cli import Format, Output, Yes, confirm, show
from tenancy.names import rough_size

if TYPE_CHECKING:
    from storvirt.service.pools import PoolReport

app = typer.Typer(help="Ceph pools for tenants.", no_args_is_help=True)

_COLUMNS = ["name", "state", "replicas", "pg_num", "stored", "available", "tier"]


@app.command("create")
def create(
    context: typer.Context,
    name: str,
    replicas: Annotated[
        int | None, typer.Option(help="Copies of each object.", show_default="the cluster's")
    ] = None,
    pg_num: Annotated[
        int | None, typer.Option(help="Placement groups.", show_default="the cluster's")
    ] = None,
    adopt: Annotated[bool, typer.Option(help="Take over a pool that exists in Ceph.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Create a replicated pool and make it fit for tenants."""
    from storvirt.service import pools

    wanted = pool_name(name)
    with fabric_and_ceph(context) as (fabric, cluster):
        report = pools.create(
            fabric, cluster, wanted, replicas=replicas, pg_num=pg_num, adopt=adopt
        )
    show(_record(report), output)


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the pools."""
    from storvirt.service import pools

    with fabric_and_ceph(context) as (fabric, cluster):
        found = pools.list_all(fabric, cluster)
    show([_record(report) for report in found], output, _COLUMNS)


@app.command("get")
def get(context: typer.Context, name: str, output: Output = Format.TABLE) -> None:
    """Show one pool."""
    from storvirt.service import pools

    wanted = pool_name(name)
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(pools.get(fabric, cluster, wanted)), output)


@app.command("delete")
def delete(context: typer.Context, name: str, yes: Yes = False) -> None:
    """Delete a pool that no tenant uses; an adopted one is only let go."""
    from storvirt.service import pools

    wanted = pool_name(name)
    confirm(f"Delete pool {name} with everything in it?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        pools.delete(fabric, cluster, wanted)


def _record(report: "PoolReport") -> dict[str, Any]:
    pool, facts = report.pool, report.facts
    record: dict[str, Any] = {
        "name": pool.name,
        "state": "missing in Ceph" if pool.state is State.READY and not facts else str(pool.state),
        "adopted": pool.adopted,
    }
    if facts:
        record |= {
            "replicas": facts.replicas,
            "pg_num": facts.pg_num,
            "stored": rough_size(facts.stored_bytes),
            "stored_bytes": facts.stored_bytes,
            "available": rough_size(facts.available_bytes),
            "available_bytes": facts.available_bytes,
            "tier": f"cache of {facts.tier_of}"
            if facts.tier_of
            else f"cached by {facts.cache}"
            if facts.cache
            else None,
        }
    return record
