"""`svctl usage`."""

from collections import defaultdict
from typing import Any

import typer

from storvirt.cli.bulk import show_outcome
from storvirt.cli.common import MaybeTenant, fabric_and_ceph
from storvirt.cli.progress import progress_bar
from tenancy.cli import Format, Output, show
from tenancy.names import rough_size


def usage(
    context: typer.Context, tenant: MaybeTenant = None, output: Output = Format.TABLE
) -> None:
    """Show what tenants' images really fill, beside what they are promised. See also: image du."""
    from storvirt.service import usage
    from tenancy import service as tenants
    from tenancy.model import Resource

    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar("measuring") as progress,
    ):
        owners = tenants.list_all(fabric) if tenant is None else [tenants.get(fabric, tenant)]
        found, outcome = usage.measure(fabric, cluster, tenant, progress=progress)
    used: dict[str, int] = defaultdict(int)
    snapshots: dict[str, int] = defaultdict(int)
    for one in found:
        used[one.tenant] += one.used_bytes
        snapshots[one.tenant] += one.snapshots_bytes
    records: list[dict[str, Any]] = [
        {
            "tenant": owner.name,
            "images": owner.quota[Resource.IMAGES].used,
            "provisioned": rough_size(owner.quota[Resource.BYTES].used),
            "used": rough_size(used[owner.name]),
            "snapshots": rough_size(snapshots[owner.name]),
            "provisioned_bytes": owner.quota[Resource.BYTES].used,
            "used_bytes": used[owner.name],
            "snapshots_bytes": snapshots[owner.name],
        }
        for owner in owners
    ]
    show(records, output, ["tenant", "images", "provisioned", "used", "snapshots"])
    if outcome.failed:
        show_outcome(outcome, "images", "measured", "", Format.TABLE)
