"""`svctl status`."""

import typer

from storvirt.cli.common import fabric_and_ceph
from tenancy.cli import Format, Output, show


def status(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Check the fabric database, Ceph, and that they agree."""
    from storvirt.service import health

    with fabric_and_ceph(context) as (fabric, cluster):
        show(health.check(fabric, cluster), output)
