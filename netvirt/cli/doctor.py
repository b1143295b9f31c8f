"""`nvctl doctor`."""

from importlib.metadata import version

import typer

from netvirt import admit
from tenancy.cli import Format, Output, session
from tenancy.doctor_cli import DryRun, Json, tell


def doctor(
    context: typer.Context,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
    json: Json = False,
) -> None:
    """Find what differs from what it should be, in the fabric and on this host, and mend it.

    First with --dry-run. Ends with 0 if nothing is left to be done, with 1 otherwise.
    """
    from netvirt.agent import checkup
    from netvirt.agent.doctor import Place

    chosen = session(context)
    chosen.use_certificates()
    settings = chosen.settings
    name, ip = settings.host.name, settings.host.tunnel_ip
    endpoint = admit.parse_endpoint(f"host {name}: tunnel IP", ip) if ip else None
    place = Place(db=settings.db, host=name)
    report = checkup.run(place, version("virtkit"), endpoint, dry_run=dry_run)
    tell(report, output, json=json)
