"""POOL NAMESPACE IMAGE...: the counter that `stamper` had written at each snapshot of a group, a
list for each image, the oldest first."""

import json
import struct
import sys

import rbd
from cluster import connected

pool, namespace, *images = sys.argv[1:]
found = {}
with connected() as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    for name in images:
        with rbd.Image(context, name, read_only=True) as image:
            taken = sorted(
                one["id"]
                for one in image.list_snaps()
                if one["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_GROUP
            )
            found[name] = []
            for snapshot in taken:
                image.set_snap_by_id(snapshot)
                found[name].append(struct.unpack("<Q", image.read(0, 8))[0])
print(json.dumps(found))
