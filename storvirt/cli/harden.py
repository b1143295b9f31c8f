"""`svctl harden`."""

import typer

from storvirt.cli.common import fabric_and_ceph, say
from tenancy.cli import Format, Output, Yes, confirm, show


def harden(context: typer.Context, yes: Yes = False, output: Output = Format.TABLE) -> None:
    """Keep OSDs from copying other tenants' objects for whoever may write anywhere.

    With the caps that Ceph gives its OSDs, any key that can write can read everything.
    """
    from storvirt.backends import osdkeys

    confirm("Narrow the caps of the OSDs' keys to what replication and cache tiers need?", yes=yes)
    with fabric_and_ceph(context) as (_, cluster):
        narrowed = osdkeys.narrow(cluster)
    show({"narrowed": narrowed}, output)
    if narrowed:
        say("Restart the OSDs, one after another: until then they use the tickets that they have.")
