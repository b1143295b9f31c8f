"""`svctl heat`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph, say
from storvirt.model import image_name, snapshot_ref
from tenancy.cli import Format, Output, show
from tenancy.errors import InvalidRequest
from tenancy.names import parse_size, rough_size

if TYPE_CHECKING:
    from storvirt.service.heating import HeatReport

app = typer.Typer(help="What an image's boot reads.", no_args_is_help=True)

_MIB = 1 << 20
_HOTTEST = 10
_SAID_EVERY = 1000


@app.command("record")
def record(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="IMAGE, or IMAGE@SNAPSHOT.")],
    tenant: TenantOption,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Import this trace, do not boot.", show_default=False),
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option(help="Boot this kernel.", show_default="what is on the disk")
    ] = None,
    initrd: Annotated[Path | None, typer.Option(help="With it.", show_default=False)] = None,
    append: Annotated[str, typer.Option(help="Its command line.")] = "",
    memory: Annotated[str, typer.Option(help="Of the guest.")] = "512MiB",
    timeout: Annotated[float, typer.Option(min=1, max=3600, help="Seconds, at most.")] = 180,
    quiet: Annotated[
        float, typer.Option(min=0.5, max=600, help="Seconds without a read that end it.")
    ] = 10,
    output: Output = Format.TABLE,
) -> None:
    """Boot an image once, on a copy that leaves nothing, and keep what it reads."""
    from storvirt.backends.tracing import BootRequest
    from storvirt.service import heating

    ref = snapshot_ref(image) if "@" in image else None
    wanted = ref.image if ref else image_name(image)
    memory_mib = parse_size("memory", memory) // _MIB
    if not 16 <= memory_mib <= 65536:
        raise InvalidRequest(f"--memory {memory} is not a guest's. Choose 16MiB to 64GiB.")
    request = BootRequest(
        kernel=kernel and kernel.absolute(),
        initrd=initrd and initrd.absolute(),
        append=append,
        memory_mib=memory_mib,
        timeout_s=timeout,
        quiet_s=quiet,
    )
    with fabric_and_ceph(context, talks=source is None) as (fabric, cluster):
        if source is not None:
            if kernel or initrd or append or ref:
                raise InvalidRequest("a trace is of an image and boots nothing. Give it alone.")
            report = heating.import_trace(fabric, cluster, tenant, wanted, source)
        else:
            say(f"{image}: booting, {timeout:g} s at most")
            report = heating.record(
                fabric, cluster, tenant, wanted, ref.snapshot if ref else None, request, _progress
            )
    show(_record(report), output)


@app.command("show")
def show_(
    context: typer.Context, image: str, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Show the heat map that placement uses for an image: its own, or its golden image's."""
    from storvirt.service import heating

    wanted = image_name(image)
    with fabric_and_ceph(context) as (fabric, cluster):
        report = heating.show(fabric, cluster, tenant, wanted)
    show(_record(report), output)


@app.command("forget")
def forget(context: typer.Context, image: str, tenant: TenantOption) -> None:
    """Remove an image's heat map."""
    from storvirt.service import heating

    wanted = image_name(image)
    with fabric_and_ceph(context) as (fabric, cluster):
        had_one = heating.forget(fabric, cluster, tenant, wanted)
    say(f"image {image}: its heat map is removed." if had_one else f"image {image} had none.")


def _progress(reads: int) -> None:
    if reads % _SAID_EVERY == 0:
        say(f"{reads} reads")


def _record(report: "HeatReport") -> dict[str, Any]:
    heat = report.heat
    hottest = sorted(heat.parts, key=lambda number: -heat.parts[number].reads)[:_HOTTEST]
    return {
        "image": report.image,
        "recorded_on": report.recorded_on,
        "at": f"{datetime.fromtimestamp(heat.at, UTC):%Y-%m-%d %H:%M:%S}Z",
        "reads": heat.reads,
        "read": rough_size(heat.bytes),
        "read_bytes": heat.bytes,
        "part_bytes": heat.part_bytes,
        "first_object": f"{heat.first_share:.1%} of the reads",
        "first_share": round(heat.first_share, 4),
        "objects": len(heat.parts),
        "hottest": hottest,
        "parts": {n: part.reads for n, part in heat.parts.items()},
        "ended": str(report.ended) if report.ended else None,
    }
