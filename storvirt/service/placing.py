"""Hosts ranked for images' VMs: by where their reads are answered, and by load."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storvirt.backends import layers, osdmaps
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, ImagePath, PoolName
from storvirt.placement import heat as heats
from storvirt.placement import osdmap
from storvirt.placement.heat import HeatMap
from storvirt.placement.layout import Layer, first_served
from storvirt.placement.objectives import group_weights, object_weights
from storvirt.placement.osdmap import OsdMap
from storvirt.placement.ranking import (
    Group,
    Locality,
    Objective,
    Option,
    RankedHost,
    locality,
    named,
    options,
    rank,
    spread,
)
from storvirt.service import catalog
from storvirt.service.catalog import ImageEntry
from tenancy.backends.fabric import Fabric
from tenancy.errors import InvalidRequest, NotFound, Refused

# More than any cluster runs; a slip of the keyboard would otherwise be planned for minutes.
MOST_CLONES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an image's reads are answered, and the hosts for its VM, best first.

    `primary_host` serves the first object (None while its placement group has no primary).
    `ranking[0]` is the recommended host for one guest; `hosts` are those for as many as were
    asked for, each counted before the next. `read_from` names the image whose first object is
    read: a clone's parent until the clone has its own copy. `first_share` is the share of the
    counted reads that goes to the first object; `options` say what would bring more.
    """

    image: str
    objective: Objective
    read_from: str
    object_name: str
    pool: str
    pg: str
    epoch: int
    acting: tuple[int, ...]
    primary_osd: int | None
    primary_host: str | None
    first_share: float
    groups: int
    ranking: tuple[RankedHost, ...]
    hosts: tuple[str, ...]
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstObject:
    """The object that a guest reads first, and the image that it belongs to."""

    image: ImagePath
    pool: PoolName
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Where an image's reads go by one objective, by placement group.

    `first_share` of them go to the object `first`, which has the image's first byte.
    """

    path: ImagePath
    first: FirstObject
    first_share: float
    groups: Mapping[Group, float]


def place(
    fabric: Fabric,
    cluster: Cluster,
    tenant: str,
    names: Sequence[ImageName],
    *,
    objective: Objective = Objective.FIRST_OBJECT,
    count: int = 1,
) -> list[Placement]:
    """The placement of images by one osdmap and the load that the fabric knows.

    `count` guests of each are placed, in the order of the names. Raises Refused for an image
    that the objective says nothing of.
    """
    if not 1 <= count <= MOST_CLONES:
        raise InvalidRequest(f"--count {count} can't be placed. Choose 1 to {MOST_CLONES}.")
    entries = [catalog.ready_image(fabric, tenant, name) for name in names]
    cache: layers.Cache = {}
    newest = osdmaps.read(cluster)
    _refuse_hostless(newest)
    found = [reads(cluster, newest, entry, objective, cache) for entry in entries]
    near = [locality(newest, one.groups) for one in found]
    running = guests(fabric)
    hosts = spread(
        newest,
        [local for local in near for _ in range(count)],
        running,
        coming=count * len(near),
    )
    return [
        _placement(newest, one, objective, local, running, hosts[at * count : (at + 1) * count])
        for at, (one, local) in enumerate(zip(found, near, strict=True))
    ]


def reads(
    cluster: Cluster,
    newest: OsdMap,
    entry: ImageEntry,
    objective: Objective,
    cache: layers.Cache | None = None,
) -> Reads:
    """Where the reads of an image go that the objective counts. Raises Refused."""
    path = entry.record.path
    # One small request for each generation, where the whole would need its object maps.
    first_only = objective is Objective.FIRST_OBJECT
    generations = layers.read(cluster, path, first_only=first_only, cache=cache)
    recorded = recorded_heat(generations) if objective is Objective.HEAT else None
    weights = object_weights(str(path), generations, objective, recorded)
    depth, number = first_served(generations)
    layer = generations[depth]
    return Reads(
        path=path,
        first=FirstObject(
            image=layer.path,
            pool=layer.pool,
            namespace=layer.namespace,
            name=layer.object_name(number),
        ),
        first_share=weights.get((depth, number), 0.0) / sum(weights.values()),
        groups=group_weights(newest, generations, weights),
    )


def recorded_heat(generations: Sequence[Layer]) -> HeatMap | None:
    """The youngest generation's own heat map. Raises VerificationFailed if it is damaged.

    Clones have a copy of their parent's metadata from when they were made; it is passed over.
    """
    for layer in generations:
        if layer.heat is not None:
            found = heats.decode(layer.image, layer.heat)
            if found.image_id == layer.id:
                return found
    return None


def guests(fabric: Fabric) -> dict[str, int]:
    """How many ports, of VMs and containers alike, are bound on each CRUSH host now."""
    hosts, bindings = fabric.select_many([("Host", {}), ("Binding", {"active": True})])
    crush_host: dict[str, str] = {
        row["name"]: row["crush_host"] if row["crush_host"] else row["name"] for row in hosts
    }
    return Counter(crush_host.get(row["host"], str(row["host"])) for row in bindings)


def crush_host(fabric: Fabric, newest: OsdMap, host: str) -> str:
    """The CRUSH host of a host of the fabric, or of Ceph. Raises NotFound or Refused."""
    row = fabric.find("Host", name=host)
    name = str(row["crush_host"] or host) if row else host
    if name not in newest.capacity:
        known = ", ".join(sorted(newest.capacity)) or "none"
        if row:
            raise Refused(
                f"host {host} has no OSD (no CRUSH host {name}), so no read can be served there. "
                f"Choose one of: {known}."
            )
        raise NotFound(f"host {host} is not known. Hosts with OSDs: {known}.")
    if not newest.capacity[name]:
        raise Refused(f"none of the OSDs of host {name} is up. Start one, or choose another host.")
    return name


def _placement(
    newest: OsdMap,
    found: Reads,
    objective: Objective,
    local: Locality,
    running: Mapping[str, int],
    hosts: tuple[str, ...],
) -> Placement:
    ranking = rank(newest, local, running)
    first = found.first
    pool = newest.serving(newest.pool(first.pool))
    location = osdmap.locate(pool, first.namespace, first.name)
    return Placement(
        image=str(found.path),
        objective=objective,
        read_from=str(first.image),
        object_name=first.name,
        pool=location.pool,
        pg=location.pg,
        epoch=newest.epoch,
        acting=location.acting.osds,
        primary_osd=location.acting.primary,
        primary_host=named(location, newest),
        first_share=round(found.first_share, 4),
        groups=len(found.groups),
        ranking=ranking,
        hosts=hosts,
        options=options(newest, found.groups, hosts[0]),
    )


def _refuse_hostless(newest: OsdMap) -> None:
    if not newest.capacity:
        raise Refused("the cluster has no OSD on any host, so no host is nearer than another.")
