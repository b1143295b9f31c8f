"""`nvctl port`: ports in the fabric, and plugging them in on this host."""

from typing import Annotated, Any
from uuid import UUID

import typer

from netvirt.cli.options import WAIT_DEFAULT, MaybeTenant, Wait, WaitTimeout
from netvirt.model import PortKind
from netvirt.service import plug as plugging
from netvirt.service import ports
from netvirt.service.ports import PortRequest, PortState
from tenancy.backends.fabric import Fabric
from tenancy.cli import Format, Labels, Output, Yes, confirm, parse_pairs, session, show
from tenancy.errors import InvalidRequest

app = typer.Typer(help="Ports: where containers and VMs meet a network.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The port's name, or its id.")]
Network = Annotated[
    str | None, typer.Option("--network", "-n", help="The network it is in; not with an id.")
]

OnlyHost = Annotated[
    str | None,
    typer.Option(help="The only host that may hold it.", show_default="any"),
]


@app.command()
def create(
    context: typer.Context,
    name: str,
    network: Network = None,
    tenant: MaybeTenant = None,
    kind: Annotated[PortKind, typer.Option(help="What will use it.")] = PortKind.CONTAINER,
    mac: Annotated[str | None, typer.Option(help="Else allocated.", show_default=False)] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(help="Address, one a family; what is not given is allocated."),
    ] = None,
    host: OnlyHost = None,
    label: Labels = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = WAIT_DEFAULT,
    output: Output = Format.TABLE,
) -> None:
    """Create a port, with a MAC and an address in each of the network's subnets."""
    owner, where = _required(name, tenant, network)
    request = PortRequest(
        name=name,
        kind=kind,
        mac=mac,
        addresses=ip or (),
        host=host,
        labels=parse_pairs("label", label),
    )
    with session(context).fabric() as fabric:
        wait_s = wait_timeout if wait else None
        show(record(ports.create(fabric, owner, where, request, wait_s=wait_s)), output)


@app.command("list")
def list_(
    context: typer.Context,
    network: Annotated[str | None, typer.Option("--network", "-n", help="Only its.")] = None,
    tenant: MaybeTenant = None,
    output: Output = Format.TABLE,
) -> None:
    """List ports."""
    with session(context).fabric() as fabric:
        found = [record(state) for state in ports.list_all(fabric, tenant, network)]
    show(found, output, ["tenant", "network", "name", "kind", "mac", "addresses", "host"])


@app.command()
def get(
    context: typer.Context,
    name: Name,
    network: Network = None,
    tenant: MaybeTenant = None,
    output: Output = Format.TABLE,
) -> None:
    """Show one port, and where it is."""
    with session(context).fabric() as fabric:
        show(record(_resolve(fabric, name, tenant, network)), output)


@app.command("set")
def set_(
    context: typer.Context,
    name: Name,
    network: Network = None,
    tenant: MaybeTenant = None,
    label: Labels = None,
    host: OnlyHost = None,
    any_host: Annotated[
        bool, typer.Option("--any-host", help="Any host may hold it that it is plugged in on.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Replace a port's labels, or say which host alone may hold it."""
    if label is None and host is None and not any_host:
        raise InvalidRequest(f"port {name}: nothing to set. Give --label, --host or --any-host.")
    if host is not None and any_host:
        raise InvalidRequest(f"port {name}: either --host {host} or --any-host, not both.")
    labels = None if label is None else parse_pairs("label", label)
    with session(context).fabric() as fabric:
        changed = found = _resolve(fabric, name, tenant, network)
        if host is not None or any_host:
            changed = ports.set_host(fabric, *_names(found), host)
        if labels is not None:
            changed = ports.set_labels(fabric, *_names(found), labels)
    show(record(changed), output)


@app.command()
def delete(
    context: typer.Context,
    name: Name,
    network: Network = None,
    tenant: MaybeTenant = None,
    force: Annotated[bool, typer.Option("--force", help="Also if a host has it.")] = False,
    wait: Wait = False,
    wait_timeout: WaitTimeout = WAIT_DEFAULT,
    yes: Yes = False,
) -> None:
    """Delete a port and give its addresses back."""
    with session(context).fabric() as fabric:
        found = _resolve(fabric, name, tenant, network)
        confirm(f"Delete port {found.port.name} of network {found.network.name}?", yes=yes)
        wait_s = wait_timeout if wait else None
        ports.delete(fabric, *_names(found), force=force, wait_s=wait_s)


@app.command()
def plug(
    context: typer.Context,
    name: Name,
    network: Network = None,
    tenant: MaybeTenant = None,
    netns: Annotated[
        str | None,
        typer.Option(help="Make a veth into this namespace: a name, a path or a process id."),
    ] = None,
    interface: Annotated[str, typer.Option(help="The veth's name in there.")] = "eth0",
    tap: Annotated[bool, typer.Option("--tap", help="Make a tap for a VM.")] = False,
    wait_timeout: WaitTimeout = WAIT_DEFAULT,
    output: Output = Format.TABLE,
) -> None:
    """Give a port its interface on this host, and return when traffic can pass."""
    if (netns is None) == (not tap):
        raise InvalidRequest(f"port {name}: plugged into what? Give either --netns or --tap.")
    settings = session(context).settings
    with session(context).fabric() as fabric:
        found = _resolve(fabric, name, tenant, network)
        if netns is not None:
            link = plugging.plug_netns(fabric, settings.host.name, found, netns, interface)
        else:
            link = plugging.plug_tap(fabric, settings.host.name, found)
        lagging = plugging.wait_until_bound(fabric, settings.host.name, found, wait_timeout)
        state = ports.get_by_id(fabric, found.port.id)
    show({**record(state), "link": link, "not_yet_on": sorted(lagging)}, output)


@app.command()
def unplug(
    context: typer.Context,
    name: Name,
    network: Network = None,
    tenant: MaybeTenant = None,
    wait_timeout: WaitTimeout = WAIT_DEFAULT,
) -> None:
    """Take a port's interface away from this host. The port and its address stay."""
    settings = session(context).settings
    with session(context).fabric() as fabric:
        found = _resolve(fabric, name, tenant, network)
        plugging.unplug(fabric, found)
        plugging.wait_until_released(fabric, settings.host.name, found, wait_timeout)


def record(state: PortState) -> dict[str, Any]:
    port = state.port
    return {
        "id": str(port.id),
        "tenant": state.tenant_name,
        "network": state.network.name,
        "name": port.name,
        "kind": str(port.kind),
        "mac": str(port.mac),
        "addresses": [str(address) for address in port.addresses],
        "mtu": state.network.mtu_bytes,
        "host": state.binding.host if state.binding else None,
        "only_host": port.host,
        "labels": dict(port.labels),
    }


def _resolve(fabric: Fabric, name: str, tenant: str | None, network: str | None) -> PortState:
    try:
        port_id = UUID(name)
    except ValueError:
        return ports.get(fabric, *_required(name, tenant, network), name)
    return ports.get_by_id(fabric, port_id)


def _required(name: str, tenant: str | None, network: str | None) -> tuple[str, str]:
    if tenant is None or network is None:
        raise InvalidRequest(
            f"port {name}: of which network? Give --tenant and --network, or the port's id."
        )
    return tenant, network


def _names(state: PortState) -> tuple[str, str, str]:
    return state.tenant_name, state.network.name, state.port.name
