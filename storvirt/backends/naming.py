"""Names of images in Ceph: which image a name stands for, and giving one another name.

An image *is* its id; `rbd_id.NAME` holds the id, and `rbd_directory` lists both. Renaming through
librbd opens the image, locks it and writes five objects, which is a third of what a clone costs.
An image that nobody has open needs three small writes, and each of them is safe to repeat because
the id tells what it would do. The objects and the class method are those of cls_rbd, which every
client since 2012 relies on.
"""

import errno
import struct
from typing import Any

import rados

from storvirt.backends.cluster import Cluster, translated
from storvirt.model import ImagePath
from tenancy.errors import AlreadyExists, NotFound


def image_id(cluster: Cluster, path: ImagePath) -> str | None:
    """The id of the image of this name, or None; one small read."""
    with translated(f"image {path}"), cluster.pool(path.pool, path.namespace) as context:
        return _id(context, path.name)


def give(cluster: Cluster, path: ImagePath, id: str, name: str) -> None:
    """Let the image `id` at `path`, which nobody has open, be called `name` and nothing else.

    Raises AlreadyExists if another image has the name, and NotFound if the image is listed under
    neither. Carries what was interrupted to its end.
    """
    target = path.named(name)
    with translated(f"image {target}"), cluster.pool(path.pool, path.namespace) as context:
        cluster.refuse_read_only(context)
        try:
            with rados.WriteOpCtx() as operation:
                operation.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
                operation.write_full(_string(id))
                context.operate_write_op(operation, _id_object(name))
        except rados.ObjectExists as error:
            if _id(context, name) != id:
                raise AlreadyExists(f"image {target} exists in Ceph already.") from error
        listed = _list_as(context, path.name, name, id)
        for unused in (path.name,) if listed else (path.name, name):
            if _id(context, unused) == id:
                context.remove_object(_id_object(unused))
        if not listed:
            raise NotFound(f"image {path} does not exist in Ceph.")


def _list_as(context: Any, old: str, new: str, id: str) -> bool:
    """Move the directory's entry; whether it is under the new name then."""
    request = _string(old) + _string(new) + _string(id)
    try:
        context.execute("rbd_directory", "rbd", "dir_rename_image", request)
    except rados.Error as error:
        # The old name is listed no longer, or means another image.
        if abs(error.errno or 0) not in (errno.ENOENT, errno.ESTALE):
            raise
        return _is_listed(context, new, id)
    return True


def _is_listed(context: Any, name: str, id: str) -> bool:
    try:
        _, answer = context.execute("rbd_directory", "rbd", "dir_get_id", _string(name))
    except rados.ObjectNotFound:
        return False
    return _text(answer) == id


def _id(context: Any, name: str) -> str | None:
    try:
        return _text(context.read(_id_object(name)))
    except rados.ObjectNotFound:
        return None


def _id_object(name: str) -> str:
    return f"rbd_id.{name}"


def _string(text: str) -> bytes:
    # Ceph's encoding of a string: its length in 32 bits, little-endian, and its bytes.
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded


def _text(encoded: bytes) -> str:
    if len(encoded) < 4:
        return ""
    (length,) = struct.unpack_from("<I", encoded)
    return encoded[4 : 4 + length].decode()
