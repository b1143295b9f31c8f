"""Which datapath this host's kernel can run: Open vSwitch's own, or none."""

import errno

from pyroute2.netlink import genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket


def kernel_has_datapath() -> bool:
    """Whether the kernel has Open vSwitch's datapath, loading its module if it can.

    `datapath_types` of the local database lists `system` either way. What tells is the kernel's
    generic netlink family: looking it up makes the kernel load the module that provides it.
    """
    with GenericNetlinkSocket() as socket:
        try:
            socket.bind("ovs_datapath", genlmsg)
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return False
            raise
    return True
