"""librbd's own caches: whether the librbd of this host has them, and an image's settings for one.

They are plugins, absent from some builds (Debian's 16.2 among them); with one named in its
settings that is not there, librbd refuses to open an image at all. So whether they work is tried
on a scratch image that nobody else sees, in a process that can be killed.
"""

import re
import subprocess
import sys
import tempfile
import time

import rbd

from storvirt.backends.cluster import Cluster, translated
from storvirt.model import ImagePath, PoolName
from storvirt.tiers.choices import Backend, image_configuration

PROBE_TIMEOUT_S = 30
_SMALLEST_CACHE_BYTES = 1 << 30
_PREFIX = "virtkit-probe-"
_SCRATCH = re.compile(rf"{_PREFIX}(\d+)-\d+")
_METADATA = "conf_"


def probe(cluster: Cluster, pool: PoolName, backend: Backend) -> str | None:
    """Why the back end does not work here, or None if it does.

    Makes an RBD namespace with one small image in `pool` and removes them again; what a probe
    that was killed has left is removed by the next one.
    """
    sweep(cluster, pool, older_than_s=PROBE_TIMEOUT_S * 4)
    namespace = f"{_PREFIX}{int(time.time())}-{time.monotonic_ns() % 1_000_000}"
    with tempfile.TemporaryDirectory() as path:
        settings = image_configuration(backend, path=path, size_bytes=_SMALLEST_CACHE_BYTES)
        words = [f"{key}={value}" for key, value in settings.items()]
        try:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "storvirt.backends.plugin_probe"),
                    *(cluster.conf, cluster.user, pool, namespace, *words),
                ],
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"librbd does not open an image with it within {PROBE_TIMEOUT_S} s"
        finally:
            sweep(cluster, pool, older_than_s=0, only=namespace)
    answer = done.stdout.strip()
    if answer == "ok":
        return None
    if answer == "FunctionNotSupported":
        return f"librbd of this host has no plugin {settings['rbd_plugins']}"
    return f"librbd does not open an image with it ({answer or f'exit code {done.returncode}'})"


def sweep(
    cluster: Cluster, pool: PoolName, *, older_than_s: float, only: str | None = None
) -> None:
    """Remove scratch namespaces that probes have left in the pool."""
    with translated(f"pool {pool}"), cluster.pool(pool) as context:
        for name in rbd.RBD().namespace_list(context):
            found = _SCRATCH.fullmatch(name)
            if not found or (only is not None and name != only):
                continue
            if time.time() - int(found[1]) < older_than_s:
                continue
            context.set_namespace(name)
            for image in rbd.RBD().list(context):
                rbd.RBD().remove(context, image)
            context.set_namespace("")
            rbd.RBD().namespace_remove(context, name)


def is_scratch(resident: str) -> bool:
    """Whether what is in a pool (`NAMESPACE/`) is a probe's, and goes with the pool."""
    return _SCRATCH.fullmatch(resident.removesuffix("/")) is not None


def configure(cluster: Cluster, path: ImagePath, settings: dict[str, str]) -> None:
    """Let every client that opens the image from now on use these settings of librbd."""
    with cluster.image(path) as image:
        for key, value in settings.items():
            image.metadata_set(f"{_METADATA}{key}", value)


def configured(cluster: Cluster, path: ImagePath, keys: frozenset[str]) -> dict[str, str]:
    """Those of these settings that the image carries."""
    with cluster.image(path, read_only=True) as image:
        found = {str(k).removeprefix(_METADATA): str(v) for k, v in image.metadata_list()}
    return {key: value for key, value in found.items() if key in keys}


def unconfigure(cluster: Cluster, path: ImagePath, keys: frozenset[str]) -> None:
    """Take these settings off the image."""
    with cluster.image(path) as image:
        for key, _ in list(image.metadata_list()):
            if str(key).removeprefix(_METADATA) in keys:
                image.metadata_remove(key)
