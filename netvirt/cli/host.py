"""`nvctl host`."""

import time
from typing import Annotated, Any

import typer

from netvirt import admit
from netvirt.cli import membership
from netvirt.model import Host
from netvirt.service import hosts
from tenancy.cli import Format, Labels, Output, Yes, confirm, parse_pairs, session, show
from tenancy.errors import InvalidRequest

app = typer.Typer(help="Machines with an agent.", no_args_is_help=True)


@app.command()
def create(
    context: typer.Context,
    name: str,
    tunnel_ip: Annotated[str | None, typer.Option(help="Where its tunnels end.")] = None,
    label: Labels = None,
    output: Output = Format.TABLE,
) -> None:
    """Enter a host before its agent first runs; agents enter themselves otherwise."""
    endpoint = admit.parse_endpoint(f"host {name}: tunnel IP", tunnel_ip) if tunnel_ip else None
    labels = parse_pairs("label", label)
    with session(context).fabric() as fabric:
        made = hosts.create(fabric, name, tunnel_ip=endpoint, labels=labels)
        show(_record(made, hosts.bound_ports(fabric)), output)


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List hosts."""
    with session(context).fabric() as fabric:
        ports = hosts.bound_ports(fabric)
        found = [_record(host, ports) for host in hosts.list_all(fabric)]
    show(found, output, ["name", "tunnel_ip", "underlay_mtu", "ports", "alive", "cfg"])


@app.command()
def get(context: typer.Context, name: str, output: Output = Format.TABLE) -> None:
    """Show one host."""
    with session(context).fabric() as fabric:
        show(_record(hosts.get(fabric, name), hosts.bound_ports(fabric)), output)


@app.command("set")
def set_(
    context: typer.Context, name: str, label: Labels = None, output: Output = Format.TABLE
) -> None:
    """Replace a host's labels."""
    if label is None:
        raise InvalidRequest(f"host {name}: nothing to set. Give --label.")
    with session(context).fabric() as fabric:
        changed = hosts.set_labels(fabric, name, parse_pairs("label", label))
        show(_record(changed, hosts.bound_ports(fabric)), output)


@app.command()
def delete(
    context: typer.Context,
    name: str,
    force: Annotated[
        bool, typer.Option("--force", help="Also if it reports, or holds ports.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Forget a host. Its ports stay, unbound."""
    with session(context).fabric() as fabric:
        hosts.find(fabric, name)
        confirm(f"Forget host {name}?", yes=yes)
        hosts.delete(fabric, name, now_s=int(time.time()), force=force)


app.command("init")(membership.init)
app.command("join")(membership.join)
app.command("leave")(membership.leave)


def _record(host: Host, ports: dict[str, int]) -> dict[str, Any]:
    now_s = int(time.time())
    return {
        "name": host.name,
        "tunnel_ip": str(host.tunnel_ip) if host.tunnel_ip else None,
        "overlays": sorted(map(str, host.overlays)),
        "underlay_mtu": host.underlay_mtu_bytes,
        "ports": ports.get(host.name, 0),
        "alive": hosts.is_alive(host, now_s),
        "heartbeat_age_s": now_s - host.heartbeat_s if host.heartbeat_s else None,
        "cfg": host.cfg,
        "problems": sorted(host.problems),
        "version": host.version or None,
        "crush_host": host.crush_host,
        "labels": dict(host.labels),
    }
