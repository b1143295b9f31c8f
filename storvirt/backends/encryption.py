"""LUKS2 on images, by librbd itself: what is in Ceph is ciphertext, what a guest sees is not.

Found on 16.2: the LUKS header takes 16 MiB at the image's beginning, so a guest sees that much
less; an image that is a clone can't be formatted (a clone of an encrypted image needs none, it
opens with its parent's passphrase); deriving the key takes seconds, and up to half a minute when
an image is formatted on a busy machine.
"""

import stat
from pathlib import Path

import rbd

from storvirt.backends import activity
from storvirt.backends.cluster import Cluster, translated
from storvirt.model import ImagePath
from tenancy.errors import InvalidRequest, Refused, VerificationFailed

HEADER_BYTES = 16 << 20
LONGEST_PASSPHRASE_BYTES = 512


def passphrase(path: Path) -> str:
    """What the file holds, to the byte, as QEMU and cryptsetup take it. Raises InvalidRequest."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            found = file.read(LONGEST_PASSPHRASE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(
            f"passphrase file {path} cannot be read: {error.strerror}. Check the path."
        ) from error
    if mode & 0o077:
        raise InvalidRequest(
            f"passphrase file {path} can be read by others (mode {mode:o}). First: chmod 600."
        )
    if found.endswith(b"\n"):
        raise InvalidRequest(
            f"passphrase file {path} ends with a line break, which QEMU and cryptsetup would take "
            "as part of it. Write it without: printf %s PASSPHRASE."
        )
    try:
        text = found.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text or "\0" in text or len(found) > LONGEST_PASSPHRASE_BYTES:
        raise InvalidRequest(
            f"passphrase file {path} is empty, longer than {LONGEST_PASSPHRASE_BYTES} bytes, or no "
            "text. Choose another passphrase."
        )
    return text


def format_luks2(cluster: Cluster, path: ImagePath, usable_bytes: int, secret: str) -> None:
    """Make an empty image of `usable_bytes` and the header an encrypted one."""
    what = f"image {path} to be encrypted"
    with cluster.image(path) as image, activity.waiting_for(what):
        try:
            image.encryption_format(rbd.RBD_ENCRYPTION_FORMAT_LUKS2, secret)
        except rbd.OperationNotSupported as error:
            raise Refused(
                f"this Ceph cannot encrypt image {path}: a clone, or librbd is older than 16.2."
            ) from error
        if image.size() != usable_bytes:
            raise VerificationFailed(
                f"image {path} shows {image.size()} bytes after it was encrypted, not "
                f"{usable_bytes}: this librbd's header has another size than virtkit knows."
            )


def unlock(cluster: Cluster, path: ImagePath, secret: str) -> int:
    """The bytes that a guest sees. Raises Refused if the passphrase is not the right one."""
    with translated(f"image {path}"), cluster.image(path, read_only=True) as image:
        try:
            image.encryption_load(rbd.RBD_ENCRYPTION_FORMAT_LUKS2, secret)
        except rbd.PermissionError as error:
            raise Refused(
                f"image {path} does not open with this passphrase. Give the right one."
            ) from error
        return int(image.size())
