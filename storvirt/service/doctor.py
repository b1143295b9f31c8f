"""What `svctl doctor` does: gather what is promised and what there is, judge, and mend.

Whatever does not answer is a finding and is not asked again in this run.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

from storvirt import caps, checks
from storvirt.backends import cluster_facts, images, keys, namespaces, osdkeys
from storvirt.backends.cluster import Cluster
from storvirt.checks import DeleteKey, GiveUp, PromisedImage, RemoveLeftover, Repair, SetCaps, Space
from storvirt.model import PoolName, State, TenantName
from storvirt.service import catalog, deleting
from storvirt.service import namespaces as tenancies
from storvirt.service.catalog import ImageEntry
from storvirt.service.unfinished import unfinished
from tenancy import database_checks
from tenancy.backends import database_facts
from tenancy.backends.fabric import Fabric
from tenancy.diagnosis import Finding, Key, Report, examine
from tenancy.errors import Conflict, NotFound, Refused, VirtkitError

# How long images are opened, one after the other, to see whether all that they need is there.
OPENING_S = 20.0

Connect = Callable[[], AbstractContextManager[Cluster]]


def run(db: str, connect: Connect, *, dry_run: bool) -> Report:
    """One whole check-up of storage."""
    checkup = _Checkup(db, connect)
    results = examine(checkup.look, checkup.mend, time.sleep, dry_run=dry_run)
    return Report(results=tuple(results), unseen=tuple(checkup.unseen))


class _Checkup:
    def __init__(self, db: str, connect: Connect) -> None:
        self._db = db
        self._connect = connect
        self._silent: dict[str, list[Finding]] = {}
        # What could not be looked at; in order, each once.
        self.unseen: dict[str, None] = {}

    # Looking

    def look(self) -> list[Finding]:
        found = self._asked("fabric database", self._look_at_database)
        if self._is_silent("fabric database"):
            self.unseen["images, namespaces and keys: the database does not answer."] = None
            return found + self._asked("Ceph", self._look_at_ceph)
        return found + self._asked("Ceph", self._look_at_both)

    def _is_silent(self, what: str) -> bool:
        return any(one.kind == "database-silent" for one in self._silent.get(what, ()))

    def _asked(self, what: str, look: Callable[[], list[Finding]]) -> list[Finding]:
        if what not in self._silent:
            try:
                return look()
            except VirtkitError as error:
                text, _, advice = str(error).partition(". ")
                remedy = advice.rstrip(".") or "see `ceph -s`"
                finding = Finding(kind="ceph-silent", object=what, found=text, remedy=remedy)
                self._silent[what] = [finding]
                self.unseen["what only Ceph knows: it does not answer, or not all of it."] = None
        return list(self._silent[what])

    def _look_at_database(self) -> list[Finding]:
        found = [database_facts.ask(remote) for remote in self._db.split(",")]
        findings = database_checks.servers(found, database_facts.own_schema())
        if all(one.failure is not None for one in found):
            self._silent["fabric database"] = findings
        return findings

    def _look_at_ceph(self) -> list[Finding]:
        with self._connect() as cluster:
            return _look_at_cluster(cluster)

    def _look_at_both(self) -> list[Finding]:
        with Fabric.connect(self._db) as fabric, self._connect() as cluster:
            findings = _look_at_cluster(cluster)
            if any(one.kind == "ceph-health" for one in findings):
                # An OSD that is away is waited for, with each image anew.
                self.unseen["whether images can be opened: Ceph is not well."] = None
                deadline = 0.0
            else:
                deadline = time.monotonic() + OPENING_S
            return [*findings, *self._look_at_promises(fabric, cluster, deadline)]

    def _look_at_promises(self, fabric: Fabric, cluster: Cluster, deadline: float) -> list[Finding]:
        entries = catalog.images(fabric)
        promised = [_promised(entry) for entry in entries]
        spaces = [
            _space(cluster, entry.record.tenant, entry.record.pool, entry.record.state)
            for entry in catalog.namespaces(fabric)
        ]
        held = {space.tenant for space in spaces}
        in_flux = frozenset(space.tenant for space in spaces if space.state is not State.READY)
        wanted = {
            tenant: found
            for tenant in held
            if (found := tenancies.wanted_caps(fabric, cluster, tenant)) is not None
        }
        return [
            *checks.spaces(spaces),
            *checks.images(promised, spaces, busy=cluster_facts.others_connected(cluster)),
            *checks.keys(
                keys.all_caps(cluster, caps.ENTITY_PREFIX),
                wanted,
                in_flux,
                frozenset(pool.name for pool in catalog.pools(fabric)),
            ),
            *checks.layers(self._layers(fabric, cluster, entries, spaces, deadline)),
            *checks.others(unfinished(fabric)),
        ]

    def _layers(
        self,
        fabric: Fabric,
        cluster: Cluster,
        entries: Sequence[ImageEntry],
        spaces: Sequence[Space],
        deadline: float,
    ) -> Iterator[checks.Layer]:
        """Images with a parent or with snapshots, as Ceph has them, as long as there is time."""
        here = {(space.tenant, space.pool): space.images or frozenset() for space in spaces}
        of_image: dict[object, set[str]] = {}
        for row in fabric.select("Snapshot", state=State.READY):
            of_image.setdefault(row["image"], set()).add(row["name"])
        left = 0
        for entry in entries:
            record, snapshots = entry.record, of_image.get(entry.row.id, set())
            is_there = record.name in here.get((record.tenant, record.pool), ())
            if record.state is not State.READY or entry.row["moving"] or not is_there:
                continue
            if record.parent is None and not snapshots:
                continue
            if time.monotonic() > deadline:
                left += 1
                continue
            yield _layer(cluster, entry, frozenset(snapshots))
        if left and deadline:
            self.unseen[f"{left} images, for lack of time: whether they can be opened."] = None

    # Mending

    def mend(self, findings: Sequence[Finding]) -> Mapping[Key, str]:
        failures: dict[Key, str] = {}
        for one in findings:
            try:
                with Fabric.connect(self._db) as fabric, self._connect() as cluster:
                    _mend(fabric, cluster, one.mend)
            except VirtkitError as error:
                failures[one.key] = str(error)
        return failures


def _mend(fabric: Fabric, cluster: Cluster, what: object) -> None:
    match what:
        case GiveUp(tenant, name, row_id):
            _refuse_busy(cluster)
            entry = catalog.find_image(fabric, tenant, name)
            if entry is None or entry.row.id != row_id:
                return
            if entry.record.state in (State.CREATING, State.DELETING):
                outcome = deleting.delete(fabric, cluster, tenant, [name])
                for _, error in outcome.failed:
                    raise error
        case RemoveLeftover(path):
            _refuse_busy(cluster)
            images.remove(cluster, path)
        case SetCaps(tenant):
            tenancies.set_caps(fabric, cluster, tenant)
        case DeleteKey(entity):
            _delete_key(fabric, cluster, entity)
        case Repair(tenant, pool):
            tenancies.repair(fabric, cluster, tenant, pool)


def _delete_key(fabric: Fabric, cluster: Cluster, entity: str) -> None:
    """Delete a key that no tenant has. Raises Refused if images are where it would lead."""
    tenant = TenantName(entity.removeprefix(caps.ENTITY_PREFIX))
    if any(one.record.tenant == tenant for one in catalog.namespaces(fabric)):
        return
    for pool in catalog.pools(fabric):
        if namespaces.images(cluster, pool.name, tenant):
            raise Refused(
                f"namespace {pool.name}/{tenant} has images, which may be another fabric's. "
                f"If they are nobody's: ceph auth del {entity}."
            )
    keys.delete(cluster, entity)


def _refuse_busy(cluster: Cluster) -> None:
    if cluster_facts.others_connected(cluster):
        raise Conflict(
            "somebody else has connected to Ceph with virtkit's key and may be at it. "
            "Run the doctor again."
        )


def _look_at_cluster(cluster: Cluster) -> list[Finding]:
    return [
        *checks.health(cluster_facts.health(cluster)),
        *checks.clocks(
            cluster_facts.clock_offset_s(cluster), cluster_facts.skewed_monitors(cluster)
        ),
        *checks.versions(cluster_facts.versions(cluster), cluster_facts.own_release()),
        *checks.wide_keys(sorted(osdkeys.wide(cluster))),
    ]


def _promised(entry: ImageEntry) -> PromisedImage:
    row, record = entry.row, entry.record
    return PromisedImage(
        id=row.id,
        path=record.path,
        state=record.state,
        source=record.source,
        moving=bool(row["moving"]),
        rollback=row["rollback"] is not None,
        old_name=row["old_name"],
    )


def _space(cluster: Cluster, tenant: TenantName, pool: PoolName, state: State) -> Space:
    try:
        there = namespaces.exists(cluster, pool, tenant)
        found = frozenset(namespaces.images(cluster, pool, tenant)) if there else None
    except NotFound:
        found = None
    return Space(tenant=tenant, pool=pool, state=state, images=found)


def _layer(cluster: Cluster, entry: ImageEntry, snapshots: frozenset[str]) -> checks.Layer:
    path = entry.record.path
    parent = entry.record.parent
    try:
        found = images.describe(cluster, path)
        there = frozenset(images.snapshots(cluster, path)) if snapshots else frozenset()
    except VirtkitError as error:
        return checks.Layer(path=path, wants_parent=parent, failure=str(error).rstrip("."))
    return checks.Layer(
        path=path,
        wants_parent=parent,
        parent=found.parent,
        wants_snapshots=snapshots,
        snapshots=there,
    )


@contextmanager
def connected(conf: str, user: str, timeout_s: int, osd_timeout_s: int) -> Iterator[Cluster]:
    """A connection to Ceph with these bounds."""
    with Cluster.connect(conf, user, timeout_s=timeout_s, osd_timeout_s=osd_timeout_s) as cluster:
        yield cluster
