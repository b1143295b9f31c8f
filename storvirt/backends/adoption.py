"""What an image that stock tools made is like, as far as virtkit must know to call it its own."""

from dataclasses import dataclass

import rbd

from storvirt.backends.cluster import Cluster
from storvirt.model import LUKS2, ImagePath, SnapshotName, snapshot_name

_LUKS2 = b"LUKS\xba\xbe\x00\x02"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSnapshot:
    """A snapshot as Ceph has it."""

    name: SnapshotName
    size_bytes: int
    protected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundImage:
    """An image as Ceph has it; `parent` in words."""

    id: str
    size_bytes: int
    parent: str | None
    encryption: str | None
    snapshots: tuple[FoundSnapshot, ...]


def inspect(cluster: Cluster, path: ImagePath) -> FoundImage:
    """The image at `path`. Raises NotFound, or InvalidRequest if a snapshot's name is unusable."""
    with cluster.image(path, read_only=True) as image:
        try:
            spec = image.get_parent_image_spec()
            parent = f"{spec['pool_name']}/{spec['image_name']}@{spec['snap_name']}"
        except rbd.ImageNotFound:
            parent = None
        size_bytes = image.size()
        begin = image.read(0, min(len(_LUKS2), size_bytes)) if size_bytes else b""
        snapshots = tuple(
            FoundSnapshot(
                name=snapshot_name(found["name"]),
                size_bytes=found["size"],
                protected=image.is_protected_snap(found["name"]),
            )
            for found in image.list_snaps()
            # Groups and trash keep snapshots of their own, which are nobody's to name.
            if image.snap_get_namespace_type(found["id"]) == rbd.RBD_SNAP_NAMESPACE_TYPE_USER
        )
        return FoundImage(
            id=image.id(),
            size_bytes=size_bytes,
            parent=parent,
            encryption=LUKS2 if begin == _LUKS2 else None,
            snapshots=snapshots,
        )
