"""Creating empty images, one or many, and finding those again that an interrupted call has begun.

An image that is there is taken for what was asked only if it lies in its objects as asked: size and
encryption are in the fabric database, the layout is what Ceph says.
"""

from collections.abc import Sequence
from dataclasses import replace

from storvirt import features
from storvirt.backends import encryption, images
from storvirt.backends.cluster import Cluster
from storvirt.features import Layout
from storvirt.model import LUKS2, ImageName, ImagePath, PoolName, State
from storvirt.service import admission, catalog, making, parallel
from storvirt.service.catalog import ImageEntry
from storvirt.service.parallel import Failure, Outcome, Progress, Step, no_progress, outcome
from tenancy.backends.fabric import Fabric
from tenancy.errors import Refused


def create(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    names: Sequence[ImageName],
    size_bytes: int,
    *,
    pool: PoolName | None = None,
    passphrase: str | None = None,
    layout: Layout | None = None,
    progress: Progress = no_progress,
) -> Outcome:
    """Empty images of that size; with a passphrase encrypted, and larger by LUKS2's header.

    All are admitted or none. Those that are there already as asked are left as they are, so the
    same call finishes what was interrupted; those that lie otherwise in their objects have failed.
    """
    chosen = layout or Layout()
    total = size_bytes if passphrase is None else size_bytes + encryption.HEADER_BYTES

    def make(path: ImagePath) -> None:
        images.create(cluster, path, total, chosen, data_pool)
        if passphrase is not None:
            encryption.format_luks2(cluster, path, size_bytes, passphrase)

    kind = None if passphrase is None else LUKS2
    admitted = admission.admit_all(fabric, tenant, names, total, pool=pool, encryption=kind)
    if len(names) == 1:
        admission.insist_on_one(tenant, admitted)
    there = [
        *admitted.present,
        *(entry for entry in admitted.entries if entry.row["ceph_id"] is not None),
    ]
    data_pool = catalog.data_pool(fabric, admitted.pool)
    different = _different(cluster, there, chosen, data_pool)
    refused = {failure.item.row.id for failure in different}
    wanted = tuple(entry for entry in admitted.entries if entry.row.id not in refused)
    failures = making.carry_out(fabric, cluster, replace(admitted, entries=wanted), make, progress)
    present = [catalog.name_of(one) for one in admitted.present if one.row.id not in refused]
    made = outcome(wanted, failures, catalog.name_of, present)
    also = tuple((catalog.name_of(failure.item), failure.error) for failure in different)
    return replace(made, failed=made.failed + also)


def _different(
    cluster: Cluster, entries: Sequence[ImageEntry], asked: Layout, data_pool: str | None
) -> list[Failure[ImageEntry]]:
    """Those of the images that lie otherwise in their objects than asked."""

    def check(entry: ImageEntry) -> None:
        found = images.layout_of(cluster, entry.record.path, entry.row["ceph_id"])
        # A finished image's features may have been switched since, as anybody may.
        begun = entry.record.state is State.CREATING
        unlike = features.difference(
            asked,
            found.layout,
            default,
            also_features=begun,
        )
        if unlike is None and found.data_pool != data_pool:
            unlike = (
                f"its data in pool {found.data_pool or entry.record.pool}, "
                f"not {data_pool or entry.record.pool}"
            )
        if unlike is not None:
            name, tenant = entry.record.name, entry.record.tenant
            give_up = f"svctl image delete {name} --tenant {tenant}"
            raise Refused(
                f"image {name} was begun with {unlike}. Run the same command as then, or give it "
                f"up: {give_up}."
                if begun
                else f"image {name} is there with {unlike}. Ask for that, choose another name, or "
                f"delete it: {give_up}."
            )

    if not entries:
        return []
    default = images.default_layout(cluster, entries[0].record.path)
    steps: list[Step[ImageEntry]] = [Step(work=check, record=lambda _: [])]
    return parallel.run(entries, steps)
