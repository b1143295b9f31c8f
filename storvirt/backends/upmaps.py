"""Writing into the osdmap which OSD leads a placement group.

A monitor gathers changes for about a second and publishes them as one new map, and it answers a
command only then. So commands are sent side by side: twenty take as long as one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from storvirt.backends.cluster import Cluster
from storvirt.placement.pins import Method, Pin, method_for

SIDE_BY_SIDE = 32


def method(cluster: Cluster) -> Method:
    """How this cluster lets a primary be chosen."""
    dump = cluster.command("osd dump")
    return method_for(dump["require_osd_release"], dump["require_min_compat_client"])


def write(cluster: Cluster, pins: Sequence[Pin]) -> None:
    """Put the pins into the map. Raises CommandFailed, or BackendUnavailable."""
    _each(pins, lambda pin: _set(cluster, pin, pin.wanted))


def restore(cluster: Cluster, pins: Sequence[Pin]) -> None:
    """Put back what stood in the map before, which mostly is nothing."""

    def back(pin: Pin) -> None:
        if pin.previous is not None:
            _set(cluster, pin, pin.previous)
        elif pin.method is Method.UPMAP:
            cluster.raw_command("osd rm-pg-upmap", pgid=pin.pg)
        else:
            cluster.raw_command("osd rm-pg-upmap-primary", pgid=pin.pg)

    _each(pins, back)


def _set(cluster: Cluster, pin: Pin, osds: tuple[int, ...]) -> None:
    if pin.method is Method.UPMAP:
        cluster.raw_command("osd pg-upmap", pgid=pin.pg, id=list(osds))
    else:
        cluster.raw_command("osd pg-upmap-primary", pgid=pin.pg, id=osds[0])


def _each(pins: Sequence[Pin], do: Callable[[Pin], None]) -> None:
    with ThreadPoolExecutor(max_workers=SIDE_BY_SIDE) as threads:
        for _ in threads.map(do, pins):
            pass
