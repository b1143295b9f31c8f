"""Read policies of images: which OSD answers, and the groups made ready for it."""

from dataclasses import dataclass

from storvirt.backends import layers, notes, osdmaps, replicas
from storvirt.backends.cluster import Cluster
from storvirt.model import ImageName
from storvirt.placement.layout import Layer, first_served, held
from storvirt.placement.objectives import group_weights
from storvirt.placement.osdmap import OsdMap
from storvirt.placement.ranking import Group
from storvirt.placement.reading import KEY, ReadPolicy, policy_of
from storvirt.service import catalog
from tenancy.backends.fabric import Fabric
from tenancy.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReport:
    """An image's policy. `settled` is how many placement groups were made ready for it.

    A clone reads its parent's objects by the *parent's* policy: `parents` has each one's.
    """

    image: str
    policy: ReadPolicy
    settled: int
    parents: dict[str, ReadPolicy]


def set_policy(
    fabric: Fabric, cluster: Cluster, tenant: str, name: ImageName, policy: ReadPolicy
) -> PolicyReport:
    """Have the image's reads answered so from the next time it is opened. Idempotent.

    Raises Refused if its data, or its parents', is in an erasure-coded pool.
    """
    path = catalog.ready_image(fabric, tenant, name).record.path
    generations = layers.read(cluster, path)
    newest = osdmaps.read(cluster)
    settled = 0
    if policy is ReadPolicy.PRIMARY:
        notes.remove(cluster, path, KEY)
    else:
        coded = [one for one in generations if not newest.pool(one.pool).replicated]
        if coded:
            raise Refused(
                f"image {name}: the data of {coded[0].image} is in pool {coded[0].pool}, which is "
                "erasure-coded, so only its primaries can answer. Leave the policy at primary."
            )
        notes.put(cluster, path, KEY, policy)
        settled = _settle(cluster, newest, _groups(newest, generations))
    return PolicyReport(
        image=str(path),
        policy=policy,
        settled=settled,
        parents={
            one.image: policy_of(notes.get(cluster, one.path, KEY)) for one in generations[1:]
        },
    )


def _groups(newest: OsdMap, generations: tuple[Layer, ...]) -> set[Group]:
    weights = dict.fromkeys(held(generations), 1.0) | {first_served(generations): 1.0}
    return set(group_weights(newest, generations, weights))


def _settle(cluster: Cluster, newest: OsdMap, groups: set[Group]) -> int:
    by_pool: dict[int, set[int]] = {}
    for pool, seed in groups:
        by_pool.setdefault(pool, set()).add(seed)
    return sum(
        replicas.settle(cluster, newest.pools[pool], seeds) for pool, seeds in by_pool.items()
    )
