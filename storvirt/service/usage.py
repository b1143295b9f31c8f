"""What images fill, beside what is promised for them: thin usage, snapshots counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from storvirt.backends import images
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, State
from storvirt.service import catalog, parallel
from storvirt.service.catalog import ImageEntry
from storvirt.service.parallel import Failure, Outcome, Progress, Step, no_progress
from tenancy.backends.fabric import Fabric


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes of whole objects that an image and each of its snapshots fill by themselves.

    A clone's count begins with what it has written; what it shares is its parent's. Copies on
    several OSDs are not counted.
    """

    tenant: str
    image: ImageName
    pool: str
    provisioned_bytes: int
    used_bytes: int
    snapshots_bytes: int


def measure(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str | None,
    name: ImageName | None = None,
    progress: Progress = no_progress,
) -> tuple[list[Usage], Outcome]:
    """What one image, a tenant's or all of them fill. Images that are not complete are left out."""
    if name is not None and tenant is not None:
        entries = [catalog.ready_image(fabric, tenant, name)]
    else:
        found = catalog.images(fabric, tenant)
        entries = [entry for entry in found if entry.record.state is State.READY]
    measured: dict[int, Usage] = {}

    def note(done: Sequence[tuple[ImageEntry, tuple[int, int]]]) -> list[Failure[ImageEntry]]:
        for entry, (used, snapshots) in done:
            measured[id(entry)] = Usage(
                tenant=entry.record.tenant,
                image=entry.record.name,
                pool=entry.record.pool,
                provisioned_bytes=entry.record.size_bytes,
                used_bytes=used,
                snapshots_bytes=snapshots,
            )
        return []

    steps: list[Step[ImageEntry]] = [
        Step(work=lambda entry: images.used(cluster, entry.record.path), record=note)
    ]
    failures = parallel.run(entries, steps, progress=progress)
    if name is not None:
        for failure in failures:
            raise failure.error
    return (
        [measured[id(entry)] for entry in entries if id(entry) in measured],
        parallel.outcome(entries, failures, catalog.name_of),
    )
