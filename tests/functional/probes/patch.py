"""USER KEY POOL NAMESPACE IMAGE OFFSET TEXT: write the text there, flush and close."""

import sys

import rbd
from cluster import connected

user, key, pool, namespace, image, offset, text = sys.argv[1:]
with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    with rbd.Image(context, image) as disk:
        disk.write(text.encode().ljust(512, b"\0"), int(offset))
        disk.flush()
