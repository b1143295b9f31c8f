"""POOL NAMESPACE IMAGE COUNT [CRUSH_HOST]: reads of 4 KiB anywhere in the image."""

import json
import random
import sys

import rados
import rbd
from cluster import CONF

pool, namespace, image, count, *host = sys.argv[1:]
conf = {"rados_osd_op_timeout": "20", "client_mount_timeout": "10"}
if host:
    conf["crush_location"] = f"host={host[0]}"
rng = random.Random(7)
with rados.Rados(conffile=CONF, conf=conf) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    with rbd.Image(context, image, read_only=True) as disk:
        for _ in range(int(count)):
            disk.read(rng.randrange(disk.size() // 4096) * 4096, 4096)
print(json.dumps(int(count)))
