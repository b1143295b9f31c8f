"""Heat maps of images: recorded from a boot or a trace file, shown, forgotten."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storvirt.backends import images, layers, notes, tracing
from storvirt.backends.cluster import DEFAULT_TIMEOUT_S, OSD_TIMEOUT_S, Cluster
from storvirt.backends.tracing import BootRequest, Ended
from storvirt.hypervisor import client_conf
from storvirt.model import ImageName, SnapshotName, SnapshotRef, State
from storvirt.placement import heat
from storvirt.placement.heat import HeatMap, Read
from storvirt.service import attaching, catalog, placing
from storvirt.service.catalog import ImageEntry
from tenancy.backends.fabric import Fabric
from tenancy.errors import InvalidRequest, NotFound, Refused

LONGEST_TRACE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatReport:
    """A heat map, and the image that it was recorded on: the one asked for, or its golden image."""

    image: str
    recorded_on: str
    heat: HeatMap
    ended: Ended | None = None


def record(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    name: ImageName,
    snapshot: SnapshotName | None,
    request: BootRequest,
    progress: Callable[[int], None],
) -> HeatReport:
    """Boot the image once, on a copy that leaves nothing, and keep what it read as its heat map.

    Raises Refused if the image is open for writing and no snapshot of it is named.
    """
    entry = catalog.ready_image(fabric, tenant, name)
    path = entry.record.path
    _refuse_missing(request)
    if snapshot is not None:
        found = catalog.snapshot(fabric, tenant, SnapshotRef(image=name, snapshot=snapshot))
        if found.record.state is not State.READY:
            raise Refused(f"snapshot {name}@{snapshot} is {found.record.state}. Name another.")
    elif users := images.users(cluster, path):
        raise Refused(
            f"image {name} is open on {', '.join(users)} and changes while it would be read. "
            f"Name a snapshot of it: svctl heat record {name}@SNAPSHOT."
        )
    generations = layers.read(cluster, path, snapshot=snapshot)
    connection = attaching.connection(cluster, entry, path)
    recording = tracing.boot(
        path,
        snapshot,
        generations[0].reach_bytes,
        client_conf(connection, DEFAULT_TIMEOUT_S, OSD_TIMEOUT_S),
        connection.user,
        request,
        progress,
    )
    return _keep(cluster, entry, list(recording.reads), recording.ended)


def import_trace(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, file: Path
) -> HeatReport:
    """Take the heat map from a trace: a line `OFFSET LENGTH` in bytes for each read."""
    entry = catalog.ready_image(fabric, tenant, name)
    try:
        if not file.is_file():
            raise NotFound(f"file {file} is not there, or is no file. Check the path.")
        if file.stat().st_size > LONGEST_TRACE_BYTES:
            raise InvalidRequest(f"file {file} is longer than a boot's trace. Cut it.")
        text = file.read_text()
    except OSError as error:
        raise InvalidRequest(f"file {file} can't be read: {error.strerror}. Check it.") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"file {file} is no text ({error.reason}). Check it.") from error
    size = images.describe(cluster, entry.record.path).size_bytes
    return _keep(cluster, entry, heat.parse_trace(str(file), text, size), None)


def show(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> HeatReport:
    """The heat map that placement uses for the image. Raises NotFound."""
    path = catalog.ready_image(fabric, tenant, name).record.path
    generations = layers.read(cluster, path)
    found = placing.recorded_heat(generations)
    if found is None:
        raise NotFound(
            f"image {name} has no heat map, nor has the image it is a clone of. "
            f"Record one: svctl heat record {name} --tenant {tenant}."
        )
    (layer,) = (layer for layer in generations if layer.id == found.image_id)
    return HeatReport(image=str(path), recorded_on=layer.image, heat=found)


def forget(fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName) -> bool:
    """Remove the image's own heat map; False if it had none."""
    path = catalog.ready_image(fabric, tenant, name).record.path
    return notes.remove(cluster, path, heat.KEY)


def _keep(
    cluster: Cluster, entry: ImageEntry, reads: list[Read], ended: Ended | None
) -> HeatReport:
    path = entry.record.path
    (layer, *_) = layers.read(cluster, path)
    found = heat.collect(layer.id, layer.layout.object_bytes, int(time.time()), reads)
    notes.put(cluster, path, heat.KEY, heat.encode(found))
    return HeatReport(image=str(path), recorded_on=str(path), heat=found, ended=ended)


def _refuse_missing(request: BootRequest) -> None:
    for file in (request.kernel, request.initrd):
        if file is not None and not file.is_file():
            raise NotFound(f"file {file} is not there. Name the guest's kernel and initrd.")
    if request.kernel is None and (request.initrd or request.append):
        raise InvalidRequest("--initrd and --append need a --kernel. Name it, or leave them out.")
