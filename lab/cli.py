"""`virtlab`: labs from the command line."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from lab import state
from lab.host import Host
from lab.lab import Lab
from tenancy.cli import Format, Output, show
from tenancy.errors import Refused, VirtkitError

app = typer.Typer(
    name="virtlab",
    help="Real hosts on one machine: each with Open vSwitch, and Ceph if asked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Option("--name", envvar="VIRTKIT_LAB", help="Which lab.")]
HostName = Annotated[str, typer.Argument(help="h1, h2, ... or ctl.")]
DaemonName = Annotated[str, typer.Argument(help="One of those that `virtlab status` shows.")]


def main() -> None:
    """Run the command; VirtkitErrors become one sentence and an exit code."""
    try:
        app()
    except VirtkitError as error:
        print(f"virtlab: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


@app.callback()
def _needs_root() -> None:
    if os.geteuid() != 0:
        raise Refused("namespaces and mounts need root. Run it as root.")


@app.command()
def up(
    name: Name = state.DEFAULT_NAME,
    hosts: Annotated[int, typer.Option(help="How many, not counting ctl.")] = 3,
    ceph: Annotated[bool, typer.Option("--ceph", help="A Ceph cluster, one OSD a host.")] = False,
    agents: Annotated[bool, typer.Option("--agents/--no-agents", help="Node agents.")] = True,
    underlay_mtu: Annotated[int, typer.Option(help="Bytes.")] = 1500,
    latency_us: Annotated[int, typer.Option(help="From one host to another, one way.")] = 0,
    tls: Annotated[
        bool, typer.Option("--tls", help="Hosts come in to the database with certificates.")
    ] = False,
    db_members: Annotated[
        int, typer.Option(help="Hosts that have the fabric database together; 1: ctl has it.")
    ] = 1,
) -> None:
    """Make a lab, or start again what has ended in it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # undo, as for Ctrl-C
    try:
        lab = Lab.up(
            name,
            hosts=hosts,
            ceph=ceph,
            agents=agents,
            underlay_mtu=underlay_mtu,
            latency_us=latency_us,
            tls=tls,
            db_members=db_members,
            report=_talk,
        )
    except KeyboardInterrupt:
        raise Refused(f"lab {name}: interrupted; what had been made is removed.") from None
    _talk(f"lab {lab.name} is up. Next: virtlab exec --name {lab.name} h1 -- ovs-vsctl show")


@app.command(context_settings={"ignore_unknown_options": True})
def exec(
    host: HostName,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...")],
    name: Name = state.DEFAULT_NAME,
) -> None:
    """Run a command in a host; its exit code is this command's."""
    raise SystemExit(_run_attached(Lab.open(name).host(host), command))


@app.command()
def status(
    name: Annotated[
        str | None, typer.Option("--name", envvar="VIRTKIT_LAB", help="One lab, not all.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the labs, their hosts, and which daemons run. Exit code 1 if one does not."""
    rows = [row for lab in _labs(name) for row in _status_of(lab)]
    if output is Format.TABLE and not rows:
        _talk("no lab is up")
    else:
        show(rows, output)
    if any(row["state"] != "running" for row in rows):
        raise SystemExit(1)


@app.command()
def down(
    name: Name = state.DEFAULT_NAME,
    every: Annotated[bool, typer.Option("--all", help="All labs of this machine.")] = False,
) -> None:
    """Remove a lab, complete or not, with everything in it."""
    for lab in state.names() if every else (name,):
        _talk(f"lab {lab} is removed" if Lab.down(lab) else f"lab {lab} was not up")


@app.command()
def start(host: HostName, daemon: DaemonName, name: Name = state.DEFAULT_NAME) -> None:
    """Start a daemon of a host again, with the state it had."""
    Lab.open(name).host(host).start(daemon)


@app.command()
def stop(host: HostName, daemon: DaemonName, name: Name = state.DEFAULT_NAME) -> None:
    """End a daemon of a host in good order (SIGTERM)."""
    _end(daemon, Lab.open(name).host(host).stop)


@app.command()
def kill(host: HostName, daemon: DaemonName, name: Name = state.DEFAULT_NAME) -> None:
    """End a daemon of a host as a crash would (SIGKILL)."""
    _end(daemon, Lab.open(name).host(host).kill)


def _end(daemon: str, end: Callable[[str], bool]) -> None:
    if not end(daemon):
        _talk(f"{daemon} was not running")


def _talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _run_attached(host: Host, command: list[str]) -> int:
    """Run a command on this terminal and return its exit code, 128+N if signal N ended it."""
    process: subprocess.Popen[Any] | None = None
    early: list[int] = []

    def pass_on(number: int, _: object) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    # The terminal itself sends SIGINT and SIGQUIT to the command also. Functions, not SIG_IGN,
    # because that the command would inherit.
    for expected in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(expected, lambda *_: None)
    for passed_on in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(passed_on, pass_on)
    try:
        process = host.popen(command, cwd=_directory())
    except FileNotFoundError:
        _talk(f"virtlab: {host.name}: {command[0]} is not installed.")
        return 127
    except PermissionError:
        _talk(f"virtlab: {host.name}: {command[0]} can't be executed.")
        return 126
    for number in early:
        process.send_signal(number)
    code: int = process.wait()
    return code if code >= 0 else 128 - code


def _directory() -> str:
    """Where the caller is, if a host has the same directory."""
    here = os.getcwd()  # noqa: PTH109
    return here if not here.startswith(("/run", "/etc", "/var", "/proc", "/sys")) else "/"


def _labs(name: str | None) -> list[str]:
    if name is None:
        return list(state.names())
    Lab.open(name)
    return [name]


def _status_of(name: str) -> list[dict[str, str]]:
    try:
        lab = Lab.open(name)
    except VirtkitError:
        return [{"lab": name, "host": "", "address": "", "daemon": "", "state": "incomplete"}]
    return [
        {
            "lab": name,
            "host": host.name,
            "address": host.address,
            "daemon": daemon,
            "state": "running" if host.is_running(daemon) else "ended",
        }
        for host in (lab.ctl, *lab.hosts)
        for daemon in host.daemons
    ]
