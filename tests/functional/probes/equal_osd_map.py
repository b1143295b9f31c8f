"""POOL NAMESPACE COUNT: names that virtkit maps otherwise than Ceph's monitors do."""

import json
import random
import sys
import time

from storvirt.backends import osdmaps
from storvirt.backends.cluster import Cluster
from storvirt.placement import osdmap

pool, namespace, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
alphabet = "abcXYZ0189._-:/@ äßé漢字\t"
rng = random.Random(20)
names = ["".join(rng.choices(alphabet, k=rng.randint(1, 90))) for _ in range(count)]

with Cluster.connect("/etc/ceph/ceph.conf", "admin") as cluster:
    began = time.perf_counter()
    newest = osdmaps.read(cluster)
    read_s = time.perf_counter() - began
    began = time.perf_counter()
    where = newest.pool(pool)
    ours = osdmap.seeds(where, namespace, names)
    locate_s = time.perf_counter() - began
    different = []
    began = time.perf_counter()
    for name, seed in zip(names, ours, strict=True):
        acting = where.acting[seed]
        spec = {"pool": pool, "object": name, **({"nspace": namespace} if namespace else {})}
        theirs = cluster.command("osd map", **spec)
        if (theirs["pgid"], theirs["acting"], theirs["acting_primary"]) != (
            f"{where.id}.{seed:x}",
            list(acting.osds),
            acting.primary,
        ):
            different.append(name)
    asked_s = time.perf_counter() - began
figures = {"read_s": read_s, "locate_s": locate_s, "asked_s": asked_s}
print(json.dumps({"different": different, "checked": count, **figures}))
