"""How far an image's move to another pool is, as its row says it. Pure.

A move of an image that nobody has open is RBD's own live migration: from PREPARE on the image
opens in the new pool, and what is not copied yet is read from the old one. A move under a running
guest is a mirror that its QEMU makes, because RBD can only prepare an image that is closed.

The row names the other pool's namespace beside the phase: where the image goes until the row says
that it is there, where it comes from afterwards.
"""

from enum import StrEnum

from storvirt.model import ImageName, PoolName, TenantName
from tenancy.errors import Refused


class Phase(StrEnum):
    """What is being done. Each phase can be interrupted and is safe to repeat."""

    PREPARE = "prepare"
    EXECUTE = "execute"
    ABORT = "abort"
    MIRROR = "mirror"
    SWITCH = "switch"
    CLEAN = "clean"


# The row still stands for the image in the old pool.
AT_SOURCE = (Phase.PREPARE, Phase.MIRROR, Phase.SWITCH)
# What has the guest's QEMU in it.
UNDER_GUEST = (Phase.MIRROR, Phase.SWITCH)


def in_the_way(tenant: TenantName, name: ImageName, phase: Phase, pool: PoolName) -> Refused:
    """The error of a command that a move does not go together with."""
    return Refused(
        f"image {name} is being moved ({phase}). Finish that: svctl migrate {name} "
        f"--to-pool {pool} --tenant {tenant}, or undo it with --abort."
    )


def cannot_abort(name: ImageName, pool: PoolName) -> Refused:
    return Refused(
        f"image {name} is in pool {pool} for good: all of it is copied, and only what is left in "
        "the old pool is to be removed. Run the same command without --abort; to go back, move it "
        "back."
    )
