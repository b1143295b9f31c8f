"""STEP ARGUMENTS...: `svctl ARGUMENTS`, killed in the midst of librbd's rename of a new image,
after the step `id` or `directory`: the points that a timed kill hits once in many runs."""

import os
import sys

from storvirt.backends import images
from storvirt.backends.cluster import Cluster
from storvirt.cli import main
from storvirt.model import ImagePath

step = sys.argv.pop(1)
rename = images.rename


def dying_rename(cluster: Cluster, path: ImagePath, name: str) -> None:
    with cluster.pool(path.pool, path.namespace) as context:
        id_object = context.read(f"rbd_id.{path.name}")
        if step == "id":
            context.write_full(f"rbd_id.{name}", id_object)
        else:
            rename(cluster, path, name)
            context.write_full(f"rbd_id.{path.name}", id_object)
    os._exit(9)


images.rename = dying_rename
main()
