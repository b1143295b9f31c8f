"""Options and helpers that the storage commands share."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated

import typer

from storvirt.cli import deadline
from tenancy.backends.fabric import Fabric
from tenancy.cli import session

if TYPE_CHECKING:
    from storvirt.backends.cluster import Cluster

TenantOption = Annotated[
    str,
    typer.Option(
        "-t", "--tenant", envvar="VIRTKIT_TENANT", help="Whose it is.", show_default=False
    ),
]
MaybeTenant = Annotated[
    str | None,
    typer.Option(
        "-t", "--tenant", envvar="VIRTKIT_TENANT", help="Only this tenant's.", show_default=False
    ),
]
PoolOption = Annotated[
    str | None,
    typer.Option(
        "--pool", help="Pool; needed if the tenant has more than one.", show_default=False
    ),
]


# Ceph may be waited for longer than people watch a silent screen.
SILENCE_S = 10


@contextmanager
def fabric_and_ceph(
    context: typer.Context, *, talks: bool = False
) -> Iterator[tuple[Fabric, "Cluster"]]:
    """Connections to the fabric database and to Ceph, for one command.

    Unless the command `talks` about how far it is, it is said now and then that it waits.
    """
    from storvirt.backends.cluster import DEFAULT_TIMEOUT_S, OSD_TIMEOUT_S, Cluster

    chosen = session(context)
    ceph = chosen.settings.ceph
    with (
        chosen.fabric() as fabric,
        Cluster.connect(
            ceph.conf,
            ceph.user,
            timeout_s=deadline.bounded(DEFAULT_TIMEOUT_S, ceph.timeout_s),
            osd_timeout_s=deadline.bounded(OSD_TIMEOUT_S, ceph.timeout_s),
        ) as cluster,
        nullcontext() if talks else _reminders(),
    ):
        yield fabric, cluster


@contextmanager
def _reminders() -> Iterator[None]:
    done = Event()

    def remind() -> None:
        while not done.wait(SILENCE_S):
            say("waiting for Ceph ...")

    Thread(target=remind, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def say(sentence: str) -> None:
    """Talk to the user, beside the result."""
    print(sentence, file=sys.stderr, flush=True)
