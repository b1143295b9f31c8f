"""Notes in images' metadata, which stock tools show and keep (`rbd image-meta list`).

A clone gets a copy of all its parent's notes when it is made. Keys that begin with `conf_` are
settings that librbd itself takes when it opens the image.
"""

from storvirt.backends.cluster import Cluster
from storvirt.model import ImagePath


def get(cluster: Cluster, path: ImagePath, key: str) -> str | None:
    """The note under `key`, or None. Raises NotFound if there is no such image."""
    with cluster.image(path, read_only=True) as image:
        try:
            return str(image.metadata_get(key))
        except KeyError:
            return None


def put(cluster: Cluster, path: ImagePath, key: str, text: str) -> None:
    """Keep a note, also while a guest uses the image."""
    with cluster.image(path) as image:
        image.metadata_set(key, text)


def remove(cluster: Cluster, path: ImagePath, key: str) -> bool:
    """Take a note out; False if it is not there."""
    with cluster.image(path) as image:
        if key not in dict(image.metadata_list()):
            return False
        image.metadata_remove(key)
        return True
