"""`svctl image map`, `unmap` and `mapped`: images as block devices of this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph
from storvirt.mapping import Method
from storvirt.model import image_name
from tenancy.cli import Format, Output, session, show


def map_(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    method: Annotated[
        Method | None, typer.Option(help="How.", show_default="the fastest that there is")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Nobody can write.")] = False,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="What an encrypted image opens with.", show_default=False),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make an image a block device of this machine, and print which."""
    from storvirt.service import mapping

    wanted = image_name(name)
    with fabric_and_ceph(context) as (fabric, cluster):
        made = mapping.map_image(
            fabric,
            cluster,
            tenant,
            wanted,
            method=method,
            read_only=read_only,
            passphrase_file=passphrase_file,
        )
    show(asdict(made), output)


def unmap(context: typer.Context, name: str, tenant: TenantOption) -> None:
    """Take an image's device away, with all that was written to it in the image."""
    from storvirt.service import mapping

    wanted = image_name(name)
    with session(context).fabric() as fabric:
        mapping.unmap(fabric, tenant, wanted)


def mapped(output: Output = Format.TABLE) -> None:
    """List the images that are block devices of this machine."""
    from storvirt.service import mapping

    show(
        [asdict(one) for one in mapping.mapped()],
        output,
        ["tenant", "name", "method", "device", "read_only"],
    )
