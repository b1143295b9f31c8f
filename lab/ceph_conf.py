"""The texts a Ceph cluster of a lab begins with: configuration, keys and CRUSH map. Pure but for
new keys.
"""

import base64
import os
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

_OSD_BYTES = 16 * 2**30
_MEMORY_TARGET_BYTES = 900 * 2**20

# OSDs ask each other only for what a cache tier needs, as `svctl harden` makes it elsewhere: with
# "allow *" a tenant can have one copy it what is another's, see storvirt.caps.
_CAPS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "mgr": "allow *", "osd": "allow *", "mds": "allow *"},
    "mgr": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
    "osd": {
        "mon": "allow profile osd",
        "mgr": "allow profile osd",
        "osd": "allow * tag rbd virtkit-tier=yes",
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The secrets of a cluster; `osds` by OSD number."""

    monitor: str
    admin: str
    manager: str
    osds: tuple[str, ...]

    @classmethod
    def new(cls, osds: int) -> Self:
        """Fresh ones."""
        return cls(
            monitor=_new_key(),
            admin=_new_key(),
            manager=_new_key(),
            osds=tuple(_new_key() for _ in range(osds)),
        )

    def monitor_keyring(self) -> str:
        """What the monitor starts with: every daemon's key and capabilities."""
        owned = {"mon.": self.monitor, "client.admin": self.admin, "mgr.ctl": self.manager}
        owned |= {f"osd.{number}": key for number, key in enumerate(self.osds)}
        return keyring(owned, with_caps=True)


def keyring(keys: Mapping[str, str], *, with_caps: bool = False) -> str:
    """A keyring file."""
    lines = []
    for entity, key in keys.items():
        lines += [f"[{entity}]", f"\tkey = {key}"]
        if with_caps:
            caps = _CAPS.get(entity) or _CAPS[entity.partition(".")[0]]
            lines += [f'\tcaps {service} = "{cap}"' for service, cap in caps.items()]
    return "\n".join(lines) + "\n"


def configuration(*, fsid: str, mon_address: str, network: str, hosts: int) -> str:
    """The ceph.conf of every host of the lab.

    Pools keep three copies and serve while two are there, so that one OSD may die and I/O goes
    on, and with two dead it stops, as in production; smaller labs have as many copies as hosts.
    """
    copies = min(3, hosts)
    return f"""\
[global]
fsid = {fsid}
mon_initial_members = ctl
mon_host = [v2:{mon_address}:3300/0,v1:{mon_address}:6789/0]
public_network = {network}
auth_allow_insecure_global_id_reclaim = false
setuser_match_path =

osd_pool_default_size = {copies}
osd_pool_default_min_size = {max(1, copies - 1)}
# The autoscaler would split and merge placement groups below a running test.
osd_pool_default_pg_autoscale_mode = off
osd_pool_default_pg_num = 16
osd_pool_default_pgp_num = 16

[mon]
mon_allow_pool_delete = true
mon_max_pg_per_osd = 1000
# The machine's disk is its owner's; a lab fits on a rather full one.
mon_data_avail_warn = 5
mon_data_avail_crit = 1
# A change is proposed at once, not gathered for a second with others.
paxos_propose_interval = 0.05
# One witness is enough to call an OSD down: a lab of two hosts has no more.
mon_osd_min_down_reporters = 1

[mgr]
mgr_initial_modules =

[osd]
# The CRUSH map names the hosts already, and says ssd whatever is below the file.
osd_crush_update_on_start = false
osd_class_update_on_start = false
osd_memory_target = {_MEMORY_TARGET_BYTES}
osd_memory_base = 268435456
osd_memory_cache_min = 67108864
bluestore_block_size = {_OSD_BYTES}
# A hanging OSD is down after 8 s (a dead one at once) instead of 20.
osd_heartbeat_interval = 2
osd_heartbeat_grace = 8
"""


def crush_map(hosts: Sequence[str]) -> str:
    """A CRUSH map, as text for crushtool(8): every host with its OSD below one root."""
    types = (
        *("osd", "host", "chassis", "rack", "row", "pdu"),
        *("pod", "room", "datacenter", "zone", "region", "root"),
    )
    lines = [
        "tunable choose_local_tries 0",
        "tunable choose_local_fallback_tries 0",
        "tunable choose_total_tries 50",
        "tunable chooseleaf_descend_once 1",
        "tunable chooseleaf_vary_r 1",
        "tunable chooseleaf_stable 1",
        "tunable straw_calc_version 1",
        "tunable allowed_bucket_algs 54",
        *(f"device {number} osd.{number} class ssd" for number in range(len(hosts))),
        *(f"type {number} {name}" for number, name in enumerate(types)),
    ]
    for number, host in enumerate(hosts):
        lines += [f"host {host} {{", f"id {-2 - number}", "alg straw2", "hash 0"]
        lines += [f"item osd.{number} weight 1.000", "}"]
    lines += ["root default {", "id -1", "alg straw2", "hash 0"]
    lines += [f"item {host} weight 1.000" for host in hosts]
    lines += ["}", "rule replicated_rule {", "id 0", "type replicated"]
    lines += ["min_size 1", "max_size 10"]
    lines += ["step take default", "step chooseleaf firstn 0 type host", "step emit", "}"]
    return "\n".join(lines) + "\n"


def _new_key() -> str:
    # CryptoKey: type 1 (AES), creation time, length of the secret, secret.
    return base64.b64encode(
        struct.pack("<hiih", 1, int(time.time()), 0, 16) + os.urandom(16)
    ).decode()
