"""Answers of `svctl place` that were kept, looked at again when the map has changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from storvirt.backends import layers, osdmaps
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName, State
from storvirt.placement.ranking import Objective, locality, rank
from storvirt.service import catalog, placing
from storvirt.service.placing import Placement
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import VirtkitError

# A share that changed by less is not worth moving a guest for.
WORTH_SAYING = 0.05


class Verdict(StrEnum):
    """What became of an answer."""

    HOLDS = "holds"
    MOVED = "moved"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An answer that was kept, beside what the newest map says.

    `local` is the share of the counted reads that the host served then, `local_now` what it
    serves now; `host_now` is the host nearest to the reads now, whatever its load.
    """

    image: str
    objective: str
    host: str
    epoch: int
    local: float
    verdict: Verdict
    host_now: str | None
    local_now: float
    epoch_now: int
    reason: str


def keep(
    fabric: Fabric, tenant: str, names: Sequence[ImageName], found: Sequence[Placement]
) -> None:
    """Record each image's recommended host with the image."""

    def build(transaction: Transaction) -> None:
        for name, placement in zip(names, found, strict=True):
            host = placement.hosts[0]
            (ranked,) = (one for one in placement.ranking if one.host == host)
            entry = catalog.image(fabric, tenant, name)
            transaction.update(
                entry.row,
                {
                    "placement": {
                        "objective": placement.objective,
                        "host": host,
                        "epoch": str(placement.epoch),
                        "local": str(ranked.local),
                    }
                },
            )

    fabric.change(build)


def check(fabric: Fabric, cluster: Cluster, tenant: str, names: Sequence[ImageName]) -> list[Kept]:
    """The kept answers of the named images, or of all the tenant's, by name."""
    entries = (
        [catalog.ready_image(fabric, tenant, name) for name in names]
        if names
        else [e for e in catalog.images(fabric, tenant) if e.record.state is State.READY]
    )
    newest = osdmaps.read(cluster)
    cache: layers.Cache = {}
    found = []
    for entry in entries:
        note = entry.row["placement"]
        if not note:
            continue
        objective, host = Objective(note["objective"]), str(note["host"])
        local = float(note["local"])
        host_now, local_now, reason = None, 0.0, ""
        try:
            reads = placing.reads(cluster, newest, entry, objective, cache)
            near = locality(newest, reads.groups)
            host_now = rank(newest, near, {})[0].host
            local_now = round(near.led.get(host, 0.0), 4)
            fell = local - local_now > WORTH_SAYING
            verdict = Verdict.MOVED if fell else Verdict.HOLDS
        except VirtkitError as error:
            verdict, reason = Verdict.UNKNOWN, str(error)
        found.append(
            Kept(
                image=str(entry.record.path),
                objective=objective,
                host=host,
                epoch=int(note["epoch"]),
                local=local,
                verdict=verdict,
                host_now=host_now,
                local_now=local_now,
                epoch_now=newest.epoch,
                reason=reason,
            )
        )
    return found
