"""TENANT snapshot|grow|create COUNT: so many writers at the same moment, each with its own
connection to the database; prints how many won and what the others were told.

`snapshot` takes COUNT snapshots of the image `first`, `grow` gives each of the images `web-N`
64 MiB more, `create` makes COUNT images of 64 MiB.
"""

import collections
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from storvirt.backends.cluster import Cluster
from storvirt.model import image_name, snapshot_ref
from storvirt.service import images, snapshots
from tenancy import settings
from tenancy.backends.fabric import Fabric
from tenancy.errors import VirtkitError

STEP = 64 << 20

tenant, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
chosen = settings.load()
start = Barrier(count)


def race(number: int) -> str | None:
    with Fabric.connect(chosen.db, timeout_s=60) as fabric:
        start.wait()
        try:
            if kind == "snapshot":
                snapshots.create(fabric, cluster, tenant, snapshot_ref(f"first@s{number}"))
            elif kind == "grow":
                images.resize(fabric, cluster, tenant, image_name(f"web-{number}"), 2 * STEP)
            else:
                images.create(fabric, cluster, tenant, image_name(f"new-{number}"), STEP)
        except VirtkitError as error:
            return type(error).__name__
    return None


with (
    Cluster.connect(chosen.ceph.conf, chosen.ceph.user, timeout_s=60) as cluster,
    ThreadPoolExecutor(count) as pool,
):
    told = list(pool.map(race, range(1, count + 1)))
errors = collections.Counter(error for error in told if error)
print(json.dumps({"won": told.count(None), "errors": errors}))
