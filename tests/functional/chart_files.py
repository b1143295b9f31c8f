"""What the chart and the image put on a node, without a cluster and without a container engine.

The image's file tree is laid out once for a test run; what the containers of the chart run is run
from it. Whoever needs a node that the chart has set up calls `node_files`.
"""

import atexit
import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import chart

_CHECKOUT = Path(__file__).parents[2]
_LAYOUT = _CHECKOUT / "packaging" / "image" / "layout"
_TREE = re.compile(r"test-image-(\d+)")


@functools.cache
def image_tree() -> Path:
    """The image's file tree, laid out; it goes with this process, or with a later one."""
    build = _CHECKOUT / "build"
    for earlier in build.glob("test-image-*"):
        run = _TREE.fullmatch(earlier.name)
        if run and not Path(f"/proc/{run[1]}").exists():
            shutil.rmtree(earlier)
    tree = build / f"test-image-{os.getpid()}"
    atexit.register(shutil.rmtree, tree, ignore_errors=True)
    done = subprocess.run([_LAYOUT, tree], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return tree


def script(name: str) -> str:
    """Where a script that containers run is in the tree."""
    return str(image_tree() / "usr" / "libexec" / "virtkit" / name)


def environment() -> dict[str, str]:
    """What makes commands of the tree come before those of the machine."""
    return {"PATH": f"{image_tree()}/usr/bin:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"}


def command(container: chart.Manifest) -> list[str]:
    """What a container of the chart runs, from the tree."""
    program, *words = [*container["command"], *container.get("args", ())]
    place = program.lstrip("/") if program.startswith("/") else f"usr/bin/{program}"
    return [str(image_tree() / place), *words]


def confined(container: chart.Manifest) -> list[str]:
    """The same with the rights that the container has: what it may write, capabilities, user.

    Everything else about a container is left out. To be run as root, in namespaces of a lab.
    """
    rights = container["securityContext"]
    writable = [
        mount["mountPath"]
        for mount in container.get("volumeMounts", ())
        if not mount.get("readOnly")
    ]
    capabilities = ",".join(
        ["-all", *(f"+{name.lower()}" for name in rights.get("capabilities", {}).get("add", ()))]
    )
    drop = []
    if not rights.get("privileged"):
        assert rights["capabilities"]["drop"] == ["ALL"]
        assert rights["allowPrivilegeEscalation"] is False
        drop = [f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", "--no-new-privs"]
    if "runAsUser" in rights:
        drop += [
            f"--reuid={rights['runAsUser']}",
            f"--regid={rights['runAsGroup']}",
            "--clear-groups",
        ]
    argv = ["setpriv", *drop, *command(container)] if drop else command(container)
    if not rights.get("readOnlyRootFilesystem"):
        return argv
    # What is mounted on the node later is seen in a container only where it says so.
    sees_later = {mount.get("mountPropagation") for mount in container.get("volumeMounts", ())}
    propagation = "slave" if "HostToContainer" in sees_later else "private"
    enter = ["unshare", "--mount", f"--propagation={propagation}"]
    return [*enter, "sh", "-euc", _READ_ONLY, "sh", " ".join(writable), *argv]


# All that is mounted becomes read-only, but for the paths in $1 and what is the kernel's.
_READ_ONLY = """
for path in $1; do
    mkdir -p "$path"
    mount --bind "$path" "$path"
done
while read -r _ at _; do
    case " $1 " in *" $at "*) continue ;; esac
    case $at in /proc* | /sys* | /dev*) continue ;; esac
    # Some are covered by others, and cannot be named.
    mount -o remount,bind,ro "$at" 2>/dev/null || continue
done </proc/self/mounts
for path in / /etc /opt /var /run; do
    case " $1 " in *" $path "*) continue ;; esac
    if touch "$path/.writable" 2>/dev/null; then echo "$path is writable" >&2; exit 1; fi
done
shift
exec "$@"
"""


def node_files(
    values: Mapping[str, Any], root: Path, *, wait_for_agent: bool = False
) -> dict[str, str]:
    """Put on a node what its `cni` container would: the program, then the conflist.

    `root` is the node's root directory, or any other: paths of the node are below it. Returns
    what became of each file, by its path on the node. With `wait_for_agent` it waits as the
    container does, for an agent whose socket is below `root` too.
    """
    node = chart.one(chart.manifests(values), "DaemonSet", "-node")
    container = chart.container(node, "cni")
    mounts = {volume["name"]: volume for volume in node["spec"]["template"]["spec"]["volumes"]}
    options = container["args"]
    for mount in container["volumeMounts"]:
        # Paths in the container are those of the node, so that is all there is to map.
        on_node = mounts[mount["name"]]["hostPath"]["path"]
        assert on_node == mount["mountPath"]
        options = [
            re.sub(rf"^(--[a-z-]+)={on_node}$", rf"\1={root}{on_node}", option)
            for option in options
        ]
    options = [*options, f"--run-dir={root}/run/virtkit"]
    if not wait_for_agent:
        options = [option for option in options if not option.startswith("--wait-for-agent")]
    nvctl = image_tree() / "usr" / "bin" / "nvctl"
    program = image_tree() / "usr" / "libexec" / "virtkit" / "virtkit-cni"
    done = subprocess.run(
        [nvctl, "cni", "install", *options, f"--program={program}", "--output=json"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return {one["file"].removeprefix(str(root)): one["state"] for one in json.loads(done.stdout)}
