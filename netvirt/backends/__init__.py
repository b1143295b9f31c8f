"""What acts on a host for netvirt: switch, local OVSDB, links, frames. Nothing here decides."""

import sys

# `ovs.poller` loads eventlet wherever it finds it installed (os-ken requires it), warns, and
# takes 100 ms for it. virtkit uses native threads only, so it says that there is no eventlet.
sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]
