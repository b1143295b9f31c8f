"""What the placement benchmark runs inside the lab: `plan COUNT ROUNDS` beside the monitor, or
`read JSON` on a host. Prints JSON.
"""

import json
import random
import sys
import time
from typing import Any

import rados
import rbd

from storvirt.backends import osdmaps
from storvirt.backends.cluster import Cluster
from storvirt.placement.ranking import Boot, plan

CONF = "/etc/ceph/ceph.conf"
BLOCK = 4096
OBJECT = 4 << 20


def planning(count: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds for planning `count` images, ours and by asking the monitor for each."""
    rng = random.Random(4)
    names = [f"rbd_data.{rng.getrandbits(44):011x}.{0:016x}" for _ in range(count)]
    ours, asked, read_map = [], [], []
    with Cluster.connect(CONF, "admin") as cluster:
        for _ in range(rounds):
            began = time.perf_counter()
            newest = osdmaps.read(cluster)
            read_map.append(_ms_since(began))
            boots = [Boot(newest.pool("vms").id, "bench", name) for name in names]
            began = time.perf_counter()
            plan(newest, boots, {})
            ours.append(_ms_since(began))
            began = time.perf_counter()
            for name in names:
                cluster.command("osd map", pool="vms", object=name, nspace="bench")
            asked.append(_ms_since(began))
    return {"ours": ours, "asked": asked, "read_map": read_map}


def reading(wanted: dict[str, Any]) -> list[float]:
    """Microseconds of each read of an image from here: `weights` are the parts' shares."""
    conf = {"rbd_cache": "false", "rados_osd_op_timeout": "20", "client_mount_timeout": "10"}
    if wanted["location"]:
        conf["crush_location"] = f"host={wanted['location']}"
    rng = random.Random(wanted["seed"])
    parts, weights = zip(*wanted["weights"], strict=True)
    with (
        rados.Rados(conffile=CONF, conf=conf) as cluster,
        cluster.open_ioctx("vms") as context,
    ):
        context.set_namespace("bench")
        with rbd.Image(context, wanted["image"], read_only=True) as image:
            disk_bytes = image.size()
            took = []
            # Connections to all OSDs are made, and their sessions opened, before the clock runs.
            for at in range(0, disk_bytes, OBJECT):
                image.read(at, BLOCK)
            for part in rng.choices(parts, weights, k=wanted["count"]):
                length = min(OBJECT, disk_bytes - part * OBJECT)
                at = part * OBJECT + rng.randrange(length // BLOCK) * BLOCK
                began = time.perf_counter()
                image.read(at, BLOCK)
                took.append((time.perf_counter() - began) * 1e6)
    return took


def _ms_since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    if sys.argv[1] == "plan":
        print(json.dumps(planning(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        print(json.dumps(reading(json.loads(sys.argv[2]))))
