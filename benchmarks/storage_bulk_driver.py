"""TENANT: how long a request that the quota refuses takes, in one process; prints JSON."""

import json
import sys
import time

from benchmarks.report import percentile
from storvirt.backends.cluster import Cluster
from storvirt.model import image_name
from storvirt.service import images
from tenancy import service as tenants
from tenancy import settings
from tenancy.backends.fabric import Fabric
from tenancy.errors import QuotaExceeded
from tenancy.model import Resource

RUNS = 300
WARM_UP = 10

chosen = settings.load()
with (
    Fabric.connect(chosen.db) as fabric,
    Cluster.connect(chosen.ceph.conf, chosen.ceph.user) as cluster,
):
    used = tenants.get(fabric, sys.argv[1]).quota[Resource.IMAGES].used
    tenants.set_quota(fabric, sys.argv[1], {Resource.IMAGES: used})
    took_ms = []
    for number in range(WARM_UP + RUNS):
        began = time.monotonic()
        try:
            images.create(fabric, cluster, sys.argv[1], image_name(f"no-{number}"), 1 << 30)
        except QuotaExceeded:
            took_ms.append((time.monotonic() - began) * 1000)
kept = took_ms[WARM_UP:]
print(json.dumps({"p95_ms": percentile(kept, 95), "runs": len(kept)}))
