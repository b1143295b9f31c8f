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
