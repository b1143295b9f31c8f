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
    typer.Option(help="Also listen for hosts, such as on ptcp:6640:10.0.0.1; repeatable."),
]


@app.command()
def start(
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    listen: Listen = None,
) -> None:
    """Serve the database, making it if there is none. Does nothing if it is served already."""
    print(embedded.start(database, run_dir=run_dir, listen=listen or ()))


@app.command()
def run(
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    listen: Listen = None,
) -> None:
    """Serve it in the foreground, making it if there is none: for containers and supervisors."""
    embedded.run(database, run_dir=run_dir, listen=listen or ())


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
