"""`svctl tier`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli import deadline
from storvirt.cli.common import fabric_and_ceph, say
from storvirt.model import image_name, image_size, pool_name
from storvirt.tiers.choices import PLUGINS, TRAITS, Backend
from storvirt.tiers.settings import as_words, parse
from storvirt.tiers.steps import HitSet, Mode
from tenancy.cli import Format, Output, Yes, confirm, show
from tenancy.errors import InvalidRequest, Refused
from tenancy.names import rough_size

if TYPE_CHECKING:
    from storvirt.backends.tier_counters import Activity
    from storvirt.backends.tiers import TierFacts

app = typer.Typer(help="Caches before pools and images.", no_args_is_help=True)

BackendOption = Annotated[Backend, typer.Option("--backend", help="What implements it.")]
CacheOption = Annotated[
    str | None, typer.Option(help="pool: an empty replicated pool.", show_default=False)
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the cache, see `tier show`."),
]
SizeOption = Annotated[
    str | None, typer.Option(help="What it may hold.", show_default="80 % of the pool")
]
HitSetOption = Annotated[
    HitSet | None, typer.Option(help="none: every write lands in the cache first.")
]
ModeOption = Annotated[Mode | None, typer.Option(help="pool: what the cache is for.")]
ImageTenant = Annotated[
    str | None,
    typer.Option(
        "-t", "--tenant", envvar="VIRTKIT_TENANT", help="Whose image it is.", show_default=False
    ),
]

_COLUMNS = ["backend", "target", "cache", "mode", "active", "objects", "dirty_objects"]


@app.command("create")
def create(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="The pool, or image, to be cached.")],
    backend: BackendOption = Backend.POOL,
    cache: CacheOption = None,
    mode: ModeOption = None,
    size: SizeOption = None,
    hit_set: HitSetOption = None,
    settings: SettingOption = None,
    path: Annotated[
        str, typer.Option(help="client: directory on each host.")
    ] = "/var/cache/virtkit/rbd",
    tenant: ImageTenant = None,
    output: Output = Format.TABLE,
) -> None:
    """Put a cache before a pool or an image. `svctl tier plan` says what that would mean."""
    from storvirt.service import image_tiers, tiers

    _refuse_routed(backend)
    if backend in PLUGINS:
        if cache or mode or settings or hit_set:
            raise InvalidRequest(
                f"back end {backend} takes no --cache, --mode, --hit-set or --set. Leave them out."
            )
        image, owner = image_name(target), _tenant(tenant)
        size_bytes = image_size(size) if size else 1 << 30
        with fabric_and_ceph(context) as (fabric, cluster):
            wanted = image_tiers.create(
                fabric, cluster, backend, owner, image, path=path, size_bytes=size_bytes
            )
        show({"backend": str(backend), "target": f"{owner}/{image}", **wanted}, output)
        return
    base, front = pool_name(target), _cache_name(target, cache)
    changes = _changes(settings, size, hit_set)
    with fabric_and_ceph(context, talks=True) as (fabric, cluster):
        facts = tiers.create(
            fabric, cluster, base, front, mode=mode or Mode.WRITEBACK, changes=changes, say=say
        )
    show(_record(facts), output)


@app.command("list")
def list_(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the tiers of pools and images; golden images have `svctl golden list`."""
    from storvirt.service import image_tiers, tiers

    with fabric_and_ceph(context) as (fabric, cluster):
        records = [_record(facts) for facts in tiers.list_all(fabric, cluster)]
        for backend, path in image_tiers.list_all(fabric, cluster):
            records.append({"backend": str(backend), "target": str(path), "active": True})
    show(records, output, _COLUMNS)


@app.command("show")
def show_(
    context: typer.Context,
    pool: str,
    window: Annotated[
        float, typer.Option(min=0.1, max=600, help="Seconds to measure activity for.")
    ] = 1,
    output: Output = Format.TABLE,
) -> None:
    """Show the cache before a pool, and what it does just now.

    dirty_bytes is dirty_objects times the mean size of the cache's objects. hit_ratio and the
    rates are counted by the OSDs of the cache during --window, for all cache tiers they serve.
    """
    from storvirt.service import tiers

    base = pool_name(pool)
    with fabric_and_ceph(context) as (fabric, cluster):
        facts, activity = tiers.show(fabric, cluster, base, window_s=window)
    show(_record(facts) | _settings_record(facts) | _activity_record(activity), output)


@app.command("set")
def set_(
    context: typer.Context,
    pool: str,
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the cache, see `tier show`."),
    ] = None,
    mode: ModeOption = None,
    output: Output = Format.TABLE,
) -> None:
    """Give the cache before a pool other settings or another mode."""
    from storvirt.service import tiers

    base, wanted = pool_name(pool), parse(changes or [])
    if not wanted and mode is None:
        raise InvalidRequest("nothing to set. Say KEY=VALUE, or --mode.")
    with fabric_and_ceph(context, talks=True) as (fabric, cluster):
        facts = tiers.change(fabric, cluster, base, mode=mode, changes=wanted, say=say)
    show(_record(facts) | _settings_record(facts), output)


@app.command("plan")
def plan(
    context: typer.Context,
    target: Annotated[str | None, typer.Argument(help="The pool; none: what is possible.")] = None,
    backend: BackendOption = Backend.POOL,
    cache: CacheOption = None,
    mode: ModeOption = None,
    size: SizeOption = None,
    hit_set: HitSetOption = None,
    settings: SettingOption = None,
    output: Output = Format.TABLE,
) -> None:
    """Say where writes would go, what a loss would cost and how it ends; changes nothing.

    Without a pool it tries which back ends work here.
    """
    from storvirt.service import image_tiers, tiers

    if target is None:
        with fabric_and_ceph(context) as (fabric, cluster):
            found = image_tiers.possibilities(fabric, cluster)
        show([_possibility(one.backend, one.obstacle) for one in found], output)
        return
    if backend is not Backend.POOL:
        with fabric_and_ceph(context) as (fabric, cluster):
            one = image_tiers.possibility(fabric, cluster, backend)
        show({"target": target, **_possibility(backend, one.obstacle)}, output)
        return
    base = pool_name(target)
    front = pool_name(cache) if cache else None
    changes = _changes(settings, size, hit_set)
    with fabric_and_ceph(context) as (fabric, cluster):
        outlook = tiers.outlook(fabric, cluster, base, front, mode=mode, changes=changes)
    record: dict[str, Any] = {"backend": "pool", "pool": base, **asdict(outlook.plan)}
    record["dirty_limit"] = rough_size(outlook.plan.dirty_limit_bytes)
    record |= {"images": list(outlook.images), "clients": list(outlook.clients)}
    show(record, output)


@app.command("remove")
def remove(
    context: typer.Context,
    target: str,
    backend: BackendOption = Backend.POOL,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for open images.")] = 0,
    tenant: ImageTenant = None,
    yes: Yes = False,
) -> None:
    """Flush the cache before a pool and take it away, with nothing lost."""
    from storvirt.service import image_tiers, tiers

    _refuse_routed(backend)
    if backend in PLUGINS:
        image, owner = image_name(target), _tenant(tenant)
        confirm(f"Take the {backend} cache off image {target}?", yes=yes)
        with fabric_and_ceph(context) as (fabric, cluster):
            image_tiers.remove(fabric, cluster, backend, owner, image)
        return
    base = pool_name(target)
    confirm(f"Flush and remove the cache before pool {target}?", yes=yes)
    deadline.allow(wait)
    with fabric_and_ceph(context, talks=True) as (fabric, cluster):
        tiers.remove(fabric, cluster, base, wait_s=wait, say=say)


def _refuse_routed(backend: Backend) -> None:
    if backend in (Backend.GOLDEN, Backend.FAST_POOL):
        begin = TRAITS[backend].begin
        raise Refused(
            f"back end {backend} has a command of its own, {' '.join(begin.split()[:2])}. "
            f"Use: {begin}."
        )


def _changes(words: list[str] | None, size: str | None, hit_set: HitSet | None) -> dict[str, Any]:
    changes = parse(words or [])
    for key, value in (("size", image_size(size) if size else None), ("hit_set", hit_set)):
        if value is not None and key in changes:
            raise InvalidRequest(f"{key.replace('_', '-')} is said twice. Say it once.")
        if value is not None:
            changes[key] = value
    return changes


def _cache_name(pool: str, cache: str | None) -> Any:
    if cache is None:
        raise InvalidRequest(f"pool {pool}: which pool is to be its cache? Say --cache POOL.")
    return pool_name(cache)


def _tenant(tenant: str | None) -> str:
    if tenant is None:
        raise InvalidRequest("whose image is it? Say --tenant, or set VIRTKIT_TENANT.")
    return tenant


def _record(facts: "TierFacts") -> dict[str, Any]:
    tier = facts.tier
    mean = facts.stored_bytes / tier.objects if tier.objects else 0
    return {
        "backend": "pool",
        "target": tier.base,
        "pool": tier.base,
        "cache": tier.cache,
        "mode": tier.mode,
        "active": tier.overlay,
        "held": tier.held,
        "tenants_may": str(tier.access),
        "size": rough_size(facts.settings.size),
        "hit_set": str(facts.settings.hit_set),
        "objects": tier.objects,
        "dirty_objects": facts.dirty_objects,
        "dirty_bytes": int(min(facts.dirty_objects, tier.objects) * mean),
        "stored_bytes": facts.stored_bytes,
    }


def _settings_record(facts: "TierFacts") -> dict[str, Any]:
    return {"settings": as_words(facts.settings)}


def _activity_record(activity: "Activity") -> dict[str, Any]:
    return {
        "window_s": activity.window_s,
        "hit_ratio": activity.hit_ratio,
        "flushed_objects_per_s": activity.flushed_per_s,
        "promoted_objects_per_s": activity.promoted_per_s,
        "evicted_objects_per_s": activity.evicted_per_s,
    }


def _possibility(backend: Backend, obstacle: str | None) -> dict[str, Any]:
    traits = TRAITS[backend]
    return {
        "backend": str(backend),
        "possible": obstacle is None,
        "obstacle": obstacle,
        "before": traits.before,
        "acknowledged_bytes": traits.acknowledged_bytes,
        "cost_of_loss": traits.cost_of_loss,
        "begin": traits.begin,
    }
