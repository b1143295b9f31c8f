"""Options that several of nvctl's sub-commands take."""

from typing import Annotated

import typer

from netvirt.service.acknowledge import DEFAULT_WAIT_S

Tenant = Annotated[
    str,
    typer.Option("--tenant", "-t", envvar="VIRTKIT_TENANT", help="Whose it is."),
]
MaybeTenant = Annotated[
    str | None,
    typer.Option("--tenant", "-t", envvar="VIRTKIT_TENANT", help="Whose it is."),
]
Network = Annotated[str, typer.Option("--network", "-n", help="The network it is in.")]
Wait = Annotated[
    bool, typer.Option("--wait", help="Return when every host concerned has applied it.")
]
WaitTimeout = Annotated[
    float, typer.Option("--wait-timeout", min=0.1, max=3600, help="Seconds to wait at most.")
]
WAIT_DEFAULT = DEFAULT_WAIT_S
