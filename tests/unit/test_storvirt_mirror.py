"""How the nodes and jobs of a QEMU that moves an image are read."""

from typing import Any

import pytest

from storvirt.backends import mirror
from storvirt.backends.mirror import JobState
from storvirt.model import ImagePath, PoolName, TenantName
from tenancy.errors import NotFound


class Answers:
    """A QEMU that knows its answers by heart; a real one is in the functional tests."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {name.replace("_", "-"): answer for name, answer in answers.items()}

    def __call__(self, command: str, **_: object) -> Any:
        return self.answers[command]


def path(pool: str, name: str) -> ImagePath:
    return ImagePath(pool=PoolName(pool), namespace=TenantName("red"), name=name)


NODES = [
    {"node-name": "format", "drv": "raw", "file": "json:{}"},
    {
        "node-name": "disk",
        "drv": "rbd",
        "file": 'json:{"driver": "rbd", "pool": "vms", "namespace": "red", "image": "web"}',
    },
    {"node-name": "other", "drv": "rbd", "file": "rbd:vms/web"},
]


def test_a_node_is_found_by_pool_namespace_and_any_name_of_its_image() -> None:
    qmp: Any = Answers(query_named_block_nodes=NODES)

    assert mirror.node_of(qmp, path("vms", "x"), path("vms", "web")) == "disk"
    assert mirror.node_of(qmp, path("fast", "web")) is None
    with pytest.raises(NotFound, match="does not have image"):
        mirror.source_node(qmp, path("fast", "web"))


def test_nodes_of_one_image_take_turns_with_two_names() -> None:
    assert mirror.other_name("virtkit-1") == "virtkit-1-b"
    assert mirror.other_name("virtkit-1-b") == "virtkit-1"
    assert mirror.base_of("virtkit-1-b") == mirror.base_of("virtkit-1") == "virtkit-1"


@pytest.mark.parametrize(
    ("status", "error", "state"),
    [
        ("running", None, JobState.RUNNING),
        ("ready", None, JobState.READY),
        ("pending", None, JobState.RUNNING),
        ("concluded", None, JobState.DONE),
        ("concluded", "No space left on device", JobState.FAILED),
        ("aborting", "Input/output error", JobState.RUNNING),
    ],
)
def test_a_job_that_ended_with_an_error_is_not_done(
    status: str, error: str | None, state: JobState
) -> None:
    job = {"id": "j", "status": status, "current-progress": 1, "total-progress": 2}
    qmp: Any = Answers(query_jobs=[job | ({"error": error} if error else {})])

    assert mirror.look(qmp, "j").state is state
    assert mirror.look(qmp, "another").state is JobState.NONE
