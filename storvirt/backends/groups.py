"""RBD groups: images whose snapshots are taken at one moment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import rbd

from storvirt.backends import images
from storvirt.backends.cluster import Cluster, translated
from storvirt.model import ImagePath

# A path whose name is a group's: groups live beside images, in the same namespaces.
GroupPath = ImagePath


def create(cluster: Cluster, path: GroupPath) -> None:
    """Make the group, unless it is there."""
    with _beside(cluster, path) as context:
        if path.name not in rbd.RBD().group_list(context):
            rbd.RBD().group_create(context, path.name)


def exists(cluster: Cluster, path: GroupPath) -> bool:
    with _beside(cluster, path) as context:
        return path.name in rbd.RBD().group_list(context)


def remove(cluster: Cluster, path: GroupPath) -> None:
    """Remove the group, if it is there; its images stay, its snapshots go."""
    with _beside(cluster, path) as context:
        if path.name in rbd.RBD().group_list(context):
            rbd.RBD().group_remove(context, path.name)


def members(cluster: Cluster, path: GroupPath) -> frozenset[str]:
    """The names of the images that are in the group."""
    with _beside(cluster, path) as context:
        return frozenset(found["name"] for found in rbd.Group(context, path.name).list_images())


def add(cluster: Cluster, path: GroupPath, image: str) -> None:
    """Put an image of the same namespace into the group, unless it is there."""
    with _beside(cluster, path) as context:
        group = rbd.Group(context, path.name)
        if image not in {found["name"] for found in group.list_images()}:
            group.add_image(context, image)


def drop(cluster: Cluster, path: GroupPath, image: str) -> None:
    """Take an image out of the group, if it is in it."""
    with _beside(cluster, path) as context:
        group = rbd.Group(context, path.name)
        if image in {found["name"] for found in group.list_images()}:
            group.remove_image(context, image)


def take_snapshot(cluster: Cluster, path: GroupPath, snapshot: str) -> None:
    """Snapshots of all the group's images at one moment, also while guests write.

    librbd takes every image's lock first, and with it each guest waits before its next write.
    What an interrupted one left is thrown away; one that is complete is taken for this one.
    """
    with _beside(cluster, path) as context:
        group = rbd.Group(context, path.name)
        state = _snapshots(group).get(snapshot)
        if state == rbd.RBD_GROUP_SNAP_STATE_COMPLETE:
            _free_locks(context, group)
            return
        if state is not None:
            group.remove_snap(snapshot)
        group.create_snap(snapshot)


def remove_snapshot(cluster: Cluster, path: GroupPath, snapshot: str) -> None:
    """Delete the snapshots of one moment, if they are there."""
    with _beside(cluster, path) as context:
        group = rbd.Group(context, path.name)
        if snapshot in _snapshots(group):
            group.remove_snap(snapshot)
        else:
            _free_locks(context, group)


def roll_back(cluster: Cluster, path: GroupPath, snapshot: str) -> None:
    """Make all images of the group what they were at that moment."""
    with _beside(cluster, path) as context:
        rbd.Group(context, path.name).rollback_to_snap(snapshot)


def _free_locks(context: Any, group: Any) -> None:
    for found in group.list_images():
        with rbd.Image(context, found["name"]) as image:
            images.free_lock(image)


def _snapshots(group: Any) -> Mapping[str, int]:
    return {found["name"]: found["state"] for found in group.list_snaps()}


@contextmanager
def _beside(cluster: Cluster, path: GroupPath) -> Iterator[Any]:
    with translated(f"group {path}"), cluster.pool(path.pool, path.namespace) as context:
        yield context
