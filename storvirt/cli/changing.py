"""`svctl image rename`, `flatten`, `set` and `du`: what is changed and measured of an image."""

from contextlib import nullcontext
from typing import Annotated, Any

import typer

from storvirt import qos
from storvirt.cli.bulk import show_outcome
from storvirt.cli.common import MaybeTenant, TenantOption, fabric_and_ceph
from storvirt.cli.progress import no_progress, progress_bar
from storvirt.model import image_name
from tenancy.cli import Format, Output, show
from tenancy.errors import InvalidRequest
from tenancy.names import parse_size, rough_size

Features = Annotated[
    list[str] | None,
    typer.Option("--feature", help="Switch on, repeatable.", show_default=False),
]
NoFeatures = Annotated[
    list[str] | None,
    typer.Option("--no-feature", help="Switch off, repeatable.", show_default=False),
]
Iops = Annotated[int | None, typer.Option(help="Operations per second; 0: no limit.")]
Bps = Annotated[str | None, typer.Option(help="Bytes per second, such as 50MiB; 0: no limit.")]


def rename(context: typer.Context, name: str, new_name: str, tenant: TenantOption) -> None:
    """Call an image otherwise. Refused while it is open."""
    from storvirt.service import renaming

    old, new = image_name(name), image_name(new_name)
    with fabric_and_ceph(context) as (fabric, cluster):
        renaming.rename(fabric, cluster, tenant, old, new)


def flatten(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", show_default=False)],
    tenant: TenantOption,
) -> None:
    """Give clones their own copy of everything, so that they need their parent no longer."""
    from storvirt.service import flattening

    wanted = [image_name(name) for name in names]
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar(f"flattening {names[0] if len(names) == 1 else f'{len(names)} images'}") as (
            progress
        ),
    ):
        if len(wanted) == 1:
            flattening.flatten(fabric, cluster, tenant, wanted[0], progress)
            return
        done = flattening.flatten_all(fabric, cluster, tenant, wanted, progress)
    show_outcome(done, "images", "flattened", "were flat", Format.TABLE)


def set_(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    iops_limit: Iops = None,
    bps_limit: Bps = None,
    read_iops_limit: Iops = None,
    read_bps_limit: Bps = None,
    write_iops_limit: Iops = None,
    write_bps_limit: Bps = None,
    iops_burst: Annotated[int | None, typer.Option(help="Short peaks above the limit.")] = None,
    bps_burst: Annotated[str | None, typer.Option(help="Short peaks above the limit.")] = None,
    feature: Features = None,
    no_feature: NoFeatures = None,
    output: Output = Format.TABLE,
) -> None:
    """Limit what an image may do per second, and switch its features."""
    from storvirt.service import images

    wanted = image_name(name)
    limits = {
        "iops": iops_limit,
        "bps": _bytes("bps-limit", bps_limit),
        "read-iops": read_iops_limit,
        "read-bps": _bytes("read-bps-limit", read_bps_limit),
        "write-iops": write_iops_limit,
        "write-bps": _bytes("write-bps-limit", write_bps_limit),
    }
    bursts = {"iops": iops_burst, "bps": _bytes("bps-burst", bps_burst)}
    settings = qos.settings(_given(limits), _given(bursts))
    if not (settings or feature or no_feature):
        raise InvalidRequest(f"image {name}: nothing to set. Give a limit or a feature.")
    with fabric_and_ceph(context) as (fabric, cluster):
        if feature or no_feature:
            images.switch(fabric, cluster, tenant, wanted, feature or [], no_feature or [])
        if settings:
            images.limit(fabric, cluster, tenant, wanted, settings)
        facts = images.get(fabric, cluster, tenant, wanted).facts
    if facts:
        show({"name": name, "features": list(facts.features), "limits": dict(facts.limits)}, output)


def du(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(show_default=False)] = None,
    tenant: MaybeTenant = None,
    output: Output = Format.TABLE,
) -> None:
    """Show what images really fill, one, a tenant's or all; with the sum below."""
    from storvirt.service import usage

    if name and not tenant:
        raise InvalidRequest("say whose image it is: --tenant.")
    wanted = image_name(name) if name else None
    with (
        fabric_and_ceph(context, talks=not name) as (fabric, cluster),
        nullcontext(no_progress) if name else progress_bar("measuring") as progress,
    ):
        found, outcome = usage.measure(fabric, cluster, tenant, wanted, progress)
    records = [
        _used(one.tenant, one.image, one.provisioned_bytes, one.used_bytes, one.snapshots_bytes)
        for one in found
    ]
    if not name:
        sums = [
            sum(one.provisioned_bytes for one in found),
            sum(one.used_bytes for one in found),
            sum(one.snapshots_bytes for one in found),
        ]
        records.append(_used(tenant or "", "(all)", *sums))
    show(records, output, ["tenant", "name", "provisioned", "used", "snapshots"])
    if outcome.failed:
        show_outcome(outcome, "images", "measured", "", Format.TABLE)


def _used(tenant: str, name: str, provisioned: int, used: int, snapshots: int) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "name": name,
        "provisioned": rough_size(provisioned),
        "used": rough_size(used),
        "snapshots": rough_size(snapshots),
        "provisioned_bytes": provisioned,
        "used_bytes": used,
        "snapshots_bytes": snapshots,
    }


def _bytes(option: str, text: str | None) -> int | None:
    return None if text is None else parse_size(f"--{option}", text)


def _given(values: dict[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}
