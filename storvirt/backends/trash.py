"""RBD's trash: images without a name, kept for a time."""

import rbd

from storvirt.backends import images, naming
from storvirt.backends.cluster import Cluster, translated
from storvirt.model import ImagePath


def move(cluster: Cluster, path: ImagePath, id: str, keep_s: int) -> None:
    """Put the image into the trash, where Ceph keeps it `keep_s`; quiet if it is there."""
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        cluster.refuse_read_only(context)
        if naming.image_id(cluster, path) == id:
            rbd.RBD().trash_move(context, path.name, keep_s)


def holds(cluster: Cluster, path: ImagePath, id: str) -> bool:
    """Whether the trash beside `path` has the image."""
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        return any(entry["id"] == id for entry in rbd.RBD().trash_list(context))


def restore(cluster: Cluster, path: ImagePath, id: str) -> None:
    """Take the image out of the trash, as `path`. Raises AlreadyExists; quiet if it is out."""
    if holds(cluster, path, id):
        with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
            cluster.refuse_read_only(context)
            rbd.RBD().trash_restore(context, id, path.name)
    with cluster.image(path) as image:
        # Of the command, perhaps, that died while it put the image there.
        images.free_lock(image)


def remove(cluster: Cluster, path: ImagePath, id: str) -> None:
    """Delete the image from the trash with its data, before its time too; quiet if it is gone."""
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        cluster.refuse_read_only(context)
        try:
            rbd.RBD().trash_remove(context, id, True)
        except rbd.ImageNotFound:
            return
