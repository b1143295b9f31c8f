"""`nvctl db`: the fabric database, as one server on this machine or one member of several."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from netvirt.cli import db_cluster
from netvirt.cli.db_options import Certificates, Database, Listen, RunDir
from tenancy import clustering
from tenancy.backends import embedded, member
from tenancy.cli import Format, Output, session, show
from tenancy.errors import BackendUnavailable
from tenancy.names import rough_size

app = typer.Typer(help="The fabric database.", no_args_is_help=True)


@app.command()
def start(
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    listen: Listen = None,
    certificates: Certificates = embedded.DEFAULT_CERTIFICATES,
) -> None:
    """Serve the database, making it if there is none. Does nothing if it is served already."""
    place = clustering.Place(
        database=database, run_dir=run_dir, listen=listen or (), certificates=certificates
    )
    remote, in_touch = clustering.start(place)
    print(remote)
    if not in_touch:
        print(
            "This member is not in touch with a majority of its cluster yet. Start the others; "
            "see `nvctl db status`.",
            file=sys.stderr,
        )


@app.command()
def run(
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    listen: Listen = None,
    certificates: Certificates = embedded.DEFAULT_CERTIFICATES,
) -> None:
    """Serve it in the foreground, making it if there is none: for containers and supervisors."""
    if embedded.is_clustered(database):
        member.settle_beside(run_dir, doors=embedded.doors_of(listen or ()))
    embedded.run(database, run_dir=run_dir, listen=listen or (), certificates=certificates)


@app.command()
def relay(
    context: typer.Context,
    listen: Annotated[
        list[str],
        typer.Option(help="Where, such as pssl:6641:10.0.0.1; repeatable.", show_default=False),
    ],
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    certificates: Annotated[
        Path | None,
        typer.Option(
            help="For pssl: the directory of the certificates to show.", show_default=False
        ),
    ] = None,
) -> None:
    """Serve what the database at --db has, in the foreground.

    Beside the database, from its unix socket and with certificates for operators, it is the door
    by which operators come in from elsewhere, with all rights.
    """
    chosen = session(context).settings
    secured = any(door.startswith("pssl:") for door in listen)
    embedded.relay(
        chosen.db,
        run_dir=run_dir,
        listen=listen,
        certificates=(certificates or embedded.OPERATORS_CERTIFICATES) if secured else None,
    )


@app.command()
def stop(run_dir: RunDir = embedded.DEFAULT_RUN_DIR) -> None:
    """Stop serving it. Traffic goes on; changes have to wait."""
    embedded.stop(run_dir)


@app.command()
def status(
    context: typer.Context,
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    output: Output = Format.TABLE,
) -> None:
    """Show whether it answers, how much is in it, and its members if it is a cluster's.

    What only a member on this machine can tell (term, log, size on disk) is shown there. Exit
    code 1 if there is no quorum.
    """
    chosen = session(context)
    chosen.use_certificates()
    remote = chosen.settings.db
    record = clustering.status(remote, database, run_dir)
    found = {"remote": remote, **record}
    if record["quorum"]:
        tables = ["Tenant", "Network", "Port", "Binding", "Host", "Image"]
        with chosen.fabric() as fabric:
            rows = fabric.select_many([(table, {}) for table in tables])
            top = fabric.top()
            found |= {"cfg": top["cfg"], "schema": fabric.schema_version()}
        found |= {table.lower() + "s": len(some) for table, some in zip(tables, rows, strict=True)}
    members = found.get("members")
    if output is Format.TABLE:
        shown = {key: value for key, value in found.items() if key != "members"}
        here = shown.pop("here", None) or {}
        shown |= {key.removesuffix("_bytes"): value for key, value in here.items()}
        if here.get("disk_bytes") is not None:
            shown["disk"] = rough_size(here["disk_bytes"])
        if not shown["silent"]:
            del shown["silent"]
        show(shown, output)
        if members:
            print()
            columns = ["name", "address", "role", "connected", "index", "behind", "silent_ms"]
            show(members, output, columns)
    else:
        show(found, output)
    if not record["quorum"]:
        raise BackendUnavailable(
            f"fabric database {remote} has no quorum: no member that answers here is in touch "
            "with a majority of its cluster, so nothing can be changed. Bring back the missing "
            "members or the way to them."
        )


db_cluster.mount(app)
