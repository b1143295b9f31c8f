"""Connections for the probes, which run beside the lab's cluster and print JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rados

CONF = "/etc/ceph/ceph.conf"


@contextmanager
def connected(user: str = "admin", key: str | None = None) -> Iterator[Any]:
    """A connection with short timeouts, as `client.<user>`."""
    conf = {
        "client_mount_timeout": "10",
        "rados_mon_op_timeout": "10",
        "rados_osd_op_timeout": "20",
    }
    if key is not None:
        conf |= {"key": key, "keyring": "/dev/null"}
    with rados.Rados(name=f"client.{user}", conffile=CONF, conf=conf) as cluster:
        yield cluster
