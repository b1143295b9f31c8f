"""Reading the cluster's osdmap.

One request brings the whole map; Ceph's own `osdmaptool` turns that one binary into pools, CRUSH
tree and acting sets, so the three are of the same epoch and the same code as the monitors'. Not
`pg dump`: it comes from the manager and was seen to be seconds behind.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from storvirt.backends.cluster import Cluster
from storvirt.model import PoolName
from storvirt.placement.osdmap import ActingSet, OsdMap, PoolMap, Upmap
from tenancy.errors import BackendUnavailable

TOOL_TIMEOUT_S = 60

# `2.1f raw ([0,2,1], p0) up ([0,2,1], p0) acting ([0,2,1], p0)`
_SET = r"\(\[([\d,]*)\], p(-?\d+)\)"
_PG = re.compile(rf"^(\d+)\.([0-9a-f]+) raw \(.*?\) up {_SET} acting {_SET}$", re.MULTILINE)
# How CRUSH writes the place of a shard that no OSD holds.
_NONE = 0x7FFFFFFF
# pg_pool_t::TYPE_REPLICATED; the other kind is 3, erasure-coded.
_REPLICATED = 1


def read(cluster: Cluster) -> OsdMap:
    """The newest osdmap."""
    return decode(cluster.raw_command("osd getmap"))


def decode(binary: bytes) -> OsdMap:
    """An osdmap as `ceph osd getmap` gives it."""
    with tempfile.NamedTemporaryFile(prefix="osdmap-") as file:
        file.write(binary)
        file.flush()
        dump = json.loads(_osdmaptool(file.name, "--dump", "json"))
        tree = json.loads(_osdmaptool(file.name, "--tree=json"))
        mappings = _osdmaptool(file.name, "--test-map-pgs-dump-all")
    # Equal sets are one object: there are few of them, and placing compares them often.
    known: dict[tuple[str, str], ActingSet] = {}
    up: dict[int, dict[int, ActingSet]] = {}
    acting: dict[int, dict[int, ActingSet]] = {}
    for pool, seed, up_osds, up_primary, osds, primary in _PG.findall(mappings):
        for found, pair in ((up, (up_osds, up_primary)), (acting, (osds, primary))):
            if pair not in known:
                known[pair] = _set(*pair)
            found.setdefault(int(pool), {})[int(seed, 16)] = known[pair]
    host_of = _host_of(tree["nodes"])
    return OsdMap(
        epoch=dump["epoch"],
        pools={
            pool["pool"]: _pool(pool, acting[pool["pool"]], up[pool["pool"]])
            for pool in dump["pools"]
        },
        host_of=host_of,
        capacity=_capacity(tree["nodes"], host_of),
        upmaps=_upmaps(dump),
    )


def _set(osds: str, primary: str) -> ActingSet:
    return ActingSet(
        osds=tuple(osd for osd in map(int, filter(None, osds.split(","))) if osd != _NONE),
        primary=int(primary) if int(primary) >= 0 else None,
    )


def _upmaps(dump: dict[str, Any]) -> dict[tuple[int, int], Upmap]:
    whole = {_pgid(one["pgid"]): tuple(one["osds"]) for one in dump.get("pg_upmap", ())}
    # Reef and later.
    primaries = {
        _pgid(one["pgid"]): int(one["primary_osd"]) for one in dump.get("pg_upmap_primaries", ())
    }
    return {
        group: Upmap(osds=whole.get(group), primary=primaries.get(group))
        for group in whole.keys() | primaries.keys()
    }


def _pgid(text: str) -> tuple[int, int]:
    pool, _, seed = text.partition(".")
    return int(pool), int(seed, 16)


def _pool(pool: dict[str, Any], acting: dict[int, ActingSet], up: dict[int, ActingSet]) -> PoolMap:
    return PoolMap(
        id=pool["pool"],
        name=PoolName(pool["pool_name"]),
        pg_num=pool["pg_num"],
        object_hash=pool["object_hash"],
        read_tier=pool["read_tier"] if pool["read_tier"] >= 0 else None,
        acting=tuple(acting[seed] for seed in range(pool["pg_num"])),
        replicated=pool["type"] == _REPLICATED,
        up=tuple(up[seed] for seed in range(pool["pg_num"])),
    )


def _host_of(nodes: Iterable[dict[str, Any]]) -> dict[int, str]:
    by_id = {node["id"]: node for node in nodes}

    def osds_below(node: dict[str, Any]) -> Iterable[int]:
        for child in node.get("children", ()):
            if child >= 0:
                yield child
            else:
                yield from osds_below(by_id[child])

    hosts = (node for node in by_id.values() if node["type"] == "host")
    return {osd: host["name"] for host in hosts for osd in osds_below(host)}


def _capacity(nodes: Iterable[dict[str, Any]], host_of: dict[int, str]) -> dict[str, float]:
    capacity = dict.fromkeys(host_of.values(), 0.0)
    for node in nodes:
        if node["id"] in host_of and node["status"] == "up":
            capacity[host_of[node["id"]]] += node["crush_weight"] * node["reweight"]
    return capacity


def _osdmaptool(file: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["osdmaptool", file, *arguments],
            capture_output=True,
            text=True,
            timeout=TOOL_TIMEOUT_S,
            cwd=Path(file).parent,
            check=True,
        )
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "osdmaptool is not installed. Install it: apt-get install ceph-base."
        ) from error
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailable(f"osdmaptool cannot read the osdmap: {error}.") from error
    return done.stdout
