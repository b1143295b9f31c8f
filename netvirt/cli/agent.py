"""`nvctl agent`: the node agent of this host, and what its switch counts."""

import os
import signal
from importlib.metadata import version
from typing import Annotated

import typer

from netvirt import admit
from netvirt.pipeline.tables import ALL_TABLES, EXPLANATION, Reason
from tenancy.cli import Format, Output, session, show
from tenancy.errors import InvalidRequest

app = typer.Typer(help="The node agent of this host.", no_args_is_help=True)

BridgeName = Annotated[str, typer.Option(help="The integration bridge.")]


@app.command()
def run(
    context: typer.Context,
    tunnel_ip: Annotated[
        str | None, typer.Option(help="Where this host's tunnels end; else virtkit.toml's.")
    ] = None,
    datapath: Annotated[
        str | None,
        typer.Option(help="`system` or `netdev`; else what the kernel can.", show_default=False),
    ] = None,
) -> None:
    """Run the agent in the foreground until SIGTERM. Stopping it leaves traffic as it is."""
    from netvirt.agent.agent import Agent, AgentConfig
    from netvirt.backends.datapath import KERNEL, USERSPACE, datapath_type

    settings = session(context).settings
    text = tunnel_ip or settings.host.tunnel_ip
    if text is None:
        raise InvalidRequest(
            f"host {settings.host.name}: where do its tunnels end? Give --tunnel-ip, or "
            "tunnel_ip under [host] in virtkit.toml."
        )
    if datapath not in (None, KERNEL, USERSPACE):
        raise InvalidRequest(f"datapath {datapath!r} is none. Choose {KERNEL} or {USERSPACE}.")
    session(context).use_certificates()
    endpoint = admit.parse_endpoint(f"host {settings.host.name}: tunnel IP", text)
    config = AgentConfig(
        db=settings.db,
        host_name=settings.host.name,
        tunnel_ip=endpoint,
        datapath_type=datapath or datapath_type(),
        crush_host=settings.host.crush_host,
        version=version("virtkit"),
    )
    asked_to_stop: list[int] = []
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: asked_to_stop.append(received))
    Agent(config).run(lambda: bool(asked_to_stop), wake_read)


@app.command()
def drops(bridge: BridgeName = "br-int", output: Output = Format.TABLE) -> None:
    """Show how many packets this host dropped, and why."""
    from netvirt.backends.openflow import dump_flows
    from netvirt.service.counters import drops_by_reason

    counted = drops_by_reason(dump_flows(bridge))
    show(
        [
            {"reason": reason.label, "packets": counted[reason], "meaning": EXPLANATION[reason]}
            for reason in Reason
        ],
        output,
    )


@app.command()
def tables(bridge: BridgeName = "br-int", output: Output = Format.TABLE) -> None:
    """Show the pipeline's tables: their flows, and the packets that passed them."""
    from netvirt.backends.openflow import dump_flows

    flows = dump_flows(bridge)
    show(
        [
            {
                "table": table.id,
                "name": table.name,
                "flows": sum(flow.table == table.id for flow in flows),
                "packets": sum(flow.packets for flow in flows if flow.table == table.id),
                "purpose": table.purpose,
            }
            for table in ALL_TABLES
        ],
        output,
    )
