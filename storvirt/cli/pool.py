"""`svctl pool`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli.common import fabric_and_ceph
from storvirt.model import State, pool_name
from storvirt.poolplan import Autoscale, CompressionAlgorithm, CompressionMode, Settings, Wish
from storvirt.poolplan import erasure as parse_erasure
from tenancy.cli import Format, Output, Yes, confirm, show
from tenancy.names import rough_size

if TYPE_CHECKING:
    from storvirt.service.pools import PoolReport

app = typer.Typer(help="Ceph pools for tenants.", no_args_is_help=True)

_COLUMNS = ["name", "state", "replicas", "erasure", "pg_num", "stored", "available", "tier"]

Replicas = Annotated[
    int | None, typer.Option(help="Copies of each object.", show_default="the cluster's")
]
PgNum = Annotated[int | None, typer.Option(help="Placement groups.", show_default="the cluster's")]
AutoscaleOption = Annotated[
    Autoscale | None,
    typer.Option("--autoscale", help="Whether Ceph changes the placement groups' number."),
]
Mode = Annotated[
    CompressionMode | None, typer.Option("--compression", help="Which writes are compressed.")
]
Algorithm = Annotated[
    CompressionAlgorithm | None, typer.Option("--compression-algorithm", help="How.")
]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--compression-ratio", help="Keep compressed what shrinks to this share, such as 0.875."
    ),
]


@app.command("create")
def create(
    context: typer.Context,
    name: str,
    replicas: Replicas = None,
    pg_num: PgNum = None,
    erasure: Annotated[
        str | None,
        typer.Option(
            metavar="K+M",
            help="Keep images' data in a second, erasure-coded pool.",
            show_default=False,
        ),
    ] = None,
    device_class: Annotated[
        str | None, typer.Option(help="Only on OSDs of it, such as ssd.", show_default=False)
    ] = None,
    failure_domain: Annotated[
        str | None,
        typer.Option(help="No two copies in one, such as host.", show_default="the cluster's"),
    ] = None,
    autoscale: AutoscaleOption = None,
    compression: Mode = None,
    compression_algorithm: Algorithm = None,
    compression_ratio: Ratio = None,
    adopt: Annotated[bool, typer.Option(help="Take over a pool that exists in Ceph.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Create a pool and make it fit for tenants."""
    from storvirt.service import pools

    wanted = pool_name(name)
    wish = Wish(
        replicas=replicas,
        pg_num=pg_num,
        autoscale=autoscale,
        compression_mode=compression,
        compression_algorithm=compression_algorithm,
        compression_ratio=compression_ratio,
        erasure=parse_erasure(erasure) if erasure else None,
        device_class=device_class,
        failure_domain=failure_domain,
    )
    with fabric_and_ceph(context) as (fabric, cluster):
        report = pools.create(fabric, cluster, wanted, wish, adopt=adopt)
    show(_record(report), output)


@app.command("set")
def set_(
    context: typer.Context,
    name: str,
    replicas: Replicas = None,
    pg_num: PgNum = None,
    autoscale: AutoscaleOption = None,
    compression: Mode = None,
    compression_algorithm: Algorithm = None,
    compression_ratio: Ratio = None,
    output: Output = Format.TABLE,
) -> None:
    """Change what can be changed while a pool is used."""
    from storvirt.service import pools

    wanted = pool_name(name)
    wish = Settings(
        replicas=replicas,
        pg_num=pg_num,
        autoscale=autoscale,
        compression_mode=compression,
        compression_algorithm=compression_algorithm,
        compression_ratio=compression_ratio,
    )
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(pools.change(fabric, cluster, wanted, wish)), output)


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
    if not facts:
        return record
    # Headers are small: what there is room for is data, and that may have a pool of its own.
    data = report.data or facts
    stored = facts.stored_bytes + (report.data.stored_bytes if report.data else 0)
    return record | {
        "replicas": facts.replicas,
        "erasure": report.wanted.get("erasure"),
        "data_pool": pool.data_pool,
        "device_class": report.wanted.get("device_class"),
        "failure_domain": report.wanted.get("failure_domain"),
        "pg_num": facts.pg_num,
        "autoscale": facts.autoscale,
        "compression": dict(facts.compression),
        "stored": rough_size(stored),
        "stored_bytes": stored,
        "available": rough_size(data.available_bytes),
        "available_bytes": data.available_bytes,
        "tier": f"cache of {facts.tier_of}"
        if facts.tier_of
        else f"cached by {facts.cache}"
        if facts.cache
        else None,
    }
