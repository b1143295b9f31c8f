"""USER KEY POOL NAMESPACE IMAGE STOPFILE SEED: write until told to stop, print what is owed.

Opens the image again for each burst, as guests come and go, and flushes before it remembers a
write as acknowledged. Prints {offset: seed of the block}.
"""

import hashlib
import json
import random
import sys
from pathlib import Path

import rbd
from cluster import connected

user, key, pool, namespace, image, stop, seed = sys.argv[1:]
BLOCK = 65536
rng = random.Random(int(seed))
owed: dict[int, str] = {}


def block(label: str) -> bytes:
    return hashlib.sha256(label.encode()).digest() * (BLOCK // 32)


with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    burst = 0
    while not Path(stop).exists():
        burst += 1
        written: dict[int, str] = {}
        with rbd.Image(context, image) as disk:
            for count in range(20):
                offset = rng.randrange(disk.size() // BLOCK) * BLOCK
                label = f"{seed}-{burst}-{count}"
                disk.write(block(label), offset)
                written[offset] = label
            disk.flush()
        owed |= written
print(json.dumps({"bursts": burst, "owed": owed}))
