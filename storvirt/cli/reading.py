"""`svctl image read-policy`."""

from dataclasses import asdict
from typing import Annotated

import typer

from storvirt.cli.common import TenantOption, fabric_and_ceph, say
from storvirt.model import image_name
from storvirt.placement.reading import ReadPolicy
from tenancy.cli import Format, Output, show


def read_policy(
    context: typer.Context,
    name: str,
    policy: Annotated[ReadPolicy, typer.Argument(help="Who answers reads.")],
    tenant: TenantOption,
    output: Output = Format.TABLE,
) -> None:
    """Say which OSDs answer an image's reads: the primary, any, or the nearest one."""
    from storvirt.service import reading

    wanted = image_name(name)
    with fabric_and_ceph(context) as (fabric, cluster):
        report = reading.set_policy(fabric, cluster, tenant, wanted, policy)
    show(asdict(report), output)
    if policy is ReadPolicy.PRIMARY:
        return
    say("It counts from the next time the image is opened.")
    if policy is ReadPolicy.LOCALIZE:
        say("The client must know where it is: svctl image attach --host HOST.")
    others = [parent for parent, found in report.parents.items() if found is not policy]
    if others:
        say(f"What is still read from {', '.join(others)} goes by that image's own policy.")
