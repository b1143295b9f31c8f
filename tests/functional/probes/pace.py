"""USER KEY POOL NAMESPACE IMAGE: a guest that writes 4 KiB at a time as fast as it may; prints how
many operations it was let do in each second, a line each, until standard input ends."""

import sys
import time
from threading import Event, Thread

import rbd
from cluster import connected

user, key, pool, namespace, name = sys.argv[1:]
ended = Event()


def wait() -> None:
    sys.stdin.read()
    ended.set()


with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    with rbd.Image(context, name) as image:
        Thread(target=wait, daemon=True).start()
        while not ended.is_set():
            began, done = time.monotonic(), 0
            while time.monotonic() - began < 1:
                image.write(bytes(4096), 4096 * (done % 64))
                image.flush()
                done += 1
            print(done, flush=True)
