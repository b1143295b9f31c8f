"""`nvctl pki`: certificates for hosts, operators and the servers of the fabric database."""

from pathlib import Path
from typing import Annotated

import typer

from tenancy.cli import Format, Output, show
from tenancy.pki import DEFAULT_DAYS, Kind, checked_days, checked_name

app = typer.Typer(
    help="Certificates: who may come in to the fabric database.", no_args_is_help=True
)

Directory = Annotated[
    Path, typer.Option(help="Where the authorities are, with their keys: for operators alone.")
]
DEFAULT = Path("/etc/virtkit/pki")


@app.command()
def init(directory: Directory = DEFAULT) -> None:
    """Make the two authorities, for hosts and for operators. Those that are there stay."""
    from tenancy.backends import pki

    made = pki.init(directory)
    print(f"{directory}: {'authorities made' if made else 'authorities are there already'}")


@app.command()
def issue(
    kind: Annotated[Kind, typer.Argument(help="What it is for.")],
    name: Annotated[str, typer.Argument(help="A host's name in virtkit.toml, for a host.")],
    directory: Directory = DEFAULT,
    days: Annotated[int, typer.Option(help="How long it is good.")] = DEFAULT_DAYS,
    renew: Annotated[bool, typer.Option("--renew", help="A new key, whatever is there.")] = False,
) -> None:
    """Issue a certificate, and print the directory that is to become /etc/virtkit/tls there.

    One that is good for two more months is not issued again.
    """
    from tenancy.backends import pki

    place = pki.issue(
        directory, kind, checked_name(kind, name), days=checked_days(days), renew=renew
    )
    print(place)


@app.command("list")
def list_(directory: Directory = DEFAULT, output: Output = Format.TABLE) -> None:
    """List what was issued, and how long it is good."""
    from tenancy.backends import pki

    found = [
        {
            "kind": str(one.kind),
            "name": one.name,
            "authority": str(one.authority),
            "good_until": one.not_after.date().isoformat(),
            "serial": one.serial,
            "directory": one.directory,
        }
        for one in pki.issued(directory)
    ]
    show(found, output, ["kind", "name", "authority", "good_until", "directory"])
