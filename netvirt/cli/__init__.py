"""`nvctl`: what operators type. An edge: it parses, calls a service, and prints."""

from netvirt.cli import agent, cni, db, doctor, host, network, pki, port
from tenancy import cli

app = cli.root("Tenant networks on Open vSwitch: networks, ports, hosts and their agents.")
app.add_typer(cli.tenant_app(), name="tenant")
app.add_typer(network.app, name="network")
app.add_typer(port.app, name="port")
app.add_typer(host.app, name="host")
app.add_typer(agent.app, name="agent")
app.add_typer(db.app, name="db")
app.add_typer(pki.app, name="pki")
app.add_typer(cni.app, name="cni")
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of `nvctl`."""
    cli.run(app)
