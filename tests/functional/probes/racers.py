"""TENANT COUNT BYTES: so many processes create an image at the same moment; prints who won."""

import collections
import json
import multiprocessing
import sys
from multiprocessing.synchronize import Barrier

from storvirt.backends.cluster import Cluster
from storvirt.model import image_name
from storvirt.service import images
from tenancy import settings
from tenancy.backends.fabric import Fabric
from tenancy.errors import VirtkitError


def race(arguments: tuple[str, str, int]) -> tuple[str, str | None]:
    tenant, name, size_bytes = arguments
    chosen = settings.load()
    with (
        Fabric.connect(chosen.db, timeout_s=60) as fabric,
        Cluster.connect(chosen.ceph.conf, chosen.ceph.user, timeout_s=60) as cluster,
    ):
        start.wait()
        try:
            images.create(fabric, cluster, tenant, image_name(name), size_bytes)
        except VirtkitError as error:
            return name, type(error).__name__
        return name, None


def prepare(barrier: Barrier) -> None:
    global start
    start = barrier


if __name__ == "__main__":
    tenant, count, size_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    start = multiprocessing.Barrier(count)
    with multiprocessing.Pool(count, prepare, (start,)) as pool:
        work = [(tenant, f"racer-{number}", size_bytes) for number in range(count)]
        results = pool.map(race, work, chunksize=1)
    errors = collections.Counter(error for _, error in results if error)
    print(json.dumps({"won": [name for name, error in results if not error], "errors": errors}))
