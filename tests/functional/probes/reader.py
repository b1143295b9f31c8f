"""USER KEY POOL NAMESPACE IMAGE < owed: the offsets whose block is not what was acknowledged."""

import hashlib
import json
import sys

import rbd
from cluster import connected

user, key, pool, namespace, image = sys.argv[1:]
BLOCK = 65536
owed: dict[str, str] = json.load(sys.stdin)

with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    with rbd.Image(context, image, read_only=True) as disk:
        wrong = [
            offset
            for offset, label in owed.items()
            if disk.read(int(offset), BLOCK)
            != hashlib.sha256(label.encode()).digest() * (BLOCK // 32)
        ]
print(json.dumps({"wrong": wrong}))
