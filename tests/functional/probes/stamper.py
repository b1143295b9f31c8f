"""USER KEY POOL NAMESPACE FIRST SECOND: a guest with two disks that writes the same counter to one
and then to the other, again and again, until standard input ends. Prints a line when it has begun.
"""

import json
import struct
import sys
from threading import Event, Thread

import rbd
from cluster import connected

user, key, pool, namespace, *images = sys.argv[1:]
ended = Event()


def wait() -> None:
    sys.stdin.read()
    ended.set()


with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    disks = [rbd.Image(context, image) for image in images]
    Thread(target=wait, daemon=True).start()
    count = 0
    while not ended.is_set():
        count += 1
        for disk in disks:
            disk.write(struct.pack("<Q", count), 0)
            disk.flush()
        if count == 1:
            print(json.dumps({"writing": True}), flush=True)
    for disk in disks:
        disk.close()
print(json.dumps({"count": count}), flush=True)
