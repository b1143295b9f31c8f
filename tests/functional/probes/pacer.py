"""USER KEY POOL NAMESPACE IMAGE LETTER: opens the image as a guest's host does, and writes a block
of the letter again and again; prints a line for each, and the error that ends it."""

import sys
import time

import rados
import rbd
from cluster import connected

user, key, pool, namespace, name, letter = sys.argv[1:]
with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    image = rbd.Image(context, name)
    try:
        while True:
            image.write(letter.encode() * 4096, 0)
            image.flush()
            print("wrote", flush=True)
            time.sleep(0.05)
    except (rados.Error, rbd.Error) as error:
        print(f"refused: {abs(error.errno)}", flush=True)
