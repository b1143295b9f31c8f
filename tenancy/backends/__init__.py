"""What speaks to the fabric database: the only modules of `tenancy` that open a socket."""

import sys

# `ovs.poller` loads eventlet wherever it finds it installed, warns, and takes 100 ms for it.
# virtkit uses native threads only, so it says that there is no eventlet.
sys.modules.setdefault("eventlet", None)  # type: ignore[arg-type]
