"""USER KEY POOL NAMESPACE IMAGE: a guest's disk: open, write, and hold it until standard input
ends. Prints one line when the lock is held."""

import json
import sys

import rbd
from cluster import connected

user, key, pool, namespace, image = sys.argv[1:]
with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    with rbd.Image(context, image) as disk:
        disk.write(b"held", 0)
        disk.flush()
        print(json.dumps({"owner": disk.is_exclusive_lock_owner()}), flush=True)
        sys.stdin.read()
