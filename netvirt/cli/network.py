"""`nvctl network`."""

from typing import Annotated, Any

import typer

from netvirt.cli.options import WAIT_DEFAULT, MaybeTenant, Tenant, Wait, WaitTimeout
from netvirt.model import Network, Overlay
from netvirt.service import networks
from netvirt.service.networks import NetworkRequest
from tenancy.cli import Format, Labels, Output, Yes, confirm, parse_pairs, session, show
from tenancy.errors import InvalidRequest

app = typer.Typer(help="Tenant networks.", no_args_is_help=True)

Mtu = Annotated[
    int | None,
    typer.Option(help="Bytes; else what the hosts' underlay leaves.", show_default=False),
]
Dns = Annotated[list[str] | None, typer.Option(help="DNS server told to guests, repeatable.")]
HostAccess = Annotated[
    bool | None,
    typer.Option("--host-access/--no-host-access", help="Hosts reach ports, ports the outside."),
]
Dhcp = Annotated[bool | None, typer.Option("--dhcp/--no-dhcp", help="Answer DHCP.")]


@app.command()
def create(
    context: typer.Context,
    name: str,
    tenant: Tenant,
    cidr: Annotated[
        list[str],
        typer.Option(help="Addresses of the network: 10.1.0.0/24, fd00:1::/64, or one of either."),
    ],
    overlay: Annotated[Overlay, typer.Option(help="How hosts carry it.")] = Overlay.VXLAN,
    segment_id: Annotated[
        int | None, typer.Option(help="1 to 16777215; else allocated.", show_default=False)
    ] = None,
    mtu: Mtu = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(help="Reserved for the router, one a family; else the first address."),
    ] = None,
    pool: Annotated[
        list[str] | None, typer.Option(help="FIRST-LAST to allocate from, repeatable; else all.")
    ] = None,
    dns: Dns = None,
    dhcp: Annotated[bool, typer.Option("--dhcp/--no-dhcp", help="Answer DHCP.")] = True,
    host_access: HostAccess = False,
    label: Labels = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a network, of IPv4 or IPv6 or both."""
    request = NetworkRequest(
        name=name,
        cidrs=cidr,
        overlay=overlay,
        segment_id=segment_id,
        mtu=mtu,
        gateways=gateway or (),
        pools=pool or (),
        dns=dns or (),
        dhcp=dhcp,
        host_access=bool(host_access),
        labels=parse_pairs("label", label),
    )
    with session(context).fabric() as fabric:
        show(record(tenant, networks.create(fabric, tenant, request)), output)


@app.command("list")
def list_(
    context: typer.Context, tenant: MaybeTenant = None, output: Output = Format.TABLE
) -> None:
    """List networks."""
    with session(context).fabric() as fabric:
        found = [record(name, network) for name, network in networks.list_all(fabric, tenant)]
    show(found, output, ["tenant", "name", "overlay", "segment_id", "mtu", "cidr", "host_access"])


@app.command()
def get(context: typer.Context, name: str, tenant: Tenant, output: Output = Format.TABLE) -> None:
    """Show one network."""
    with session(context).fabric() as fabric:
        show(record(tenant, networks.get(fabric, tenant, name)), output)


@app.command("set")
def set_(
    context: typer.Context,
    name: str,
    tenant: Tenant,
    mtu: Mtu = None,
    dns: Dns = None,
    dhcp: Dhcp = None,
    host_access: HostAccess = None,
    label: Labels = None,
    wait: Wait = False,
    wait_timeout: WaitTimeout = WAIT_DEFAULT,
    output: Output = Format.TABLE,
) -> None:
    """Change a network's MTU, DNS servers, DHCP, host access or labels."""
    if mtu is None and dns is None and dhcp is None and host_access is None and label is None:
        raise InvalidRequest(
            f"network {name}: nothing to set. Give --mtu, --dns, --dhcp, --host-access or --label."
        )
    labels = None if label is None else parse_pairs("label", label)
    with session(context).fabric() as fabric:
        changed = networks.change(
            fabric,
            tenant,
            name,
            mtu=mtu,
            dns=dns,
            dhcp=dhcp,
            host_access=host_access,
            labels=labels,
            wait_s=wait_timeout if wait else None,
        )
    show(record(tenant, changed), output)


@app.command()
def delete(context: typer.Context, name: str, tenant: Tenant, yes: Yes = False) -> None:
    """Delete a network that has no ports any more."""
    with session(context).fabric() as fabric:
        networks.find(fabric, tenant, name)
        confirm(f"Delete network {name} of tenant {tenant}?", yes=yes)
        networks.delete(fabric, tenant, name)


def record(tenant: str, network: Network) -> dict[str, Any]:
    return {
        "id": str(network.id),
        "tenant": tenant,
        "name": network.name,
        "overlay": str(network.overlay),
        "segment_id": network.segment_id,
        "mtu": network.mtu_bytes,
        "cidr": [str(subnet.cidr) for subnet in network.subnets],
        "gateway": [str(subnet.gateway) for subnet in network.subnets],
        "pools": [str(pool) for subnet in network.subnets for pool in subnet.pools],
        "dns": [str(server) for subnet in network.subnets for server in subnet.dns],
        "dhcp": any(subnet.dhcp for subnet in network.subnets),
        "host_access": network.host_access,
        "labels": dict(network.labels),
    }
