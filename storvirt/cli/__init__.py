"""The command `svctl`. One module for each noun; this one puts them together.

An edge like `tenancy.cli`: it parses, asks, shows progress and prints, and decides nothing. The
services are imported by the commands that run them, because loading librados takes longer than
all the rest of `svctl --help`.
"""

import os
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import msgspec
import typer

from storvirt.cli import (
    backup,
    deadline,
    doctor,
    golden,
    group,
    harden,
    heat,
    host,
    image,
    migrate,
    namespace,
    pin,
    place,
    pool,
    snapshot,
    status,
    tier,
    trash,
    usage,
)
from tenancy import settings
from tenancy.cli import DatabaseOption, Session, root, run, tenant_app

app = root("Tenant disks on Ceph: pools, namespaces, images, tiers, placement.")


@app.callback()
def _options(
    context: typer.Context,
    db: DatabaseOption = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds in which nothing gets on before the command gives up.",
            show_default="[ceph] timeout_s, or 120",
        ),
    ] = None,
) -> None:
    chosen = settings.load(db=db)
    timeout_s = deadline.checked(chosen.ceph.timeout_s if timeout is None else timeout)
    ceph = msgspec.structs.replace(chosen.ceph, timeout_s=timeout_s)
    context.obj = Session(
        msgspec.structs.replace(chosen, ceph=ceph),
        # Not before: somebody who is asked a question may take his time.
        before_connecting=lambda: deadline.watch(timeout_s),
    )


app.add_typer(tenant_app(), name="tenant")
app.add_typer(pool.app, name="pool")
app.add_typer(namespace.app, name="namespace")
app.add_typer(image.app, name="image")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(backup.app, name="backup")
app.add_typer(golden.app, name="golden")
app.add_typer(group.app, name="group")
app.add_typer(trash.app, name="trash")
app.add_typer(tier.app, name="tier")
app.add_typer(heat.app, name="heat")
app.add_typer(host.app, name="host")
app.command("migrate")(migrate.migrate)
app.command("place")(place.place)
app.command("pin")(pin.pin)
app.command("unpin")(pin.unpin)
app.command("usage")(usage.usage)
app.command("status")(status.status)
app.command("doctor")(doctor.doctor)
app.command("harden")(harden.harden)


def main() -> NoReturn:
    """Entry point of `svctl`."""
    try:
        run(app)
    except SystemExit as ended:
        # Not through the interpreter's end: librados' own, in there, may wait for a cluster that
        # does not answer, and threads, the deadline's among them, don't run any more.
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
