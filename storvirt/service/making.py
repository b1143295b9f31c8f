"""Carrying admitted images out in Ceph, many at a time.

Every image takes two steps: it is built under its unfinished name and its id is recorded; then it
gets its name and is marked ready. Killed anywhere, the rows say which step each image is at.
"""

from collections.abc import Callable, Sequence

from storvirt.backends.cluster import Cluster
from storvirt.model import ImagePath
from storvirt.service import admission, parallel
from storvirt.service.admission import Admission, NameTaken
from storvirt.service.catalog import ImageEntry
from storvirt.service.parallel import Failure, Progress, Step, no_progress
from tenancy.backends.fabric import Fabric


def carry_out(
    fabric: Fabric,
    cluster: Cluster,
    admitted: Admission,
    make: Callable[[ImagePath], None],
    progress: Progress = no_progress,
) -> list[Failure[ImageEntry]]:
    """Let `make` build each image, and name it. Returns the images that failed.

    One whose name somebody else's image has is given up; others stay begun, to be finished by
    the same call or given up by deleting them.
    """
    ids: dict[int, str] = {}

    def build(entry: ImageEntry) -> str:
        return admission.build(cluster, entry, make, fresh=entry.row.id in admitted.fresh)

    def note(built: Sequence[tuple[ImageEntry, str]]) -> list[Failure[ImageEntry]]:
        ids.update({id(entry): ceph_id for entry, ceph_id in built})
        return admission.note_ids(fabric, built)

    def name(entry: ImageEntry) -> None:
        admission.publish(cluster, entry, ids[id(entry)])

    def finish(named: Sequence[tuple[ImageEntry, None]]) -> list[Failure[ImageEntry]]:
        return admission.mark_all_ready(fabric, [entry for entry, _ in named])

    steps: list[Step[ImageEntry]] = [
        Step(work=build, record=note),
        Step(work=name, record=finish),
    ]
    failures = parallel.run(admitted.entries, steps, progress=progress)
    taken = [one.item for one in failures if isinstance(one.error, NameTaken)]
    admission.forget_all(fabric, taken)
    return failures
