"""`svctl image`."""

import time
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from storvirt.cli import changing
from storvirt.cli.adopt import adopt
from storvirt.cli.attach import attach
from storvirt.cli.bulk import first_failure, named, show_outcome
from storvirt.cli.common import MaybeTenant, PoolOption, TenantOption, fabric_and_ceph, say
from storvirt.cli.encrypting import EncryptOption, PassphraseOption, to_encrypt
from storvirt.cli.export import export
from storvirt.cli.mapping import map_, mapped, unmap
from storvirt.cli.progress import no_progress, progress_bar
from storvirt.cli.reading import read_policy
from storvirt.cli.share import share, unshare
from storvirt.cli.take import take
from storvirt.features import layout
from storvirt.formats.sources import SourceFormat
from storvirt.golden import CLONE_OBJECT_BYTES
from storvirt.model import (
    Image,
    State,
    duration,
    image_name,
    image_size,
    numbered,
    pool_name,
    snapshot_name,
)
from storvirt.model import snapshot_ref as parse_snapshot_ref
from tenancy.cli import Format, Output, Yes, confirm, session, show
from tenancy.errors import InvalidRequest
from tenancy.names import format_size, parse_size, validate_name

if TYPE_CHECKING:
    from storvirt.service.images import ImageReport


class CloneTier(StrEnum):
    """How hosts read a clone."""

    GOLDEN = "golden"


app = typer.Typer(help="Tenants' disks.", no_args_is_help=True)
app.command("attach")(attach)
app.command("share")(share)
app.command("unshare")(unshare)
app.command("take")(take)
app.command("map")(map_)
app.command("unmap")(unmap)
app.command("mapped")(mapped)
app.command("read-policy")(read_policy)
app.command("export")(export)
app.command("rename")(changing.rename)
app.command("flatten")(changing.flatten)
app.command("set")(changing.set_)
app.command("du")(changing.du)
app.command("adopt")(adopt)

_COLUMNS = ["tenant", "name", "size", "pool", "state", "parent"]


@app.command("create")
def create(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    size: Annotated[str, typer.Option(help="Such as 10GiB.", show_default=False)],
    pool: PoolOption = None,
    encrypt: EncryptOption = None,
    passphrase_file: PassphraseOption = None,
    object_size: Annotated[str | None, typer.Option(help="4KiB to 32MiB.")] = None,
    stripe_unit: Annotated[
        str | None, typer.Option(help="Bytes before the next object.", show_default=False)
    ] = None,
    stripe_count: Annotated[
        int | None, typer.Option(help="Objects to stripe over.", show_default=False)
    ] = None,
    feature: changing.Features = None,
    no_feature: changing.NoFeatures = None,
    count: Annotated[
        int | None, typer.Option(help="Make NAME-1 to NAME-COUNT.", show_default=False)
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Create an empty image, or many alike."""
    from storvirt.backends.encryption import passphrase
    from storvirt.service import catalog, creating

    wanted, size_bytes, where = image_name(name), image_size(size), pool and pool_name(pool)
    chosen = layout(
        parse_size("object size", object_size) if object_size else None,
        parse_size("stripe unit", stripe_unit) if stripe_unit else None,
        stripe_count,
        feature or (),
        no_feature or (),
    )
    file = to_encrypt(encrypt, passphrase_file)
    names = [wanted] if count is None else numbered(wanted, count)
    many = count is not None
    with (
        fabric_and_ceph(context, talks=many) as (fabric, cluster),
        progress_bar(f"creating {name}") if many else nullcontext(no_progress) as progress,
    ):
        made = creating.create(
            fabric,
            cluster,
            tenant,
            names,
            size_bytes,
            pool=where or None,
            passphrase=None if file is None else passphrase(file),
            layout=chosen,
            progress=progress,
        )
        if not many:
            first_failure(made)
            show(_record(catalog.image(fabric, tenant, wanted).record), output)
            return
    show_outcome(made, "images", "made", "were there", output)


@app.command("import")
def import_(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    source: Annotated[Path, typer.Option("--from", help="The file.", show_default=False)],
    format: Annotated[
        SourceFormat | None,
        typer.Option(help="What the file is.", show_default="by its first bytes"),
    ] = None,
    pool: PoolOption = None,
    snapshot: Annotated[
        str | None,
        typer.Option(help="Take and protect this snapshot then, for clones.", show_default=False),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Read both again and compare.")] = False,
    sha256: Annotated[
        str | None,
        typer.Option(help="What the file must have; the disk's is shown then.", show_default=False),
    ] = None,
    encrypt: EncryptOption = None,
    passphrase_file: PassphraseOption = None,
    output: Output = Format.TABLE,
) -> None:
    """Import a disk from a file. Interrupted, the same command goes on where it stopped."""
    from storvirt.service import importing

    wanted, where = image_name(name), pool and pool_name(pool)
    base = snapshot_name(snapshot) if snapshot else None
    file = to_encrypt(encrypt, passphrase_file)
    with (
        fabric_and_ceph(context, talks=True) as (fabric, cluster),
        progress_bar(f"importing {name}") as progress,
    ):
        image = importing.import_file(
            fabric,
            cluster,
            tenant,
            wanted,
            source,
            format=format,
            pool=where or None,
            snapshot=base,
            verify=verify,
            sha256=sha256,
            passphrase_file=file,
            progress=progress,
            say=say,
        )
        record = _record(image)
        if (verify or sha256) and file is None:
            record["sha256"] = importing.content_digest(fabric, cluster, tenant, wanted)
    show(record, output)


@app.command("clone")
def clone(
    context: typer.Context,
    parent: Annotated[
        str,
        typer.Argument(
            help="[TENANT/]IMAGE@SNAPSHOT, protected; of another if shared. With --tier a name."
        ),
    ],
    name: str,
    tenant: TenantOption,
    count: Annotated[
        int | None, typer.Option(help="Make NAME-1 to NAME-COUNT.", show_default=False)
    ] = None,
    pool: PoolOption = None,
    max_depth: Annotated[
        int | None,
        typer.Option(help="Generations allowed.", show_default="4, or [ceph] clone_depth"),
    ] = None,
    flatten_deep: Annotated[
        bool, typer.Option("--flatten-deep", help="Copy whole what would be deeper.")
    ] = False,
    tier: Annotated[
        CloneTier | None,
        typer.Option(help="PARENT is a golden image, in hosts' caches.", show_default=False),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make an image from a snapshot, or many. They share its blocks until they write their own."""
    from storvirt.service import golden_catalog, images

    owner, slash, ref = parent.rpartition("/")
    wanted, where = image_name(name), pool and pool_name(pool)
    golden = image_name(ref) if tier else None
    origin = None if golden else parse_snapshot_ref(ref)
    if slash:
        validate_name("tenant", owner)
    depth = session(context).settings.ceph.clone_depth if max_depth is None else max_depth
    names = [wanted] if count is None else numbered(wanted, count)
    many = count is not None or flatten_deep
    with (
        fabric_and_ceph(context, talks=many) as (fabric, cluster),
        progress_bar(f"cloning {parent}") if many else nullcontext(no_progress) as progress,
    ):
        made = images.clone(
            fabric,
            cluster,
            tenant,
            origin or golden_catalog.snapshot_of(fabric, owner or tenant, image_name(ref)),
            names,
            pool=where or None,
            owner=owner or None,
            max_depth=depth,
            flatten_deep=flatten_deep,
            object_bytes=CLONE_OBJECT_BYTES if golden else None,
            progress=progress,
        )
        if count is None:
            first_failure(made)
            show(_record(images.get(fabric, cluster, tenant, wanted).image), output)
            return
    show_outcome(made, "images", "made", "were there", output)


@app.command("list")
def list_(
    context: typer.Context, tenant: MaybeTenant = None, output: Output = Format.TABLE
) -> None:
    """List the images."""
    from storvirt.service import images

    with session(context).fabric() as fabric:
        found = images.list_all(fabric, tenant)
    show([_record(image) for image in found], output, _COLUMNS)


@app.command("get")
def get(
    context: typer.Context, name: str, tenant: TenantOption, output: Output = Format.TABLE
) -> None:
    """Show one image, and who has it open."""
    from storvirt.service import images

    wanted = image_name(name)
    with fabric_and_ceph(context) as (fabric, cluster):
        show(_report(images.get(fabric, cluster, tenant, wanted)), output)


@app.command("resize")
def resize(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    size: Annotated[str, typer.Option(help="Such as 20GiB.", show_default=False)],
    shrink: Annotated[bool, typer.Option("--shrink", help="Cut off what is beyond.")] = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Give an image another size; it can grow while a guest uses it."""
    from storvirt.service import images

    wanted, size_bytes = image_name(name), image_size(size)
    if shrink:
        confirm(f"Cut image {name} to {size} and lose what is beyond?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        image = images.resize(fabric, cluster, tenant, wanted, size_bytes, allow_shrink=shrink)
    show(_record(image), output)


@app.command("unlock")
def unlock(context: typer.Context, name: str, tenant: TenantOption, yes: Yes = False) -> None:
    """Free an image from a dead host's lock. That host is fenced first."""
    from storvirt.service import images

    wanted = image_name(name)
    confirm(f"Take the lock of image {name} from its owner and fence that?", yes=yes)
    with fabric_and_ceph(context) as (fabric, cluster):
        owner = images.unlock(fabric, cluster, tenant, wanted)
    say(
        f"image {name} was not locked."
        if owner is None
        else f"image {name} is free; {owner} is fenced."
    )


@app.command("delete")
def delete(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", show_default=False)],
    tenant: TenantOption,
    count: Annotated[
        int | None, typer.Option(help="Delete NAME-1 to NAME-COUNT.", show_default=False)
    ] = None,
    into_trash: Annotated[
        bool, typer.Option("--trash", help="Keep them for a time: svctl trash.")
    ] = False,
    expire: Annotated[
        str | None, typer.Option(help="With --trash: how long.", show_default="7d")
    ] = None,
    yes: Yes = False,
) -> None:
    """Delete images with their data, at once or after a time in the trash."""
    from storvirt.service import deleting, trash

    if expire and not into_trash:
        raise InvalidRequest("--expire goes with --trash.")
    keep_s = duration(expire or "7d")
    wanted = named(names, count)
    what = f"image {wanted[0]}" if len(wanted) == 1 else f"{len(wanted)} images"
    if not into_trash:
        confirm(f"Delete {what} of tenant {tenant} with all data?", yes=yes)
    many = len(wanted) > 1
    with (
        fabric_and_ceph(context, talks=many) as (fabric, cluster),
        progress_bar(f"deleting {what}") if many else nullcontext(no_progress) as progress,
    ):
        if into_trash:
            gone = trash.move(
                fabric,
                cluster,
                tenant,
                wanted,
                now=int(time.time()),
                keep_s=keep_s,
                progress=progress,
            )
        else:
            gone = deleting.delete(fabric, cluster, tenant, wanted, progress=progress)
    if not many:
        first_failure(gone)
    else:
        verb = "moved to the trash" if into_trash else "deleted"
        show_outcome(gone, "images", verb, "were gone", Format.TABLE)


def _record(image: Image) -> dict[str, Any]:
    return {
        "tenant": image.tenant,
        "name": image.name,
        "size": format_size(image.size_bytes),
        "size_bytes": image.size_bytes,
        "pool": image.pool,
        "namespace": image.tenant,
        "state": str(image.state),
        "parent": image.parent,
        "source": image.source,
        "encryption": image.encryption,
    }


def _report(report: "ImageReport") -> dict[str, Any]:
    record = _record(report.image)
    facts = report.facts
    if facts is None:
        return record | {
            "ceph": "not complete" if report.image.state is not State.READY else "missing"
        }
    return record | {
        "id": facts.id,
        "users": list(facts.users),
        "lock_owner": facts.lock_owner,
        "features": list(facts.features),
        "object_size": format_size(facts.object_size_bytes),
        "stripes": f"{facts.stripe_count} x {format_size(facts.stripe_unit_bytes)}",
        "limits": dict(facts.limits),
        "depends_on": facts.parent,
    }
