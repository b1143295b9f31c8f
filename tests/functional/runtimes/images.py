"""Two container images, made on the spot of Debian's static busybox: no registry is asked.

Both have the same layer. The archive is of the kind that `docker save` writes, which containerd
and podman load alike.
"""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

BUSYBOX = "virtkit.test/busybox:1"
"""Runs a shell command, or `sleep` for ever."""

PAUSE = "virtkit.test/pause:1"
"""What keeps a pod's namespaces: does nothing."""

_PROGRAM = Path("/usr/bin/busybox")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
}
_FOR_EVER = ["/bin/sleep", "2147483647"]


def write_archive(file: Path) -> Path:
    """Write both images into this file, and return it."""
    layer = _layer()
    layer_name = "layer.tar"
    manifest = []
    with tarfile.open(file, "w") as archive:
        _add(archive, layer_name, layer)
        for name, run in ((BUSYBOX, {"Cmd": _FOR_EVER}), (PAUSE, {"Entrypoint": _FOR_EVER})):
            config = _config(layer, run)
            config_name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(archive, config_name, config)
            manifest.append({"Config": config_name, "RepoTags": [name], "Layers": [layer_name]})
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    return file


def _config(layer: bytes, run: dict[str, list[str]]) -> bytes:
    """See the OCI image specification, "Image configuration"."""
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "WorkingDir": "/", **run},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    return json.dumps(config).encode()


def _layer() -> bytes:
    applets = subprocess.run(
        [str(_PROGRAM), "--list"], capture_output=True, text=True, check=True
    ).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", _PROGRAM.read_bytes(), mode=0o755)
        for name in applets:
            if name != "busybox":
                entry = tarfile.TarInfo(f"bin/{name}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
        for name, text in _FILES.items():
            _add(tar, name, text.encode())
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
