"""What a tenant's cephx key may do: reach its own namespaces, and nothing else.

Not `profile rbd pool=P namespace=T`, for two reasons, both found on a real cluster:

- Its monitor half may blocklist any client address, so one tenant could cut off another, and
  may drop any snapshot id of the pool, so one could destroy another's snapshots.
- Its OSD half names one pool. Behind a cache tier (`svctl tier create`) requests go to the cache
  pool instead, and every running guest would get EPERM in mid-write. Caps by *application tag*
  follow the tier by themselves: Ceph copies the base pool's tags to its tiers, and OSDs compare
  tags at each request, so not even open sessions notice.

The price: a guest whose host died holds the exclusive lock of its images until an operator
releases it (`svctl image unlock`, which fences the dead host first), and tenants take snapshots
through virtkit, which has quotas for them, not with stock tools.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from storvirt.model import PoolName, TenantName

# The tag `rbd: virtkit=<pool>` on every pool that virtkit gives to tenants.
APPLICATION = "rbd"
TAG = "virtkit"
# The tag that a pool carries instead while tenants may only read there: behind a read-only cache
# their writes would land in the cache. Tags are compared at each request, so it holds at once.
READ_ONLY_TAG = "virtkit-read-only"
# Not a tag that caps refer to: what a cache pool was like before it was held (see
# `storvirt.tiers.steps`), noted on its base.
HOLD_NOTE = "virtkit-hold"

ENTITY_PREFIX = "client.virtkit."

# The tag `rbd: virtkit-tier=yes` on the two pools of a cache tier, while there is one.
TIER_TAG = "virtkit-tier"
# What one OSD may ask of another as a client. Ceph's own default, `allow *`, breaks all isolation:
# an OSD that is told to copy an object (CEPH_OSD_OP_COPY_FROM, `rados cp`) fetches the source with
# its *own* key and does not ask whether the client may read it. So any key that may write
# somewhere can read everything, in every pool and namespace. Only cache tiers need such copies.
OSD_WIDE = "allow *"
OSD_NARROW = f"allow * tag {APPLICATION} {TIER_TAG}=yes"


def entity(tenant: TenantName) -> str:
    """The cephx name of a tenant."""
    return f"{ENTITY_PREFIX}{tenant}"


def user(tenant: TenantName) -> str:
    """`entity` as librados, QEMU and libvirt take it: without `client.`."""
    return entity(tenant).removeprefix("client.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedImage:
    """Another tenant's image that may be read, as the parent of clones: where, and its objects."""

    namespace: TenantName
    id: str
    data_prefix: str


def for_tenant(
    tenant: TenantName, pools: Iterable[PoolName], shared: Iterable[SharedImage] = ()
) -> dict[str, str]:
    """The caps, by service, of a tenant that has a namespace in each of `pools`.

    Reading the monitor map and the OSD map is what any RBD client must do. Opening an image also
    lists the pool's settings, which RBD keeps on the object `rbd_info` outside all namespaces.
    """
    grants = [
        f"allow {rights} namespace={tenant} tag {APPLICATION} {tag}={pool}"
        for pool in pools
        for rights, tag in (("rwx", TAG), ("r class-read", READ_ONLY_TAG))
    ]
    parents = sorted(set(shared), key=lambda image: (image.namespace, image.id))
    return {
        "mon": "allow service mon r, allow service osd r",
        "osd": ", ".join(
            [
                *sorted(grants),
                "allow class rbd metadata_list object_prefix rbd_info",
                *_directories(parents),
                *(grant for image in parents for grant in _reading(image)),
            ]
        ),
    }


def _directories(images: Iterable[SharedImage]) -> list[str]:
    # librbd asks for the name of an image that it opens by id. Nothing else of the directory is
    # to be had: a list of all names would be another method.
    return [
        f"allow class rbd dir_get_name namespace={namespace} object_prefix rbd_directory"
        for namespace in sorted({image.namespace for image in images})
    ]


def _reading(image: SharedImage) -> list[str]:
    """What opening a clone needs of its parent, and no more.

    Not `r` on the header: that would let the tenant send notifications to whoever has the image
    open, and librbd resizes an image, or drops its snapshots, when a notification asks it to.
    A prefix can't be joined with a tag. It needs no pool: ids are not used twice in a cluster.
    """
    within = f"namespace={image.namespace} object_prefix"
    return [
        f"allow r {within} {image.data_prefix}.",
        f"allow class-read {within} rbd_header.{image.id}",
        f"allow class-read {within} rbd_object_map.{image.id}.",
    ]
