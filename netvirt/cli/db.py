"""`nvctl db`: the fabric database as one server on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from tenancy.backends import embedded
from tenancy.cli import Format, Output, session, show

app = typer.Typer(help="The fabric database.", no_args_is_help=True)

Database = Annotated[Path, typer.Option(help="Its file.")]
RunDir = Annotated[Path, typer.Option(help="Where its socket and pid file are.")]
Listen = Annotated[
    list[str] | None,
    typer.Option(
        help="Also listen for hosts, such as on pssl:6640:10.0.0.1, or ptcp: without TLS; "
        "repeatable."
    ),
]
Certificates = Annotated[
    Path, typer.Option(help="For pssl: the directory of this server's certificates for hosts.")
]


@app.command()
def start(
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    listen: Listen = None,
    certificates: Certificates = embedded.DEFAULT_CERTIFICATES,
) -> None:
    """Serve the database, making it if there is none. Does nothing if it is served already."""
    started = embedded.start(
        database, run_dir=run_dir, listen=listen or (), certificates=certificates
    )
    print(started)


@app.command()
def run(
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    listen: Listen = None,
    certificates: Certificates = embedded.DEFAULT_CERTIFICATES,
) -> None:
    """Serve it in the foreground, making it if there is none: for containers and supervisors."""
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
def status(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Show whether it answers, and how much is in it."""
    tables = ["Tenant", "Network", "Port", "Binding", "Host", "Image"]
    with session(context).fabric() as fabric:
        rows = fabric.select_many([(table, {}) for table in tables])
        top = fabric.top()
        counts = {
            table.lower() + "s": len(found) for table, found in zip(tables, rows, strict=True)
        }
        show({"remote": fabric.remote, "cfg": top["cfg"], **counts}, output)
