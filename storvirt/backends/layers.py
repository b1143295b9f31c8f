"""Reading an image's generations: the image, its parent, and so on, with what each holds.

What exists is asked of the object map where the image has one (`fast-diff`, on by default) and
of each object otherwise. No monitor is asked.
"""

from dataclasses import replace

import rbd

from storvirt import heat
from storvirt.backends.cluster import Cluster
from storvirt.layout import Layer, Layout
from storvirt.model import ImageName, ImagePath, PoolName, TenantName

# The generations of images that share them, by path and snapshot.
Cache = dict[tuple[ImagePath, str | None], tuple[Layer, ...]]


def read(
    cluster: Cluster,
    path: ImagePath,
    *,
    snapshot: str | None = None,
    reach_bytes: int | None = None,
    cache: Cache | None = None,
) -> tuple[Layer, ...]:
    """The generations of an image, youngest first. Raises NotFound.

    `reach_bytes` is how much of it its clone sees. With a `cache`, each parent is opened once
    for all its clones.
    """
    key = (path, snapshot)
    if cache is None or key not in cache:
        found = _read(cluster, path, snapshot, cache)
        if cache is None:
            return _within(found, reach_bytes)
        cache[key] = found
    return _within(cache[key], reach_bytes)


def _read(
    cluster: Cluster, path: ImagePath, snapshot: str | None, cache: Cache | None
) -> tuple[Layer, ...]:
    with cluster.image(path, snapshot=snapshot, read_only=True) as image:
        size = image.size()
        layout = Layout(
            object_bytes=image.stat()["obj_size"],
            stripe_unit=image.stripe_unit(),
            stripe_count=image.stripe_count(),
        )
        layer = Layer(
            path=path,
            snapshot=snapshot,
            id=image.id(),
            pool=_data_pool(cluster, image, path),
            namespace=path.namespace,
            prefix=image.block_name_prefix(),
            layout=layout,
            reach_bytes=size,
            objects=_existing(image, layout, size),
            heat=_note(image, heat.KEY),
        )
        try:
            parent = image.get_parent_image_spec()
        except rbd.ImageNotFound:
            return (layer,)
        overlap = image.overlap()
    if not overlap:
        return (layer,)
    origin = ImagePath(
        pool=PoolName(parent["pool_name"]),
        namespace=TenantName(parent["pool_namespace"]),
        name=ImageName(parent["image_name"]),
    )
    older = read(cluster, origin, snapshot=parent["snap_name"], reach_bytes=overlap, cache=cache)
    return (layer, *older)


def _within(layers: tuple[Layer, ...], reach_bytes: int | None) -> tuple[Layer, ...]:
    if reach_bytes is None or reach_bytes >= layers[0].reach_bytes:
        return layers
    return (replace(layers[0], reach_bytes=reach_bytes), *layers[1:])


def _note(image: rbd.Image, key: str) -> str | None:
    try:
        return str(image.metadata_get(key))
    except KeyError:
        return None


def _existing(image: rbd.Image, layout: Layout, size_bytes: int) -> frozenset[int]:
    found: set[int] = set()

    def note(offset: int, length: int, exists: bool) -> None:
        if exists:
            found.update(number for number, _, _ in layout.pieces(offset, length))

    image.diff_iterate(0, size_bytes, None, note, include_parent=False, whole_object=True)
    return frozenset(found)


def _data_pool(cluster: Cluster, image: rbd.Image, path: ImagePath) -> PoolName:
    data_pool = image.data_pool_id()
    with cluster.pool(path.pool) as context:
        if data_pool in (-1, context.get_pool_id()):
            return path.pool
    return PoolName(cluster.pool_name(data_pool))
