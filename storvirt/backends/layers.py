"""Reading an image's generations: the image, its parent, and so on, with what each holds.

What exists is asked of the object map where the image has one (`fast-diff`, on by default) and
of each object otherwise. No monitor is asked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import rbd

from storvirt.backends.cluster import Cluster, translated
from storvirt.model import ImageName, ImagePath, PoolName, TenantName
from storvirt.placement import heat
from storvirt.placement.layout import Layer, Layout

# The generations that images share, by the youngest one's place, id and snapshot, and `first_only`.
Cache = dict[tuple[ImagePath, str | None, str | None, bool], tuple[Layer, ...]]


def read(
    cluster: Cluster,
    path: ImagePath,
    *,
    snapshot: str | None = None,
    first_only: bool = False,
    cache: Cache | None = None,
) -> tuple[Layer, ...]:
    """The generations of an image, youngest first. Raises NotFound.

    With `first_only`, nothing is asked but which of them has the image's first object. With a
    `cache`, each parent is opened once for all its clones.
    """
    return _generations(cluster, path, None, snapshot, first_only, {} if cache is None else cache)


def _generations(
    cluster: Cluster,
    path: ImagePath,
    image_id: str | None,
    snapshot: str | None,
    first_only: bool,
    cache: Cache,
) -> tuple[Layer, ...]:
    key = (path, image_id, snapshot, first_only)
    if key in cache:
        return cache[key]
    with _opened(cluster, path, image_id, snapshot) as image:
        layer = _layer(cluster, image, path, snapshot, first_only)
        parent = _parent(image)
        overlap = image.overlap() if parent else 0
    found: tuple[Layer, ...] = (layer,)
    if parent and overlap and not (first_only and layer.objects):
        older = _generations(cluster, *parent, first_only, cache)
        reach = min(overlap, older[0].reach_bytes)
        found = (layer, replace(older[0], reach_bytes=reach), *older[1:])
    cache[key] = found
    return found


@contextmanager
def _opened(
    cluster: Cluster, path: ImagePath, image_id: str | None, snapshot: str | None
) -> Iterator[rbd.Image]:
    """An image by its name, or by its id: a parent may be in the trash, where it has no name."""
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        name = path.name if image_id is None else None
        try:
            image = rbd.Image(context, name, snapshot, read_only=True, image_id=image_id)
        except rbd.ImageNotFound:
            if image_id is None:
                raise
            # The snapshot was removed while clones of it live; its objects are the image's own.
            image = rbd.Image(context, None, read_only=True, image_id=image_id)
        with image:
            yield image


def _layer(
    cluster: Cluster, image: rbd.Image, path: ImagePath, snapshot: str | None, first_only: bool
) -> Layer:
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
        objects=frozenset(),
        heat=_note(image, heat.KEY),
    )
    objects = _first(cluster, layer) if first_only else _existing(image, layout, size)
    return replace(layer, objects=objects)


def _parent(image: rbd.Image) -> tuple[ImagePath, str, str] | None:
    try:
        spec = image.get_parent_image_spec()
    except rbd.ImageNotFound:
        return None
    path = ImagePath(
        pool=PoolName(spec["pool_name"]),
        namespace=TenantName(spec["pool_namespace"]),
        name=ImageName(spec["image_name"]),
    )
    return path, image.parent_id(), spec["snap_name"]


def _first(cluster: Cluster, layer: Layer) -> frozenset[int]:
    with cluster.pool(layer.pool, layer.namespace) as context:
        there = cluster.object_exists(context, layer.object_name(0))
    return frozenset([0]) if there else frozenset()


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
