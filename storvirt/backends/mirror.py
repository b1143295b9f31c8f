"""Copying a disk under a running guest: a mirror job of the QEMU that has it open.

The job copies everything, then lets every write of the guest be acknowledged only when both sides
have it (`copy-mode=write-blocking`), and in the end leads the guest to the target. It stays known
to QEMU when it is over (`auto-dismiss=false`): a second svctl reads from it what has happened.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from storvirt.backends.qmp import Qmp, QmpError
from storvirt.model import ImagePath
from tenancy.errors import NotFound


class JobState(StrEnum):
    """What has become of a job. READY: both sides are equal and stay so."""

    NONE = "none"
    RUNNING = "running"
    READY = "ready"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job's state, how far it is in bytes, and why it failed."""

    state: JobState
    done: int = 0
    total: int = 0
    error: str = ""


def node_of(qmp: Qmp, *paths: ImagePath) -> str | None:
    """The block node through which QEMU has an image open, by any of the names it had."""
    wanted = {(path.pool, path.namespace, path.name) for path in paths}
    for node in qmp("query-named-block-nodes", flat=True):
        if node["drv"] == "rbd" and _opened(node) in wanted:
            return str(node["node-name"])
    return None


def source_node(qmp: Qmp, path: ImagePath, *older: ImagePath) -> str:
    """`node_of`, or NotFound."""
    found = node_of(qmp, path, *older)
    if found is None:
        raise NotFound(
            f"this QEMU does not have image {path} open. Name the QMP socket of the guest that has."
        )
    return found


def open_target(qmp: Qmp, node: str, options: Mapping[str, object], base: str) -> None:
    """Let QEMU open the target as `node`, with the key that it has for the image already."""
    qmp("blockdev-add", **(dict(options) | {"node-name": node, "key-secret": f"key-{base}"}))


def base_of(node: str) -> str:
    """The name that attaching gave the first node of an image."""
    return node.removesuffix("-b")


def other_name(node: str) -> str:
    """A name for the next node of the same image."""
    return base_of(node) if node.endswith("-b") else f"{node}-b"


def start(qmp: Qmp, job: str, source: str, target: str) -> None:
    qmp(
        "blockdev-mirror",
        job_id=job,
        device=source,
        target=target,
        sync="full",
        copy_mode="write-blocking",
        on_source_error="report",
        on_target_error="report",
        auto_dismiss=False,
    )


def look(qmp: Qmp, job: str) -> Job:
    """The job as it is."""
    for found in qmp("query-jobs"):
        if found["id"] == job:
            states = {"ready": JobState.READY, "concluded": JobState.DONE}
            state = states.get(found["status"], JobState.RUNNING)
            error = found.get("error", "")
            return Job(
                state=JobState.FAILED if error and state is JobState.DONE else state,
                done=found["current-progress"],
                total=found["total-progress"],
                error=error,
            )
    return Job(state=JobState.NONE)


def complete(qmp: Qmp, job: str) -> None:
    """Lead the guest to the target; ask `look` for the end of it."""
    qmp("job-complete", id=job)


def cancel(qmp: Qmp, job: str) -> None:
    """Stop the job; the guest stays where it is."""
    qmp("job-cancel", id=job)


def dismiss(qmp: Qmp, job: str) -> None:
    """Let QEMU forget a job that is over."""
    qmp("job-dismiss", id=job)


def close(qmp: Qmp, node: str) -> None:
    """Let QEMU close a node that the guest does not use; quiet if there is none."""
    try:
        qmp("blockdev-del", node_name=node)
    except QmpError:
        if any(one["node-name"] == node for one in qmp("query-named-block-nodes", flat=True)):
            raise


def _opened(node: dict[str, Any]) -> tuple[str, str, str]:
    options = _described(str(node["file"]))
    return options.get("pool", ""), options.get("namespace", ""), options.get("image", "")


def _described(name: str) -> dict[str, Any]:
    found = json.loads(name.removeprefix("json:")) if name.startswith("json:") else {}
    return found if isinstance(found, dict) else {}
