"""RBD's live migration of an image to another pool, step by step; each step may be repeated.

https://docs.ceph.com/en/pacific/rbd/rbd-live-migration/
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import rbd

from storvirt.backends import images
from storvirt.backends.cluster import Cluster, translated
from storvirt.model import ImagePath
from tenancy.errors import Refused


class Stage(StrEnum):
    """How far Ceph says a migration is. BROKEN is one that was interrupted while it was begun."""

    NONE = "none"
    BROKEN = "broken"
    PREPARED = "prepared"
    EXECUTED = "executed"
    ABORTING = "aborting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A migration's stage, and the ids of the image at both ends."""

    stage: Stage
    source_id: str = ""
    target_id: str = ""


_STAGES = {
    rbd.RBD_IMAGE_MIGRATION_STATE_PREPARING: Stage.BROKEN,
    rbd.RBD_IMAGE_MIGRATION_STATE_ERROR: Stage.BROKEN,
    rbd.RBD_IMAGE_MIGRATION_STATE_PREPARED: Stage.PREPARED,
    rbd.RBD_IMAGE_MIGRATION_STATE_EXECUTING: Stage.PREPARED,
    rbd.RBD_IMAGE_MIGRATION_STATE_EXECUTED: Stage.EXECUTED,
    rbd.RBD_IMAGE_MIGRATION_STATE_ABORTING: Stage.ABORTING,
}


def find(cluster: Cluster, *paths: ImagePath) -> Found:
    """The migration that the image at the first of these paths takes part in."""
    for path in paths:
        with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
            try:
                found = rbd.RBD().migration_status(context, path.name)
            except (rbd.ImageNotFound, rbd.InvalidArgument):
                # 16.2 says EINVAL of an image that does not migrate.
                continue
            return Found(
                stage=_STAGES.get(found["state"], Stage.BROKEN),
                source_id=found["source_image_id"],
                target_id=found["dest_image_id"],
            )
    return Found(stage=Stage.NONE)


def prepare(cluster: Cluster, source: ImagePath, target: ImagePath) -> None:
    """Let the image open at `target` from now on. Raises Refused while somebody has it open."""
    with (
        translated(f"image {target}"),
        cluster.pool(source.pool, source.namespace) as here,
        cluster.pool(target.pool, target.namespace) as there,
    ):
        try:
            rbd.RBD().migration_prepare(here, source.name, there, target.name)
        except rbd.ImageBusy as error:
            raise Refused(f"image {source} is open somewhere.") from error


def execute(cluster: Cluster, target: ImagePath, progress: Callable[[int, int], None]) -> None:
    """Copy what is not copied yet; guests may use the image meanwhile."""

    def tell(done: int, total: int) -> int:
        progress(done, total)
        return 0

    with translated(f"image {target}"), cluster.pool(target.pool, target.namespace) as context:
        rbd.RBD().migration_execute(context, target.name, on_progress=tell)


def commit(cluster: Cluster, target: ImagePath) -> None:
    """Part the copied image from the old one, and remove that."""
    with translated(f"image {target}"), cluster.pool(target.pool, target.namespace) as context:
        rbd.RBD().migration_commit(context, target.name)
    with cluster.image(target) as image:
        # Of the command, perhaps, that died while it copied.
        images.free_lock(image)


def abort(cluster: Cluster, path: ImagePath) -> None:
    """Bring the image back; what was written to it meanwhile comes along."""
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        try:
            rbd.RBD().migration_abort(context, path.name)
        except rbd.ImageBusy as error:
            raise Refused(
                f"image {path} is open somewhere, and cannot be brought back under a guest. "
                "Stop that; a client that died is forgotten after 30 s."
            ) from error
