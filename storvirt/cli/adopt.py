"""`svctl image adopt`."""

import typer

from storvirt.cli.common import PoolOption, TenantOption, fabric_and_ceph
from storvirt.model import image_name, pool_name
from tenancy.cli import Format, Output, show
from tenancy.names import format_size


def adopt(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    pool: PoolOption = None,
    output: Output = Format.TABLE,
) -> None:
    """Take over an image that was made in the tenant's namespace with stock tools."""
    from storvirt.service import adopting

    wanted, where = image_name(name), pool and pool_name(pool)
    with fabric_and_ceph(context) as (fabric, cluster):
        image = adopting.adopt(fabric, cluster, tenant, wanted, pool=where or None)
    show(
        {
            "tenant": image.tenant,
            "name": image.name,
            "size": format_size(image.size_bytes),
            "size_bytes": image.size_bytes,
            "pool": image.pool,
            "state": str(image.state),
            "encryption": image.encryption,
        },
        output,
    )
