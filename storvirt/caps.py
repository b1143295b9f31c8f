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

from storvirt.model import PoolName, TenantName

# The tag `rbd: virtkit=<pool>` on every pool that virtkit gives to tenants.
APPLICATION = "rbd"
TAG = "virtkit"
# The tag that a pool carries instead while tenants may only read there: behind a read-only cache
# their writes would land in the cache. Tags are compared at each request, so it holds at once.
READ_ONLY_TAG = "virtkit-read-only"
# Not a tag that caps refer to: what a cache pool was like before it was held (see
# `storvirt.tiering`), noted on its base.
HOLD_NOTE = "virtkit-hold"

ENTITY_PREFIX = "client.virtkit."


def entity(tenant: TenantName) -> str:
    """The cephx name of a tenant."""
    return f"{ENTITY_PREFIX}{tenant}"


def user(tenant: TenantName) -> str:
    """`entity` as librados, QEMU and libvirt take it: without `client.`."""
    return entity(tenant).removeprefix("client.")


def for_tenant(tenant: TenantName, pools: Iterable[PoolName]) -> dict[str, str]:
    """The caps, by service, of a tenant that has a namespace in each of `pools`.

    Reading the monitor map and the OSD map is what any RBD client must do. Opening an image also
    lists the pool's settings, which RBD keeps on the object `rbd_info` outside all namespaces.
    """
    grants = [
        f"allow {rights} namespace={tenant} tag {APPLICATION} {tag}={pool}"
        for pool in pools
        for rights, tag in (("rwx", TAG), ("r class-read", READ_ONLY_TAG))
    ]
    return {
        "mon": "allow service mon r, allow service osd r",
        "osd": ", ".join([*sorted(grants), "allow class rbd metadata_list object_prefix rbd_info"]),
    }
