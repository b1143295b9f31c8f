"""Options and helpers that the storage commands share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tenancy.backends.fabric import Fabric
from tenancy.cli import session

if TYPE_CHECKING:
    from storvirt.backends.cluster import Cluster

TenantOption = Annotated[
    str, typer.Option("--tenant", envvar="VIRTKIT_TENANT", help="Whose it is.", show_default=False)
]
MaybeTenant = Annotated[
    str | None,
    typer.Option(
        "--tenant", envvar="VIRTKIT_TENANT", help="Only this tenant's.", show_default=False
    ),
]
PoolOption = Annotated[
    str | None,
    typer.Option(
        "--pool", help="Pool; needed if the tenant has more than one.", show_default=False
    ),
]


@contextmanager
def fabric_and_ceph(context: typer.Context) -> Iterator[tuple[Fabric, "Cluster"]]:
    """Connections to the fabric database and to Ceph, for one command."""
    from storvirt.backends.cluster import Cluster

    chosen = session(context)
    with (
        chosen.fabric() as fabric,
        Cluster.connect(chosen.settings.ceph.conf, chosen.settings.ceph.user) as cluster,
    ):
        yield fabric, cluster


def say(sentence: str) -> None:
    """Talk to the user, beside the result."""
    print(sentence, file=sys.stderr, flush=True)
