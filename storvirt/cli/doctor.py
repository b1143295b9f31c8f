"""`svctl doctor`."""

from functools import partial

import typer

from storvirt.cli import deadline
from tenancy.cli import Format, Output, session
from tenancy.doctor_cli import DryRun, Json, tell

# A question that is not answered by then is a finding; a command that does something waits longer.
MONITOR_S, OSD_S = 6, 10


def doctor(
    context: typer.Context,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
    json: Json = False,
) -> None:
    """Find what differs between the fabric database and Ceph, and mend it.

    First with --dry-run. Ends with 0 if nothing is left to be done, with 1 otherwise.
    """
    from storvirt.service import doctor as service

    chosen = session(context)
    chosen.before_connecting()
    chosen.use_certificates()
    ceph = chosen.settings.ceph
    connect = partial(
        service.connected,
        ceph.conf,
        ceph.user,
        deadline.bounded(MONITOR_S, ceph.timeout_s),
        deadline.bounded(OSD_S, ceph.timeout_s),
    )
    tell(service.run(chosen.settings.db, connect, dry_run=dry_run), output, json=json)
