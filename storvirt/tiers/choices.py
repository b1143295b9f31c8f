"""The ways there are to put a cache before a disk, what each costs, and what to do instead of one
that is not possible here. Pure.
"""

from dataclasses import dataclass
from enum import StrEnum


class Backend(StrEnum):
    """What implements a tier."""

    POOL = "pool"
    CLIENT = "client"
    PARENT = "parent"
    GOLDEN = "golden"
    FAST_POOL = "fast-pool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What holds for a back end wherever it runs. `begin` is the command that makes one."""

    before: str
    acknowledged_bytes: str
    cost_of_loss: str
    begin: str


TRAITS = {
    Backend.POOL: Traits(
        before="a pool",
        acknowledged_bytes="in the cache pool until they are flushed (writeback), "
        "else in the base pool",
        cost_of_loss="writeback: what is not flushed yet; readonly and proxy: nothing",
        begin="svctl tier create POOL --cache CACHE",
    ),
    Backend.CLIENT: Traits(
        before="an image, on the host of its guest",
        acknowledged_bytes="on that host's SSD alone until they are written back",
        cost_of_loss="with the host or its SSD, every write not yet written back",
        begin="svctl tier create IMAGE --backend client --path DIRECTORY",
    ),
    Backend.PARENT: Traits(
        before="the parents of clones, on each host",
        acknowledged_bytes="in the pool: this cache only reads",
        cost_of_loss="nothing",
        begin="svctl tier create IMAGE --backend parent",
    ),
    Backend.GOLDEN: Traits(
        before="a golden image, in each host's RAM or SSD",
        acknowledged_bytes="in the pool: this cache only reads",
        cost_of_loss="nothing: blocks are fetched again",
        begin="svctl golden create NAME --from IMAGE@SNAPSHOT",
    ),
    Backend.FAST_POOL: Traits(
        before="nothing: the image moves to a pool of faster devices while it is in use",
        acknowledged_bytes="in the pool that the image is in",
        cost_of_loss="there is no cache to lose",
        begin="svctl migrate IMAGE --to-pool POOL",
    ),
}

# What does the same job best where a back end of librbd's is missing.
ALTERNATIVES = {
    Backend.CLIENT: f"a write-back cache pool: {TRAITS[Backend.POOL].begin}",
    Backend.PARENT: f"the golden cache: {TRAITS[Backend.GOLDEN].begin}",
}

# librbd's settings, as an image's metadata carries them, for the back ends it implements.
PLUGINS = {Backend.CLIENT: "pwl_cache", Backend.PARENT: "parent_cache"}


def image_configuration(backend: Backend, *, path: str, size_bytes: int) -> dict[str, str]:
    """What librbd must be told to open an image with one of its own caches.

    See https://docs.ceph.com/en/pacific/rbd/rbd-persistent-write-back-cache/ and
    https://docs.ceph.com/en/pacific/rbd/rbd-persistent-read-only-cache/.
    """
    if backend is Backend.CLIENT:
        return {
            "rbd_plugins": PLUGINS[backend],
            "rbd_persistent_cache_mode": "ssd",
            "rbd_persistent_cache_path": path,
            "rbd_persistent_cache_size": str(size_bytes),
        }
    return {"rbd_plugins": PLUGINS[backend], "rbd_parent_cache_enabled": "true"}
