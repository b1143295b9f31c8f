"""POOL/NAMESPACE/IMAGE OFFSET LENGTH: bytes written there."""

import json
import sys

import rbd
from cluster import connected

pool, namespace, image = sys.argv[1].split("/")
offset, length = map(int, sys.argv[2:])
with connected() as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    with rbd.Image(context, image) as disk:
        disk.write(b"\x55" * length, offset)
print(json.dumps(length))
