"""`svctl golden`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli import deadline
from storvirt.cli.common import MaybeTenant, PoolOption, TenantOption, fabric_and_ceph, say
from storvirt.cli.progress import progress_bar
from storvirt.model import image_name, pool_name, snapshot_ref
from tenancy.cli import Format, Output, Yes, confirm, session, show
from tenancy.errors import InvalidRequest
from tenancy.names import rough_size

if TYPE_CHECKING:
    from storvirt.service.golden_catalog import Golden
    from storvirt.service.golden_serving import Report

app = typer.Typer(
    help="Images that each host keeps a copy of, for many clones.", no_args_is_help=True
)

_COLUMNS = ["tenant", "name", "snapshot", "data", "state", "source"]


@app.command("create")
def create(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    source: Annotated[
        str,
        typer.Option("--from", help="IMAGE@SNAPSHOT, or a file to import.", show_default=False),
    ],
    pool: PoolOption = None,
    output: Output = Format.TABLE,
) -> None:
    """Make a golden image. Interrupted, the same command goes on."""
    from storvirt.service import goldens

    wanted, where = image_name(name), pool and pool_name(pool)
    is_file = "/" in source or ("@" not in source) or Path(source).exists()
    if not is_file and where:
        raise InvalidRequest(
            f"{source} is a snapshot, and golden images stay in their pool. Leave out --pool."
        )
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar(f"making {name} golden") as progress,
    ):
        if is_file:
            made = goldens.create_from_file(
                fabric,
                cluster,
                tenant,
                wanted,
                Path(source),
                pool=where or None,
                progress=progress,
                say=say,
            )
        else:
            ref = snapshot_ref(source)
            made = goldens.create_from_snapshot(
                fabric, cluster, tenant, wanted, ref, progress=progress
            )
    show(_record(made), output)


@app.command("list")
def list_(
    context: typer.Context, tenant: MaybeTenant = None, output: Output = Format.TABLE
) -> None:
    """List the golden images."""
    from storvirt.service import goldens

    with session(context).fabric() as fabric:
        found = goldens.list_all(fabric, tenant)
    show([_record(one) for one in found], output, _COLUMNS)


@app.command("show")
def show_(
    context: typer.Context, name: str, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Show one golden image and its clones."""
    from storvirt.service import goldens

    wanted = image_name(name)
    with session(context).fabric() as fabric:
        found, clones = goldens.get(fabric, tenant, wanted)
    show(_record(found) | {"clones": clones}, output)


@app.command("delete")
def delete(context: typer.Context, name: str, tenant: TenantOption, yes: Yes = False) -> None:
    """Take a golden image back; with its image, if that was imported for it."""
    from storvirt.service import goldens

    wanted = image_name(name)
    confirm(f"Delete golden image {name} of tenant {tenant}?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        goldens.delete(fabric, cluster, tenant, wanted)


@app.command("serve")
def serve(
    context: typer.Context,
    tenant: TenantOption,
    owner: Annotated[
        str | None,
        typer.Option(help="User that may connect.", show_default="who runs this"),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write every request of guests there.", show_default=False),
    ] = None,
) -> None:
    """Serve the tenant's clones to this host's hypervisors, in the foreground, until ended.

    Started anew after it was killed, it fences what is left of the one before.
    """
    from storvirt.service import golden_serving

    settings = session(context).settings.golden
    with fabric_and_ceph(context) as (fabric, cluster):
        prepared = golden_serving.prepare(fabric, cluster, tenant)
    deadline.lift()
    golden_serving.serve(prepared, settings, owner, trace)


@app.command("status")
def status(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Show this host's cache and the servers that use it."""
    from storvirt.service import golden_serving

    settings = session(context).settings.golden
    used, servers = golden_serving.status(settings)
    document = {
        "directory": settings.directory,
        "limit": settings.limit,
        "used": rough_size(used),
        "used_bytes": used,
    }
    if output is Format.TABLE:
        show(document, output)
        show([_server(one) for one in servers], output, _SERVER_COLUMNS)
    else:
        show(document | {"servers": [_server(one) for one in servers]}, output)


_SERVER_COLUMNS = ["tenant", "state", "connections", "hit_ratio", "from_cluster", "from_cache"]


def _record(golden: "Golden") -> dict[str, Any]:
    return {
        "tenant": golden.tenant,
        "name": golden.name,
        "snapshot": None if golden.snapshot is None else str(golden.snapshot),
        "data": None if golden.data_bytes is None else rough_size(golden.data_bytes),
        "data_bytes": golden.data_bytes,
        "state": str(golden.state),
        "source": golden.source,
    }


def _server(report: "Report") -> dict[str, Any]:
    found = report.counters
    record: dict[str, Any] = {
        "tenant": report.tenant,
        "state": "running" if report.runs else "ended",
        "socket": report.socket,
    }
    if found is None:
        return record
    ratio = found.hit_ratio
    return record | {
        "process": found.process,
        "connections": found.connections if report.runs else 0,
        "disks": found.disks if report.runs else 0,
        "hit_ratio": None if ratio is None else round(ratio, 4),
        "from_cluster": rough_size(found.cluster_bytes),
        "from_cache": rough_size(found.golden_bytes),
        "reads": found.reads,
        "read_bytes": found.read_bytes,
        "golden_bytes": found.golden_bytes,
        "hits": found.hits,
        "misses": found.misses,
        "fetched_bytes": found.fetched_bytes,
        "passed_bytes": found.passed_bytes,
        "fallen_bytes": found.fallen_bytes,
        "corrupt_chunks": found.corrupt,
        "mismatched_chunks": found.mismatched,
        "evicted_chunks": found.evicted,
        "unpublished_chunks": found.unpublished,
        "written_bytes": found.written_bytes,
        "composed_objects": found.composed,
    }
