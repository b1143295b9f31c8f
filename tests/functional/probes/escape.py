"""USER KEY POOL OWN IMAGE OTHER THEIRS SNAPSHOT-ID: what a tenant's key can do, to its own IMAGE
and to the image THEIRS of another; prints what was not refused."""

import json
import sys
from collections.abc import Callable

import rados
import rbd
from cluster import connected

user, key, pool, own, mine_too, other, image, snapshot_id = sys.argv[1:]
allowed: list[str] = []
own_works: list[str] = []


def attempt(what: str, act: Callable[[], object], into: list[str]) -> None:
    try:
        act()
    except (rados.Error, rbd.Error):
        return
    into.append(what)


def write(context: rados.Ioctx, image: str) -> None:
    with rbd.Image(context, image) as disk:
        disk.write(b"x" * 512, 0)
        disk.flush()


def first_object(context: rados.Ioctx) -> None:
    # The iterator takes an error for the end of the list.
    if next(context.list_objects(), None) is None:
        raise rados.Error("nothing is listed")


def command(cluster: rados.Rados, **arguments: object) -> None:
    code, _, status = cluster.mon_command(json.dumps(arguments), b"")
    if code:
        raise rados.Error(status)


with connected(user, key) as cluster:
    mine = cluster.open_ioctx(pool)
    mine.set_namespace(own)
    theirs = cluster.open_ioctx(pool)
    theirs.set_namespace(other)
    default = cluster.open_ioctx(pool)
    wild = cluster.open_ioctx(pool)
    wild.set_namespace(rados.LIBRADOS_ALL_NSPACES)
    api = rbd.RBD()

    attempt("list", lambda: api.list(mine), own_works)
    attempt("write", lambda: write(mine, mine_too), own_works)

    for label, context in (("other", theirs), ("default", default)):
        at = f"{label} namespace"
        attempt(f"list images: {at}", lambda c=context: api.list(c), allowed)
        attempt(f"open: {at}", lambda c=context: rbd.Image(c, image, read_only=True), allowed)
        attempt(f"create: {at}", lambda c=context: api.create(c, "evil", 1 << 22), allowed)
        attempt(f"remove: {at}", lambda c=context: api.remove(c, image), allowed)
        attempt(
            f"clone: {at}", lambda c=context: api.clone(c, image, "base", mine, "evil"), allowed
        )
        attempt(f"list objects: {at}", lambda c=context: first_object(c), allowed)
        attempt(f"read object: {at}", lambda c=context: c.read("rbd_directory"), allowed)
        attempt(f"stat object: {at}", lambda c=context: c.stat("rbd_directory"), allowed)
        attempt(f"write object: {at}", lambda c=context: c.write_full("evil", b"x"), allowed)
        attempt(f"remove object: {at}", lambda c=context: c.remove_object("rbd_directory"), allowed)
        attempt(
            f"overwrite rbd_info: {at}", lambda c=context: c.write_full("rbd_info", b"x"), allowed
        )
    attempt("list objects of all namespaces", lambda: first_object(wild), allowed)
    attempt("make a snapshot id", default.create_self_managed_snap, allowed)
    attempt(
        "drop another's snapshot id",
        lambda: default.remove_self_managed_snap(int(snapshot_id)),
        allowed,
    )
    attempt("list namespaces", lambda: api.namespace_list(default), allowed)
    attempt("make a namespace", lambda: api.namespace_create(default, "evil"), allowed)
    attempt("remove a namespace", lambda: api.namespace_remove(default, other), allowed)
    for arguments in (
        {"prefix": "osd blocklist", "blocklistop": "add", "addr": "10.255.255.1:0/1"},
        {"prefix": "auth ls"},
        {"prefix": "auth get", "entity": "client.admin"},
        {"prefix": "auth get", "entity": f"client.virtkit.{other}"},
        {"prefix": "auth caps", "entity": f"client.{user}", "caps": ["mon", "allow *"]},
        {"prefix": "config-key ls"},
        {"prefix": "config set", "who": "global", "name": "debug_ms", "value": "0"},
        {
            "prefix": "osd pool delete",
            "pool": pool,
            "pool2": pool,
            "yes_i_really_really_mean_it": True,
        },
        {"prefix": "osd pool set", "pool": pool, "var": "size", "val": "1"},
        {
            "prefix": "osd pool application set",
            "pool": pool,
            "app": "rbd",
            "key": "virtkit",
            "value": "x",
        },
        {"prefix": "osd out", "ids": ["0"]},
        {"prefix": "osd tier add", "pool": pool, "tierpool": pool},
    ):
        attempt(str(arguments["prefix"]), lambda a=arguments: command(cluster, **a), allowed)

print(json.dumps({"own": own_works, "escaped": allowed}))
