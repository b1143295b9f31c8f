"""`nvctl db`: members of a cluster, and copies of what is in it."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from netvirt.cli.db_options import Certificates, Database, Listen, RunDir
from tenancy import clustering
from tenancy.backends import backup, cluster, embedded, tls
from tenancy.cli import Yes, confirm, session
from tenancy.names import rough_size

Name = Annotated[
    str | None,
    typer.Option(help="What this member is called; the host's name.", show_default=False),
]
Address = Annotated[
    str,
    typer.Option(
        help="Where this member speaks with the others, such as ssl:10.0.0.1:6643; its own port.",
        show_default=False,
    ),
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what is there.")]


def mount(app: typer.Typer) -> None:
    """Add these verbs."""
    for verb, name in (
        (init, "init"),
        (join, "join"),
        (leave, "leave"),
        (kick, "kick"),
        (save, "backup"),
        (restore, "restore"),
        (compact, "compact"),
    ):
        app.command(name)(verb)


def init(
    context: typer.Context,
    address: Address,
    name: Name = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Begin with what this file holds: a backup, or any database's, also a member's "
            "whose cluster is lost.",
            show_default=False,
        ),
    ] = None,
    election_timer: Annotated[
        int, typer.Option(help="Milliseconds without a leader until another is elected.")
    ] = cluster.DEFAULT_ELECTION_MS,
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    listen: Listen = None,
    certificates: Certificates = embedded.DEFAULT_CERTIFICATES,
) -> None:
    """Make the database here the first member of a cluster, and serve it.

    One that is there is converted with all its rows; the file it was stays beside it.
    """
    print(
        clustering.init(
            clustering.Place(
                database=database, run_dir=run_dir, listen=listen or (), certificates=certificates
            ),
            name=name or session(context).settings.host.name,
            address=address,
            source=source,
            election_ms=election_timer,
        )
    )


def join(
    context: typer.Context,
    others: Annotated[list[str], typer.Argument(metavar="MEMBER...", help="Addresses of members.")],
    address: Address,
    name: Name = None,
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    listen: Listen = None,
    certificates: Certificates = embedded.DEFAULT_CERTIFICATES,
) -> None:
    """Make this machine a member of the cluster that has these members, and serve it."""
    print(
        clustering.join(
            clustering.Place(
                database=database, run_dir=run_dir, listen=listen or (), certificates=certificates
            ),
            name=name or session(context).settings.host.name,
            address=address,
            others=others,
        )
    )


def leave(
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    yes: Yes = False,
) -> None:
    """Have this machine's member leave its cluster in good order, and stop it."""
    confirm("Leave the cluster? The others keep everything.", yes=yes)
    name = cluster.leave(database, run_dir)
    _talk(f"{name} has left; its file is {embedded.left_file(database)} now")


def kick(
    name: Annotated[str, typer.Argument(help="The member, as `nvctl db status` calls it.")],
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
    yes: Yes = False,
) -> None:
    """Have the others go on without a member that is dead for good. Run it on one of them."""
    confirm(f"Remove member {name}? It can't come back but by joining anew.", yes=yes)
    _talk(f"{cluster.kick(run_dir, name)} is no member any more")


def save(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to.")],
    replace: Replace = False,
) -> None:
    """Write all that is in the database to a file (mode 0600), from one state of it."""
    chosen = session(context)
    chosen.use_certificates()
    contents = backup.save(
        chosen.settings.db, file, tls_options=_client_options(context), replace=replace
    )
    rows = sum(contents.counts().values())
    _talk(f"{file}: {rows} rows of schema {contents.version}, {rough_size(file.stat().st_size)}")


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `nvctl db backup` wrote.")],
    replace: Replace = False,
) -> None:
    """Have the database hold what a backup holds: all of it and nothing else, at once."""
    chosen = session(context)
    contents = backup.read(file)
    chosen.use_certificates()
    backup.restore(chosen.settings.db, contents, replace=replace)
    _talk(f"{file}: {sum(contents.counts().values())} rows restored")


def compact(
    database: Database = embedded.DEFAULT_DATABASE,
    run_dir: RunDir = embedded.DEFAULT_RUN_DIR,
) -> None:
    """Have the server here rewrite its file without history."""
    before, after = cluster.compact(database, run_dir)
    _talk(f"{database}: {rough_size(before)} before, {rough_size(after)} now")


def _client_options(context: typer.Context) -> list[str]:
    chosen = session(context).settings
    if "ssl:" not in chosen.db:
        return []
    return tls.server_options(Path(chosen.tls.directory))


def _talk(text: str) -> None:
    print(text, file=sys.stderr)
