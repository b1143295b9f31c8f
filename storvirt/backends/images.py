"""RBD images: one function for each thing that is done to one."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import rbd

from storvirt import features, qos
from storvirt.backends import activity
from storvirt.backends.cluster import SILENT, Cluster, translated
from storvirt.features import Layout
from storvirt.model import ImageName, ImagePath, PoolName, SnapshotName, TenantName
from tenancy.errors import AlreadyExists, BackendUnavailable, Conflict, NotFound, Refused

# How long a guest that writes without pause may win the race for its image's lock.
LOCK_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What Ceph says of an image. `users` are the addresses of the clients that have it open."""

    size_bytes: int
    id: str
    data_prefix: str
    parent: str | None
    overlap_bytes: int
    users: tuple[str, ...]
    lock_owner: str | None
    features: tuple[str, ...]
    object_size_bytes: int
    stripe_unit_bytes: int
    stripe_count: int
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lying:
    """How an image lies in its objects, and which pool has its data if that is another."""

    layout: Layout
    data_pool: str | None


def create(
    cluster: Cluster,
    path: ImagePath,
    size_bytes: int,
    layout: Layout | None = None,
    data_pool: str | None = None,
) -> None:
    chosen = layout or Layout()
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        cluster.refuse_read_only(context)
        rbd.RBD().create(
            context,
            path.name,
            size_bytes,
            order=chosen.order,
            old_format=False,
            features=chosen.bits,
            stripe_unit=chosen.stripe_unit_bytes,
            stripe_count=chosen.stripe_count,
            data_pool=data_pool,
        )


def create_like(cluster: Cluster, path: ImagePath, model: ImagePath) -> None:
    """An empty image of the size, layout, features and settings that another has."""
    with cluster.image(model, read_only=True) as image:
        names = frozenset(features.names(image.features()))
        striped = "striping" in names
        layout = Layout(
            object_size_bytes=image.stat()["obj_size"],
            stripe_unit_bytes=image.stripe_unit() if striped else None,
            stripe_count=image.stripe_count() if striped else None,
            features=names & features.BITS.keys(),
        )
        size_bytes = image.size()
        kept = {key: value for key, value in image.metadata_list() if key.startswith(qos.PREFIX)}
    create(cluster, path, size_bytes, layout)
    set_metadata(cluster, path, kept)


def clone(
    cluster: Cluster,
    parent: ImagePath,
    snapshot: SnapshotName,
    child: ImagePath,
    data_pool: str | None = None,
    *,
    object_bytes: int | None = None,
) -> None:
    """Make `child` from a snapshot; nothing is copied until it is written (clone v2).

    Its objects are as large as its parent's unless told, a power of two.
    """
    layout = {}
    if object_bytes is not None:
        # The parent's stripe unit would be larger than an object.
        layout = {
            "order": object_bytes.bit_length() - 1,
            "stripe_unit": object_bytes,
            "stripe_count": 1,
        }
    with (
        translated(f"image {parent}@{snapshot}"),
        cluster.pool(parent.pool, parent.namespace) as source,
        cluster.pool(child.pool, child.namespace) as target,
    ):
        cluster.refuse_read_only(target)
        rbd.RBD().clone(
            source, parent.name, snapshot, target, child.name, data_pool=data_pool, **layout
        )


def exists(cluster: Cluster, path: ImagePath) -> bool:
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        return path.name in rbd.RBD().list(context)


def remove(cluster: Cluster, path: ImagePath) -> None:
    """Delete the image with its data, if it is there; also one that was removed half-way.

    Raises Refused while it is open somewhere or has snapshots, and Conflict while Ceph remembers
    the client that died while it removed it.
    """
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        cluster.refuse_read_only(context)
        try:
            rbd.RBD().remove(context, path.name, on_progress=activity.noted)
        except rbd.ImageNotFound as error:
            # librbd also says so when an OSD does not answer it, or the pool is full.
            if cluster.object_exists(context, f"rbd_id.{path.name}"):
                raise BackendUnavailable(f"image {path} is not deleted yet: {SILENT}") from error
        except rbd.ImageBusy as error:
            try:
                opened = users(cluster, path)
            except Refused:
                opened = ()
            except NotFound:
                raise Conflict(
                    f"image {path} is half deleted, and Ceph remembers the client that did it for "
                    "up to 30 s. Run the same command again then."
                ) from error
            raise Refused(
                f"image {path} is open{_by(opened)}. Stop its guest; a client "
                "that died is forgotten after 30 s."
            ) from error


def resize(cluster: Cluster, path: ImagePath, size_bytes: int) -> None:
    with cluster.image(path) as image:
        if image.size() != size_bytes:
            image.resize(size_bytes, allow_shrink=True)
        else:
            free_lock(image)


def set_metadata(cluster: Cluster, path: ImagePath, wanted: Mapping[str, str | None]) -> None:
    """Keep these settings in the image's metadata; None takes one out."""
    with cluster.image(path) as image:
        present = dict(image.metadata_list())
        if all(present.get(key) == value for key, value in wanted.items()):
            free_lock(image)
        for key, value in wanted.items():
            if value is None and key in present:
                image.metadata_remove(key)
            elif value is not None and present.get(key) != value:
                image.metadata_set(key, value)


def switch_features(
    cluster: Cluster, path: ImagePath, on: frozenset[str], off: frozenset[str]
) -> None:
    """Switch features of an image; what relies on another is switched in the right order.

    An object map that is switched on is built at once, for it is taken as invalid before.
    """
    with cluster.image(path) as image:
        # librbd itself insists on the order within one call.
        if off:
            image.update_features(sum(features.BITS[name] for name in off), False)
        if on:
            image.update_features(sum(features.BITS[name] for name in on), True)
        if not on and not off:
            free_lock(image)
    if "object-map" in on:
        with cluster.image(path) as image:
            image.rebuild_object_map()


def flatten(cluster: Cluster, path: ImagePath, progress: Callable[[int, int], None]) -> None:
    """Copy what the image shares with its parent; quiet if it has none. Goes on where it was."""

    def tell(done: int, total: int) -> int:
        progress(done, total)
        return activity.noted(done, total)

    with cluster.image(path) as image:
        if _parent(image) is not None:
            image.flatten(on_progress=tell)
        else:
            free_lock(image)


def roll_back(cluster: Cluster, path: ImagePath, snapshot: SnapshotName) -> None:
    """Make the image what it was when the snapshot was taken."""
    with cluster.image(path) as image:
        image.rollback_to_snap(snapshot)


def used(cluster: Cluster, path: ImagePath) -> tuple[int, int]:
    """Bytes of whole objects that the image fills by itself, and that its snapshots keep besides.

    With fast-diff this reads maps, a bit or two for each object; without, it lists objects.
    """
    with cluster.image(path, read_only=True) as image:
        snapshots = sorted(image.list_snaps(), key=lambda found: int(found["id"]))
        kept, before = 0, None
        for found in snapshots:
            image.set_snap_by_id(found["id"])
            kept += _changed(image, found["size"], before)
            before = found["name"]
        image.set_snap(None)
        return _changed(image, image.size(), before), kept


def _changed(image: rbd.Image, size_bytes: int, since: str | None) -> int:
    found = 0

    def count(_offset: int, length: int, exists: bool) -> None:
        nonlocal found
        found += length if exists else 0

    image.diff_iterate(0, size_bytes, since, count, include_parent=False, whole_object=True)
    return found


def note(cluster: Cluster, path: ImagePath, key: str) -> str | None:
    """The note under `key`, or None; also if there is no such image."""
    with cluster.pool(path.pool, path.namespace) as context, translated(f"image {path}"):
        try:
            with rbd.Image(context, path.name, read_only=True) as image:
                return str(image.metadata_get(key))
        except (rbd.ImageNotFound, KeyError):
            return None


def describe(cluster: Cluster, path: ImagePath) -> ImageFacts:
    """The image as Ceph has it. Raises NotFound."""
    with cluster.image(path, read_only=True) as image:
        parent = _parent(image)
        return ImageFacts(
            size_bytes=image.size(),
            id=image.id(),
            data_prefix=image.block_name_prefix(),
            parent=f"{parent[0]}@{parent[1]}" if parent else None,
            overlap_bytes=image.overlap() if parent else 0,
            users=_others(image),
            lock_owner=_lock_owner(image),
            features=features.names(image.features()),
            object_size_bytes=image.stat()["obj_size"],
            stripe_unit_bytes=image.stripe_unit(),
            stripe_count=image.stripe_count(),
            limits=qos.read(dict(image.metadata_list())),
        )


def default_layout(cluster: Cluster, path: ImagePath) -> Layout:
    """What librbd makes of an image in this pool if nothing is asked; its pool may say otherwise
    than its configuration."""
    with translated(f"pool {path.pool}"), cluster.pool(path.pool, path.namespace) as context:
        said = {one["name"]: one["value"] for one in rbd.RBD().config_list(context)}
    object_size_bytes = 1 << int(said["rbd_default_order"])
    return Layout(
        object_size_bytes=object_size_bytes,
        stripe_unit_bytes=int(said["rbd_default_stripe_unit"]) or object_size_bytes,
        stripe_count=int(said["rbd_default_stripe_count"]) or 1,
    )


def layout_of(cluster: Cluster, path: ImagePath, id: str) -> Lying:
    """How the image `id`, whatever it is called, lies in its objects. Raises NotFound."""
    with (
        translated(f"image {path}"),
        cluster.pool(path.pool, path.namespace) as context,
        rbd.Image(context, image_id=id, read_only=True) as image,
    ):
        data_pool = image.data_pool_id()
        return Lying(
            layout=Layout(
                object_size_bytes=image.stat()["obj_size"],
                stripe_unit_bytes=image.stripe_unit(),
                stripe_count=image.stripe_count(),
                features=frozenset(features.names(image.features())),
            ),
            data_pool=None
            if data_pool in (-1, context.get_pool_id())
            else cluster.pool_name(data_pool),
        )


def users(cluster: Cluster, path: ImagePath) -> tuple[str, ...]:
    """The addresses of the clients that have the image open for writing."""
    with cluster.image(path, read_only=True) as image:
        return _others(image)


def break_lock(cluster: Cluster, path: ImagePath) -> str | None:
    """Take the exclusive lock from its owner and return who that was; None if nobody had it.

    librbd blocklists the owner first, so that what it still sends can no longer be written.
    """
    with cluster.image(path) as image:
        owners = list(image.lock_get_owners())
        if not owners:
            return None
        image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owners[0]["owner"])
        return str(owners[0]["owner"])


def break_lock_of(cluster: Cluster, path: ImagePath, addresses: Collection[str]) -> None:
    """Take the exclusive lock from a client that is fenced, known by its addresses, if it has it.

    Raises NotFound.
    """
    with cluster.image(path) as image:
        if _lock_owner(image) in addresses:
            for one in image.lock_get_owners():
                image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, one["owner"])


# Snapshots


def take_snapshot(
    cluster: Cluster,
    path: ImagePath,
    snapshot: SnapshotName,
    *,
    protect: bool = False,
    exclusively: bool = False,
) -> int:
    """Take a snapshot, also while a guest uses the image; its size in bytes.

    One that is there already is taken for the one that is meant, unless it must be made
    `exclusively`: AlreadyExists.
    """
    with cluster.image(path) as image:
        if snapshot not in {found["name"] for found in image.list_snaps()}:
            _with_lock(image, lambda: image.create_snap(snapshot))
        elif exclusively:
            raise AlreadyExists(
                f"snapshot {path.name}@{snapshot} exists in Ceph, made by somebody else. "
                "Choose another name."
            )
        else:
            free_lock(image)
        if protect and not image.is_protected_snap(snapshot):
            image.protect_snap(snapshot)
        return int(image.size())


def snapshots(cluster: Cluster, path: ImagePath) -> Sequence[str]:
    """The names of the image's snapshots; none if the image is gone."""
    try:
        with cluster.image(path, read_only=True) as image:
            return sorted(str(found["name"]) for found in image.list_snaps())
    except NotFound:
        return []


def protect_snapshot(
    cluster: Cluster, path: ImagePath, snapshot: SnapshotName, protect: bool
) -> None:
    """Make Ceph itself refuse to delete the snapshot, or let it again."""
    with cluster.image(path) as image:
        if image.is_protected_snap(snapshot) != protect:
            (image.protect_snap if protect else image.unprotect_snap)(snapshot)
        else:
            free_lock(image)


def remove_snapshot(cluster: Cluster, path: ImagePath, snapshot: SnapshotName) -> None:
    """Delete a snapshot that has no clones, protected or not; quiet if it or the image is gone."""
    try:
        with cluster.image(path) as image:
            if snapshot in {found["name"] for found in image.list_snaps()}:
                # An `unprotect` that was interrupted has told the database only.
                if image.is_protected_snap(snapshot):
                    image.unprotect_snap(snapshot)
                _with_lock(image, lambda: image.remove_snap(snapshot))
            else:
                free_lock(image)
    except NotFound:
        return


def _with_lock(image: rbd.Image, change: Callable[[], None]) -> None:
    """Make a change that takes a snapshot id, with virtkit's key and while a guest writes on.

    librbd would ask the lock's owner, a guest with the tenant's key, to do it. That key can't
    allocate or drop snapshot ids (whoever can may drop those of every tenant in the pool), so
    the guest hands the lock over for a moment. An empty write asks for it as any writer does.
    `lock_acquire` would not: it keeps the lock until it is given back, and a guest that writes
    meanwhile is told that its disk is read-only. The price is that the guest may have the lock
    back before the change has begun, and then it is done over.
    """
    if not image.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
        change()
        return
    give_up = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        image.write(b"", 0)
        try:
            change()
            return
        except (rbd.PermissionError, rbd.ReadOnlyImage):
            if time.monotonic() > give_up:
                raise


def free_lock(image: rbd.Image) -> None:
    """Free an image, with which nothing is left to be done, of the lock of a client that died.

    A command that was killed in mid-change leaves the image locked by a client that is no more,
    and a tenant's guest can't break that: its writes end with EACCES. The command that is run
    again breaks the lock if it has anything to change. If not, an empty write does it: a client
    that lives hands the lock over for a moment, one that died is waited for until Ceph forgets
    it (30 s), and cut off.
    """
    if image.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK and list(image.lock_get_owners()):
        image.write(b"", 0)


def _parent(image: rbd.Image) -> tuple[ImagePath, str] | None:
    try:
        spec = image.get_parent_image_spec()
    except rbd.ImageNotFound:
        return None
    path = ImagePath(
        pool=PoolName(spec["pool_name"]),
        namespace=TenantName(spec["pool_namespace"]),
        name=ImageName(spec["image_name"]),
    )
    return path, spec["snap_name"]


def _others(image: rbd.Image) -> tuple[str, ...]:
    # A read-only handle does not watch, so what is found is always somebody else.
    return tuple(sorted(str(watcher["addr"]) for watcher in image.watchers_list()))


def _lock_owner(image: rbd.Image) -> str | None:
    # `lock_get_owners` refuses read-only handles.
    found = image.list_lockers()
    return str(found["lockers"][0][2]) if found and found["lockers"] else None


def _by(found: tuple[str, ...]) -> str:
    return f" on {', '.join(found)}" if found else ""
