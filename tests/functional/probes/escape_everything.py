"""REQUEST: tries, with a tenant's key, every command, call and operation on what is not its own.

REQUEST is JSON: user, key, pool, own, own_image, other, other_image, shared_image (or null),
snapshot_id, and `commands` (whether those are tried). Prints what was not refused, what has
changed anywhere but in the own namespace, and what nothing is known how to call.
"""

import json
import os
import subprocess
import sys
from typing import Any

import rados
import rbd
from cluster import CONF, connected
from cluster_digest import digest, secrets
from escape_calls import NotTaken, cluster_wide, librbd, objects, pool_wide, shared, untried
from escape_commands import attempts

request = json.loads(sys.argv[1])
pool, own, other = request["pool"], request["own"], request["other"]
answered: set[str] = set()
done: set[str] = set()
leaked: set[str] = set()
tried = 0


def go(found: Any, prefix: str = "") -> None:
    global tried
    for name, act in found:
        try:
            act()
        except NotTaken:
            continue
        except (rados.Error, rbd.Error, KeyError, StopIteration, AssertionError):
            tried += 1
            continue
        tried += 1
        # What is done to the own namespace alone is the tenant's work.
        if "(own" not in name:
            done.add(prefix + name)


with connected() as admin, connected(request["user"], request["key"]) as tenant:
    before = digest(admin, pool, own)
    keys = secrets(admin) - {request["key"]}
    ids = {}
    with admin.open_ioctx(pool) as theirs:
        theirs.set_namespace(other)
        names = sorted(one.key for one in theirs.list_objects())
        for name in filter(None, (request["other_image"], request["shared_image"])):
            with rbd.Image(theirs, name, read_only=True) as image:
                ids[name] = image.id()
    with admin.open_ioctx(pool) as default:
        default_names = sorted(one.key for one in default.list_objects())
    # One of each kind is enough, of either image.
    kinds = {(n.split(".")[0], next((i for i in ids.values() if i in n), "")): n for n in names}

    if request["commands"]:
        for name, ask in attempts(admin, tenant, pool, other):
            tried += 1
            try:
                code, answer, _ = ask()
            except (rados.Error, TypeError, ValueError):
                continue
            if code == 0:
                answered.add(name)
                if any(key.encode() in answer for key in keys):
                    leaked.add(name)

    contexts = {}
    for label, namespace in (("other", other), ("default", "")):
        contexts[label] = tenant.open_ioctx(pool)
        contexts[label].set_namespace(namespace)
    mine = tenant.open_ioctx(pool)
    mine.set_namespace(own)
    everywhere = tenant.open_ioctx(pool)
    everywhere.set_namespace(rados.LIBRADOS_ALL_NSPACES)

    go(librbd(contexts, mine, request["own_image"], [request["other_image"]]))
    shared_names = [n for n in kinds.values() if ids.get(request["shared_image"], "-") in n]
    private = [n for n in kinds.values() if n not in shared_names]
    go(objects(contexts["other"], [*private, "evil"]), "other: ")
    go(objects(contexts["other"], shared_names), "shared: ")
    go(objects(contexts["default"], [*default_names, "evil"]), "default: ")
    for label, context in (*contexts.items(), ("all namespaces", everywhere)):
        go(pool_wide(context, request["snapshot_id"]), f"{label}: ")
    go(cluster_wide(tenant, pool))
    for name, number in ids.items():
        kind = "shared" if name == request["shared_image"] else "other"
        for read_only in (True, False):
            try:
                image = rbd.Image(contexts["other"], image_id=number, read_only=read_only)
            except rbd.Error:
                continue
            done.add(f"{kind}: open by id{' read-only' if read_only else ''}")
            if kind == "shared":
                go(shared(image), "shared: ")

    # An OSD copies from where it is told to, with its own key.
    for number, name in enumerate(private):
        tried += 1
        copy = ["rados", "--conf", CONF, "--id", request["user"], "--key", request["key"]]
        copy += ["--keyring=/dev/null", "--pool", pool, "--namespace", other, "cp", name]
        copy += [f"stolen-{number}", "--target-pool", pool, "--target-nspace", own]
        if subprocess.run(copy, capture_output=True, check=False).returncode == 0:
            done.add(f"other: copied by an OSD: {name.split('.')[0]}")

    after = digest(admin, pool, own)

changed = sorted(what for what in {*before, *after} if before.get(what) != after.get(what))
print(
    json.dumps(
        {
            "tried": tried,
            "answered": sorted(answered),
            "done": sorted(done),
            "leaked": sorted(leaked),
            "changed": changed,
            "untried": sorted(untried()),
        }
    ),
    flush=True,
)
# Handles that were opened half-way are not waited for.
os._exit(0)
