"""`python -m storvirt.backends.plugin_probe CONF USER POOL NAMESPACE NAME=VALUE...`

Opens a scratch image with settings of librbd that may make it crash, hang or refuse every image,
and prints what came of it. A program of its own, so that whoever asks outlives it; it makes no
more than the image and its namespace, which `storvirt.backends.librbd_caches` removes.
"""

import sys

import rados
import rbd

_SIZE_BYTES = 1 << 22
_IMAGE = "scratch"


def main(conf: str, user: str, pool: str, namespace: str, *settings: str) -> str:
    """`ok`, or how librbd refuses."""
    bounds = {
        "client_mount_timeout": "5",
        "rados_mon_op_timeout": "5",
        "rados_osd_op_timeout": "10",
        "log_to_stderr": "false",
    }
    with (
        rados.Rados(name=f"client.{user}", conffile=conf, conf=bounds) as plain,
        plain.open_ioctx(pool) as context,
    ):
        rbd.RBD().namespace_create(context, namespace)
        context.set_namespace(namespace)
        rbd.RBD().create(context, _IMAGE, _SIZE_BYTES, old_format=False)
    cached = bounds | dict(setting.split("=", 1) for setting in settings)
    with (
        rados.Rados(name=f"client.{user}", conffile=conf, conf=cached) as cluster,
        cluster.open_ioctx(pool) as context,
    ):
        context.set_namespace(namespace)
        try:
            with rbd.Image(context, _IMAGE) as image:
                image.write(b"scratch", 0)
                image.flush()
        except (rbd.Error, rbd.OSError) as error:
            return type(error).__name__
    return "ok"


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
