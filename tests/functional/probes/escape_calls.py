"""Every call of librbd that the binding has, and every operation on an object, on what is not the
caller's own.

The binding does not say what its methods take, so each is called with whatever passes for its
arguments, others' things first, until some combinations are not refused for their types.
"""

import itertools
import struct
from collections.abc import Callable, Iterator
from typing import Any

import rados
import rbd

# Combinations of arguments that librbd takes, for each method.
COMBINATIONS = 3
MOST_ARGUMENTS = 5
# These end a handle, or only look at it; the last aborts the caller if there is no such snapshot.
NOT_TRIED = {"close", "require_not_closed", "aio_close", "get_snap_timestamp"}
WRONG_TYPES = (TypeError, AttributeError, ValueError, OverflowError, NameError)


class NotTaken(Exception):
    """The arguments were of the wrong types; nothing was tried."""


def librbd(
    contexts: dict[str, Any], own: Any, own_image: str, names: list[str]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls on others' namespaces, and of the own image with others' as the target."""
    for label, theirs in contexts.items():
        yield from _methods(f"RBD {label}", rbd.RBD(), theirs, own, [*names, "evil"])
        for name in names:
            yield f"open {label}", lambda c=theirs, n=name: rbd.Image(c, n)
            yield (
                f"open read-only {label}",
                lambda c=theirs, n=name: rbd.Image(c, n, read_only=True),
            )
        group = rbd.Group(theirs, "evil")
        yield from _methods(f"Group {label}", group, theirs, own, names)
        with rbd.Image(own, own_image) as image:
            yield f"copy to {label}", lambda i=image, c=theirs: i.copy(c, "evil")
            yield f"deep copy to {label}", lambda i=image, c=theirs: i.deep_copy(c, "evil")


def shared(image: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every call that changes an image, on one that may be read.

    By hand: librbd aborts the caller for nonsense such as a snapshot id that is none.
    """
    yield "write", lambda: image.write(b"evil" * 128, 0)
    yield "write zeroes", lambda: image.write_zeroes(0, 4096)
    yield "discard", lambda: image.discard(0, 4096)
    yield "resize", lambda: image.resize(4096)
    yield "flatten", image.flatten
    yield "sparsify", lambda: image.sparsify(4096)
    yield "create a snapshot", lambda: image.create_snap("evil")
    yield "remove a snapshot", lambda: image.remove_snap("base")
    yield "rename a snapshot", lambda: image.rename_snap("base", "evil")
    yield "protect a snapshot", lambda: image.protect_snap("base")
    yield "unprotect a snapshot", lambda: image.unprotect_snap("base")
    yield "roll back", lambda: image.rollback_to_snap("base")
    yield "limit snapshots", lambda: image.set_snap_limit(1)
    yield "remove the limit", image.remove_snap_limit
    yield "set metadata", lambda: image.metadata_set("conf_rbd_cache", "false")
    yield "remove metadata", lambda: image.metadata_remove("virtkit.image")
    yield "set a limit of operations", lambda: image.config_set("rbd_qos_iops_limit", "1")
    yield "remove a setting", lambda: image.config_remove("rbd_qos_iops_limit")
    yield "set features", lambda: image.update_features(rbd.RBD_FEATURE_JOURNALING, True)
    yield "drop features", lambda: image.update_features(rbd.RBD_FEATURE_OBJECT_MAP, False)
    yield "rebuild the object map", image.rebuild_object_map
    yield "take the lock", lambda: image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
    yield "break the lock", lambda: image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, "evil")
    yield "advisory lock", lambda: image.lock_exclusive("evil")
    yield "shared advisory lock", lambda: image.lock_shared("evil", "tag")
    yield "break an advisory lock", lambda: image.break_lock("client.4100", "evil")
    yield "mirror", lambda: image.mirror_image_enable(rbd.RBD_MIRROR_IMAGE_MODE_SNAPSHOT)
    yield "do not mirror", lambda: image.mirror_image_disable(True)
    yield "promote", lambda: image.mirror_image_promote(True)
    yield "encrypt", lambda: image.encryption_format(rbd.RBD_ENCRYPTION_FORMAT_LUKS2, "evil")


def untried() -> set[str]:
    """Methods of the binding for which no arguments were found."""
    return _untried


_untried: set[str] = set()


def _methods(
    label: str, subject: Any, theirs: Any, own: Any, names: list[str]
) -> Iterator[tuple[str, Callable[[], object]]]:
    values = [("theirs", theirs), *((name, name) for name in names), ("0", 0), ("4Mi", 1 << 22)]
    values += [("own", own), ("call", lambda *_: 0)]
    for method in sorted(name for name in dir(subject) if not name.startswith("_")):
        call = getattr(subject, method)
        if method in NOT_TRIED or not callable(call):
            continue
        taken = 0
        for count in range(MOST_ARGUMENTS + 1):
            for chosen in itertools.islice(itertools.product(values, repeat=count), 3000):
                if taken >= COMBINATIONS:
                    break
                outcome: list[object] = []
                words = ", ".join(word for word, _ in chosen)

                def act(c: Any = call, a: Any = chosen, o: list[object] = outcome) -> None:
                    try:
                        found = c(*(value for _, value in a))
                        # librbd answers some lists that may not be read with an empty one.
                        if hasattr(found, "__iter__") and not list(found):
                            raise rados.Error("nothing is listed")
                    except WRONG_TYPES:
                        o.append("types")
                        raise NotTaken from None

                yield f"{label}: {method}({words})", act
                taken += not outcome and "own" not in words.split(", ")[:1]
        if not taken:
            _untried.add(f"{type(subject).__name__}.{method}")


def objects(context: Any, names: list[str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """Operations on objects by name; on each object, without the help of librbd."""

    def read(operate: Callable[[Any], object], name: str) -> None:
        with rados.ReadOpCtx() as operation:
            found = operate(operation)
            context.operate_read_op(operation, name)
            list(found[0])  # type: ignore[index]

    def write(operate: Callable[[Any], object], name: str) -> None:
        with rados.WriteOpCtx() as operation:
            operate(operation)
            context.operate_write_op(operation, name)

    acts: dict[str, Callable[[str], object]] = {
        "read": lambda n: context.read(n, 16),
        "stat": context.stat,
        "get_xattr": lambda n: context.get_xattr(n, "lock.rbd_lock"),
        "get_xattrs": lambda n: list(context.get_xattrs(n)),
        "omap values": lambda n: read(lambda o: context.get_omap_vals(o, "", "", 9), n),
        "omap keys": lambda n: read(lambda o: context.get_omap_keys(o, "", 9), n),
        "write": lambda n: context.write(n, b"evil"),
        "write_full": lambda n: context.write_full(n, b"evil"),
        "append": lambda n: context.append(n, b"evil"),
        "writesame": lambda n: context.writesame(n, b"evil", 8),
        "cmpext": lambda n: context.cmpext(n, b"evil"),
        "trunc": lambda n: context.trunc(n, 1),
        "remove": context.remove_object,
        "set_xattr": lambda n: context.set_xattr(n, "evil", b"x"),
        "rm_xattr": lambda n: context.rm_xattr(n, "lock.rbd_lock"),
        "set omap": lambda n: write(lambda o: context.set_omap(o, ("evil",), (b"x",)), n),
        "remove omap": lambda n: write(lambda o: context.remove_omap_keys(o, ("size",)), n),
        "clear omap": lambda n: write(context.clear_omap, n),
        "create": lambda n: write(lambda o: o.new(rados.LIBRADOS_CREATE_IDEMPOTENT), n),
        "lock": lambda n: context.lock_exclusive(n, "rbd_lock", "evil"),
        "lock shared": lambda n: context.lock_shared(n, "rbd_lock", "evil", "tag"),
        "unlock": lambda n: context.unlock(n, "rbd_lock", "evil"),
        "watch": lambda n: context.watch(n, lambda *_: None),
        "notify": lambda n: context.notify(n, "evil", 500),
        "roll back": lambda n: context.snap_rollback(n, "base"),
    }
    name64 = struct.pack("<I", 4) + b"evil" + bytes(64)
    for name, (what, act) in itertools.product(names, acts.items()):
        yield f"{what} {_kind(name)}", lambda a=act, n=name: a(n)
    for name, (class_, method) in itertools.product(names, _class_methods()):
        yield (
            f"exec {class_}.{method} {_kind(name)}",
            lambda n=name, c=class_, m=method: context.execute(n, c, m, name64),
        )


def pool_wide(context: Any, snapshot_id: int) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "list objects", lambda: _first(context)
    yield "make a pool snapshot", lambda: context.create_snap("evil")
    yield "drop a pool snapshot", lambda: context.remove_snap("evil")
    yield "make a snapshot id", context.create_self_managed_snap
    yield "drop a snapshot id", lambda: context.remove_self_managed_snap(snapshot_id)
    yield "enable an application", lambda: context.application_enable("rgw", True)
    yield "set a tag", lambda: context.application_metadata_set("rbd", "virtkit", "evil")
    yield "remove a tag", lambda: context.application_metadata_remove("rbd", "virtkit")


def cluster_wide(tenant: Any, pool: str) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "blocklist", lambda: tenant.blocklist_add("10.255.255.1:0/1", 60)
    yield "create a pool", lambda: tenant.create_pool("evil")
    yield "delete a pool", lambda: tenant.delete_pool(pool)


def _first(context: Any) -> None:
    # The iterator takes an error for the end of the list.
    if next(context.list_objects(), None) is None:
        raise rados.Error("nothing is listed")


def _kind(name: str) -> str:
    return name.split(".")[0]


def _class_methods() -> list[tuple[str, str]]:
    found = {
        "rbd": "create get_features set_features get_size set_size get_snapcontext "
        "get_object_prefix get_data_pool get_snapshot_name snapshot_get snapshot_add "
        "snapshot_remove snapshot_rename get_all_features get_id set_id dir_get_id dir_get_name "
        "dir_list dir_add_image dir_remove_image dir_rename_image dir_state_set object_map_load "
        "object_map_save object_map_resize object_map_update object_map_snap_add get_flags "
        "set_flags remove_parent parent_get parent_attach parent_detach child_attach "
        "child_detach children_list metadata_set metadata_remove metadata_list metadata_get "
        "mirror_uuid_get mirror_uuid_set mirror_mode_get mirror_mode_set mirror_peer_list "
        "mirror_peer_add mirror_image_list mirror_image_set mirror_image_remove "
        "mirror_image_map_list group_dir_list group_dir_add group_dir_remove group_image_remove "
        "group_image_list group_image_set image_group_add image_group_remove image_group_get "
        "group_snap_set group_snap_remove group_snap_list trash_add trash_remove trash_list "
        "trash_get trash_state_set namespace_add namespace_remove namespace_list migration_set "
        "migration_set_state migration_get migration_remove assert_snapc_seq sparsify "
        "sparse_copyup copyup op_features_get op_features_set get_protection_status "
        "set_protection_status get_stripe_unit_count set_stripe_unit_count get_create_timestamp "
        "old_snapshots_list",
        "lock": "lock unlock break_lock get_info list_locks assert_locked set_cookie",
        "journal": "create get_order client_list client_register tag_create tag_list",
        "refcount": "get put set read",
        "version": "set inc read check_conds",
        "log": "add list trim info",
        "timeindex": "add list trim",
        "numops": "add mul",
        "cas": "chunk_create_or_get_ref chunk_get_ref chunk_put_ref references_chunk",
        "hello": "say_hello record_hello replay write_return_data",
        "user": "set_buckets_info list_buckets get_header",
        "fifo": "meta_create meta_get push_part list_part",
    }
    return [(name, method) for name, methods in found.items() for method in methods.split()]
