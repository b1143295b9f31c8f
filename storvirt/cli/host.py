"""`svctl host`: what a host that is lost may still do to disks."""

from typing import Annotated, Any

import typer

from storvirt.cli.common import fabric_and_ceph, say
from storvirt.cli.progress import progress_bar
from tenancy.cli import Format, Output, Yes, confirm, show
from tenancy.errors import Refused

app = typer.Typer(help="Hosts as clients of Ceph.", no_args_is_help=True)

Addresses = Annotated[
    list[str] | None,
    typer.Option(
        "--address",
        help="Its address towards Ceph; may be given more than once.",
        show_default="its OSDs' and its tunnel endpoint",
    ),
]


@app.command("fence")
def fence(
    context: typer.Context,
    host: str,
    address: Addresses = None,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Cut a host that is lost off from Ceph, and free the disks of its guests for other hosts."""
    from storvirt.service import lost_hosts

    confirm(f"Cut off every client of Ceph on host {host}?", yes=yes)
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar("looking at images") as progress,
    ):
        fenced = lost_hosts.fence(fabric, cluster, host, address or (), progress=progress)
    records: list[dict[str, Any]] = [
        {
            "tenant": one.tenant,
            "image": one.image,
            "clients": list(one.clients),
            "state": "free" if one.error is None else " ".join(str(one.error).split()),
        }
        for one in fenced.images
    ]
    if output is Format.TABLE:
        show(records, output, ["tenant", "image", "clients", "state"])
    else:
        show({"host": host, "addresses": list(fenced.addresses), "images": records}, output)
    failed = [one for one in fenced.images if one.error is not None]
    say(
        f"host {host} ({', '.join(fenced.addresses)}) can't write any more; "
        f"{len(fenced.images) - len(failed)} images of its guests are free."
    )
    if failed:
        raise Refused(
            f"{len(failed)} images are not free yet, see above. Run the same command again."
        )


@app.command("unfence")
def unfence(
    context: typer.Context,
    host: str,
    address: Addresses = None,
    yes: Yes = False,
) -> None:
    """Let a host use Ceph again. Only once it has been started anew."""
    from storvirt.service import lost_hosts

    confirm(f"Has host {host} been started anew, so that no old guest runs there?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        freed = lost_hosts.unfence(fabric, cluster, host, address or ())
    say(
        f"host {host} may use Ceph again ({', '.join(freed)})."
        if freed
        else f"host {host} was not fenced."
    )
