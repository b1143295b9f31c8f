"""USER KEY POOL NAMESPACE IMAGE [OFFSET]: what a tenant's key can do to an image by writing, and
the text at the offset. Prints which ways were refused and which were not."""

import json
import sys
from collections.abc import Callable

import rados
import rbd
from cluster import connected

user, key, pool, namespace, image, *offset = sys.argv[1:]
refused: dict[str, str] = {}
done: list[str] = []


def tried(name: str, act: Callable[[], object]) -> None:
    try:
        act()
    except (rados.Error, rbd.Error, rbd.OSError) as error:
        refused[name] = type(error).__name__
    else:
        done.append(name)


with connected(user, key) as cluster, cluster.open_ioctx(pool) as context:
    context.set_namespace(namespace)
    with rbd.Image(context, image, read_only=True) as disk:
        text = disk.read(int((offset or ["8388608"])[0]), 64).rstrip(b"\0").decode()
        header = f"rbd_header.{disk.id()}"
    if not offset:
        tried("open", lambda: rbd.Image(context, image).close())
        tried("create", lambda: rbd.RBD().create(context, "mine", 1 << 22, old_format=False))
        tried("remove", lambda: rbd.RBD().remove(context, image))
        tried("rename", lambda: rbd.RBD().rename(context, image, "other"))
        tried("object", lambda: context.write_full("mine", b"x"))
        tried("header", lambda: context.write(header, b"x"))
        tried("attribute", lambda: context.set_xattr(header, "mine", b"x"))
        tried("delete", lambda: context.remove_object(header))
        size = (1 << 40).to_bytes(8, "little")
        tried("class", lambda: context.execute(header, "rbd", "set_size", size))
        tried("watch", lambda: context.watch(header, lambda *_: None).close())
        tried("lock", lambda: context.lock_exclusive(header, "mine", "cookie"))
print(json.dumps({"read": text, "refused": refused, "done": done}))
