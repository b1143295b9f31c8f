"""The options that several verbs of `nvctl db` take."""

from pathlib import Path
from typing import Annotated

import typer

# Who may not read it may still ask for its status.
Database = Annotated[Path, typer.Option(help="Its file.", readable=False)]
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
