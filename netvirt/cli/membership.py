"""`nvctl host init`, `join` and `leave`: this machine as a host of the fabric."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from netvirt import admit
from tenancy.cli import Format, Output, Yes, confirm, session, show


def init(
    context: typer.Context,
    tunnel_ip: Annotated[
        str, typer.Option(help="Where its tunnels end: an IPv4 address of this machine.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="What the fabric calls it.", show_default="the machine's host name"),
    ] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(
            help="The directory that `nvctl pki issue host NAME` made, for a database at ssl:.",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Also if virtkit.toml says something else.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Prepare this machine: look at switch, uplink and database, then write who it is.

    Give --db, before `host`, where the fabric database is. Changes nothing if anything is wrong.
    """
    from netvirt.service import membership

    chosen = session(context).settings
    own_name = name or chosen.host.name
    wish = membership.Wish(
        name=own_name,
        tunnel_ip=admit.parse_endpoint(f"host {own_name}: tunnel IP", tunnel_ip),
        db=chosen.db,
        certificates=certificates,
    )
    written = membership.prepare(wish, replace=replace)
    show(
        [
            {"file": str(path), "state": "written" if new else "as it was"}
            for path, new in written.items()
        ],
        output,
        ["file", "state"],
    )


def join(
    context: typer.Context,
    wait: Annotated[
        float, typer.Option(min=1, max=3600, help="Seconds to wait for the agent at most.")
    ] = 60,
    output: Output = Format.TABLE,
) -> None:
    """Start this machine's agent and wait until the fabric has it as a host."""
    from netvirt.service import membership

    own = session(context).settings
    with session(context).fabric() as fabric:
        host = membership.enter(fabric, own, wait_s=wait, say=_say)
    show(
        {
            "name": host.name,
            "tunnel_ip": str(host.tunnel_ip),
            "underlay_mtu": host.underlay_mtu_bytes,
            "version": host.version or None,
        },
        output,
    )


def leave(
    context: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it holds ports: they lose their network.")
    ] = False,
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove virtkit.toml and the certificates too.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Take this machine out of the fabric: agent, host, bridge and tunnels."""
    from netvirt.service import membership

    own = session(context).settings
    with session(context).fabric() as fabric:
        confirm(f"Take host {own.host.name} out of the fabric?", yes=yes)
        membership.leave(fabric, own, force=force, purge=purge, say=_say)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
