"""USER KEY POOL NAMESPACE IMAGE COUNT [OFFSET]: read 4 KiB that often; 0 means until standard
input ends, with a line as soon as the first is there. Prints what came of it."""

import json
import select
import sys
import time

import rbd
from cluster import connected

user, key, pool, namespace, image, count, *offset = sys.argv[1:]
start = int((offset or ["0"])[0])
errors: list[str] = []
reads = wrong = 0
with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    with rbd.Image(context, image, read_only=True) as disk:
        first = disk.read(start, 4096)
        print(json.dumps({"ready": True}) if count == "0" else "", end="\n" * (count == "0"))
        sys.stdout.flush()
        while reads < int(count) or count == "0":
            try:
                wrong += disk.read(start, 4096) != first
                reads += 1
            except rbd.Error as error:
                errors.append(repr(error))
            if count == "0" and select.select([sys.stdin], [], [], 0)[0]:
                break
            time.sleep(0.01)
print(json.dumps({"reads": reads, "errors": errors, "wrong": wrong}))
