"""`svctl tier`."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli.common import fabric_and_ceph, say
from storvirt.model import image_size, pool_name
from storvirt.tiering import HitSet
from tenancy.cli import Format, Output, Yes, confirm, show
from tenancy.names import rough_size

if TYPE_CHECKING:
    from storvirt.backends.tiers import TierFacts

app = typer.Typer(help="Caches before pools.", no_args_is_help=True)


class Mode(StrEnum):
    WRITEBACK = "writeback"


@app.command("create")
def create(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(help="The pool to be cached.")],
    cache: Annotated[str, typer.Option(help="An empty replicated pool.", show_default=False)],
    mode: Annotated[Mode, typer.Option(help="What the cache is for.")] = Mode.WRITEBACK,
    size: Annotated[
        str | None, typer.Option(help="What it may hold.", show_default="80 % of the pool")
    ] = None,
    hit_set: Annotated[
        HitSet, typer.Option(help="none: every write lands in the cache first.")
    ] = HitSet.NONE,
    output: Output = Format.TABLE,
) -> None:
    """Lay a write-back cache before a pool. Acknowledged writes then live in the cache pool."""
    from storvirt.service import tiers

    assert mode is Mode.WRITEBACK
    base, front = pool_name(pool), pool_name(cache)
    size_bytes = image_size(size) if size else None
    with fabric_and_ceph(context, talks=True) as (fabric, cluster):
        facts = tiers.create(
            fabric, cluster, base, front, size_bytes=size_bytes, hit_set=hit_set, say=say
        )
    show(_record(facts), output)


@app.command("show")
def show_(context: typer.Context, pool: str, output: Output = Format.TABLE) -> None:
    """Show the cache before a pool."""
    from storvirt.service import tiers

    base = pool_name(pool)
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_record(tiers.show(fabric, cluster, base)), output)


@app.command("remove")
def remove(
    context: typer.Context,
    pool: str,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for open images.")] = 0,
    yes: Yes = False,
) -> None:
    """Flush the cache before a pool and take it away, with nothing lost."""
    from storvirt.service import tiers

    base = pool_name(pool)
    confirm(f"Flush and remove the cache before pool {pool}?", yes=yes)
    with fabric_and_ceph(context, talks=True) as (fabric, cluster):
        tiers.remove(fabric, cluster, base, wait_s=wait, say=say)


def _record(facts: "TierFacts") -> dict[str, Any]:
    tier = facts.tier
    return {
        "pool": tier.base,
        "cache": tier.cache,
        "mode": tier.mode,
        "active": tier.overlay,
        "size": rough_size(facts.limits.size_bytes),
        "hit_set": str(facts.limits.hit_set),
        "objects": tier.objects,
        "dirty_objects": facts.dirty_objects,
        "stored_bytes": facts.stored_bytes,
        "acknowledged_writes": "in the cache pool until flushed; lost with it"
        if facts.limits.hit_set is HitSet.NONE
        else "in the cache pool if the object is there, else in the base",
    }
