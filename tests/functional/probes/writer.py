"""USER KEY POOL NAMESPACE IMAGE STOPFILE SEED [BURSTS]: write until told to stop, print what is
owed.

Opens the image again for each burst, as guests come and go with a pause between, and flushes
before it remembers a write as acknowledged. Prints {offset: seed of the block}.
"""

import hashlib
import json
import random
import sys
import time
from pathlib import Path

import rbd
from cluster import connected

user, key, pool, namespace, image, stop, seed, *most = sys.argv[1:]
BLOCK = 65536
rng = random.Random(int(seed))
owed: dict[int, str] = {}


def block(label: str) -> bytes:
    return hashlib.sha256(label.encode()).digest() * (BLOCK // 32)


with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    bursts = refused = 0
    while not Path(stop).exists() and bursts < int((most or ["1000000"])[0]):
        bursts += 1
        written: dict[int, str] = {}
        try:
            with rbd.Image(context, image) as disk:
                for count in range(20):
                    offset = rng.randrange(disk.size() // BLOCK) * BLOCK
                    label = f"{seed}-{bursts}-{count}"
                    # Until it is acknowledged, the block may be the old one or the new one.
                    owed.pop(offset, None)
                    disk.write(block(label), offset)
                    written[offset] = label
                disk.flush()
        except rbd.PermissionError:
            # Nobody is to be refused a disk because a tier comes or goes.
            refused += 1
            continue
        owed |= written
        if not most:
            time.sleep(1.5)
print(json.dumps({"bursts": bursts, "refused": refused, "owed": owed}))
