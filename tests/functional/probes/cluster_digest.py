"""What a cluster holds, for comparing before and after: objects, maps, keys, settings."""

import hashlib
import json
from typing import Any

import rados

# What changes by itself, or with the work that a tenant may do.
_POOL = {
    *("pool_name", "type", "size", "min_size", "crush_rule", "flags_names", "pg_num", "options"),
    *("application_metadata", "snap_seq", "pool_snaps", "quota_max_bytes", "quota_max_objects"),
    *("tiers", "tier_of", "read_tier", "write_tier", "cache_mode"),
}


def digest(cluster: Any, pool: str, but: str) -> dict[str, str]:
    """Hashes by what they are of; objects of the namespace `but` are left out."""
    found = _objects(cluster, pool, but)
    dump = _ask(cluster, "osd dump")
    found["blocklist"] = _hash(sorted(dump["blocklist"]))
    found["flags"] = _hash(dump["flags_set"])
    for one in dump["pools"]:
        found[f"pool {one['pool_name']}"] = _hash({key: one.get(key) for key in sorted(_POOL)})
    for one in dump["osds"]:
        found[f"osd.{one['osd']}"] = _hash([one["in"], one["weight"], one["primary_affinity"]])
    found["crush"] = _hash(_ask(cluster, "osd crush dump"))
    found["auth"] = _hash(_ask(cluster, "auth ls"))
    found["config"] = _hash(_ask(cluster, "config dump"))
    keys = [key for key in _ask(cluster, "config-key ls") if not key.startswith("mgr/")]
    found["config keys"] = _hash(sorted(keys))
    return found


def secrets(cluster: Any) -> set[str]:
    """Every cephx key of the cluster."""
    return {one["key"] for one in _ask(cluster, "auth ls")["auth_dump"]}


def _objects(cluster: Any, pool: str, but: str) -> dict[str, str]:
    found = {}
    with cluster.open_ioctx(pool) as everything, cluster.open_ioctx(pool) as context:
        everything.set_namespace(rados.LIBRADOS_ALL_NSPACES)
        for one in sorted(everything.list_objects(), key=lambda one: (one.nspace, one.key)):
            if one.nspace == but:
                continue
            context.set_namespace(one.nspace)
            attributes = sorted((name, value.hex()) for name, value in context.get_xattrs(one.key))
            found[f"{one.nspace}/{one.key}"] = _hash(
                [
                    hashlib.sha256(context.read(one.key, 8 << 20)).hexdigest(),
                    attributes,
                    _omap(context, one.key),
                ]
            )
    return found


def _omap(context: Any, name: str) -> list[tuple[str, str]]:
    with rados.ReadOpCtx() as operation:
        values, _ = context.get_omap_vals(operation, "", "", 1000)
        context.operate_read_op(operation, name)
        return sorted((key, (value or b"").hex()) for key, value in values)


def _ask(cluster: Any, prefix: str) -> Any:
    code, answer, status = cluster.mon_command(
        json.dumps({"prefix": prefix, "format": "json"}), b""
    )
    assert code == 0, status
    return json.loads(answer)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
