"""`python -m storvirt.backends.hold_guard CONF USER BASE CACHE`

Stands by while a cache is held (see `storvirt.backends.tiers`) and lets it go if the command that
holds it dies: clients wait without end otherwise. It learns of that by the end of its standard
input, and ends itself then. What is parted already waits for nobody, and is left as it is.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from storvirt.backends import tiers
from storvirt.backends.cluster import Cluster
from storvirt.model import PoolName
from tenancy.errors import BackendUnavailable

_TIMEOUT_S = 60


@contextmanager
def standing_by(cluster: Cluster, base: PoolName, cache: PoolName) -> Iterator[None]:
    """With a guard at work, in a session of its own: signals to this command don't reach it."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__, cluster.conf, cluster.user, base, cache],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    ) as guard:
        assert guard.stdin is not None and guard.stdout is not None
        try:
            if not guard.stdout.readline():
                raise BackendUnavailable(
                    f"cache {cache} is not held, for the guard that would let it go did not "
                    "start. See `ceph -s`, and run the command again."
                )
            yield
        finally:
            guard.stdin.close()
            try:
                guard.wait(_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                guard.kill()


def main(conf: str, user: str, base: str, cache: str) -> None:
    """Wait, and release what is held still."""
    with Cluster.connect(conf, user) as cluster:
        print("ready", flush=True)
        sys.stdin.read()
        tiers.release_laid(cluster, PoolName(base), PoolName(cache))


if __name__ == "__main__":
    main(*sys.argv[1:])
