"""A tenant's block server on this host: started in place of a killed one, attached to, shown."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, NoReturn

from storvirt import caps, hypervisor
from storvirt.backends import golden_server, images, keys
from storvirt.backends.cluster import DEFAULT_TIMEOUT_S, Cluster
from storvirt.backends.golden_server import State
from storvirt.golden import CHUNK_BYTES, Counters
from storvirt.model import ImageName, ImagePath, PoolName, TenantName
from storvirt.service import catalog, golden_catalog
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.errors import InvalidRequest, NotFound, Refused, VerificationFailed
from tenancy.names import parse_size
from tenancy.settings import GoldenSettings

BUILT = Path(__file__).resolve().parents[2] / "build" / "nbdkit-virtkit-golden-plugin.so"
# Guests wait this long for a server that is away, and then get errors.
PATIENCE_S = 3600
# Less could not hold what the guests of a host are reading at one moment.
LEAST_CHUNKS = 16
PARALLEL_UNLOCKS = 16


class Prepared(NamedTuple):
    """What the server is told that only the fabric and the cluster know."""

    tenant: str
    user: str
    conf: str
    lock: int


class Report(NamedTuple):
    """A tenant's server on this host; counters are those of the last one if none runs."""

    tenant: str
    runs: bool
    socket: str
    counters: Counters | None


class Attachment(NamedTuple):
    """A disk behind a host's block server; `node` is its name as a QEMU block node."""

    path: ImagePath
    node: str
    socket: str
    patience_s: int


def prepare(fabric: Fabric, cluster: Cluster, tenant: str) -> Prepared:
    """Take the place of a killed server: nothing of it can reach the OSDs afterwards.

    Raises Refused if one runs.
    """
    tenants.find(fabric, tenant)
    secret = keys.secret(cluster, caps.entity(TenantName(tenant)))
    if secret is None:
        if not catalog.namespaces(fabric, tenant):
            raise Refused(
                f"tenant {tenant} has no namespace in any pool. "
                f"Create it: svctl namespace create {tenant} --pool POOL."
            )
        raise VerificationFailed(
            f"Ceph has lost the key {caps.entity(TenantName(tenant))}. "
            f"Make it again: svctl namespace repair {tenant} --pool POOL."
        )
    state = State.of(tenant)
    lock = golden_server.reserve(state, tenant)
    _bury(cluster, tenant, state)
    user = caps.user(TenantName(tenant))
    conf = hypervisor.server_conf(cluster.fsid, cluster.monitors(), user, secret, DEFAULT_TIMEOUT_S)
    return Prepared(tenant, user, conf, lock)


def serve(
    prepared: Prepared, settings: GoldenSettings, owner: str | None, trace: Path | None
) -> NoReturn:
    """Become the server. `owner` is the user that hypervisors run as."""
    limit = parse_size("limit", settings.limit)
    if limit < LEAST_CHUNKS * CHUNK_BYTES:
        raise InvalidRequest(
            f"[golden] limit {settings.limit} is too small for a cache. "
            f"Choose at least {LEAST_CHUNKS}MiB."
        )
    state = State.of(prepared.tenant)
    plugin = settings.plugin or (str(BUILT) if BUILT.exists() else golden_server.PLUGIN_NAME)
    golden_server.become_server(
        state,
        golden_server.listen(state, owner),
        prepared.conf,
        user=prepared.user,
        namespace=prepared.tenant,
        cache=Path(settings.directory),
        limit_bytes=limit,
        plugin=plugin,
        trace=trace,
        lock=prepared.lock,
    )


def status(settings: GoldenSettings) -> tuple[int, list[Report]]:
    """Bytes in this host's cache, and its servers."""
    used = golden_server.cache_bytes(Path(settings.directory))
    reports = []
    for tenant in golden_server.tenants():
        state = State.of(tenant)
        reports.append(
            Report(tenant, golden_server.runs(state), str(state.socket), state.counters())
        )
    return used, reports


def attach(fabric: Fabric, tenant: str, name: ImageName) -> Attachment | None:
    """How a hypervisor of any host reaches a ready image through that host's cache; None if it is
    no clone of a golden image."""
    entry = catalog.ready_image(fabric, tenant, name)
    if not golden_catalog.is_golden_clone(fabric, entry):
        return None
    return Attachment(
        path=entry.record.path,
        node=f"virtkit-{entry.row.id.hex[:12]}",
        socket=str(State.of(tenant).socket),
        patience_s=PATIENCE_S,
    )


def _bury(cluster: Cluster, tenant: str, state: State) -> None:
    """Fence a killed server and free the images that it had, which wait 30 s for it otherwise."""
    left = state.open_images()
    if not left:
        return
    golden_server.fence(cluster, state)
    fenced = set(state.client_addresses())

    def free(image: tuple[str, str]) -> None:
        pool, name = image
        path = ImagePath(pool=PoolName(pool), namespace=TenantName(tenant), name=name)
        try:
            images.break_lock_of(cluster, path, fenced)
        except NotFound:
            return

    with ThreadPoolExecutor(PARALLEL_UNLOCKS) as pool:
        list(pool.map(free, left))
    state.forget_open_images()
