"""The command `svctl`. One module for each noun; this one puts them together.

An edge like `tenancy.cli`: it parses, asks, shows progress and prints, and decides nothing. The
services are imported by the commands that run them, because loading librados takes longer than
all the rest of `svctl --help`.
"""

from typing import NoReturn

from storvirt.cli import heat, image, namespace, pin, place, pool, snapshot, status, tier
from tenancy.cli import root, run, tenant_app

app = root("Tenant disks on Ceph: pools, namespaces, images, tiers, placement.")
app.add_typer(tenant_app(), name="tenant")
app.add_typer(pool.app, name="pool")
app.add_typer(namespace.app, name="namespace")
app.add_typer(image.app, name="image")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(tier.app, name="tier")
app.add_typer(heat.app, name="heat")
app.command("place")(place.place)
app.command("pin")(pin.pin)
app.command("unpin")(pin.unpin)
app.command("status")(status.status)


def main() -> NoReturn:
    """Entry point of `svctl`."""
    run(app)
