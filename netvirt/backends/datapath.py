"""Which of Open vSwitch's datapaths this host can have."""

import errno

from pyroute2 import NetlinkError
from pyroute2.netlink import genlmsg
from pyroute2.netlink.generic import GenericNetlinkSocket

KERNEL, USERSPACE = "system", "netdev"


def datapath_type() -> str:
    """The kernel's datapath where there is one, else the one in userspace.

    What ovs-vswitchd lists as `datapath_types` is what it was built with, so the kernel is asked.
    It loads the module on this question if it has it.
    """
    try:
        with GenericNetlinkSocket() as netlink:
            netlink.bind("ovs_datapath", genlmsg)
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise
        return USERSPACE
    return KERNEL
