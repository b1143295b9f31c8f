"""Tenant storage beside its peers, part by part, each with a lab of its own: `make bench
BENCH=storage`. One part alone: `make bench BENCH=storage_bulk`, `storage_data`,
`storage_placement`, `storage_boot`.
"""

from benchmarks import storage_boot, storage_bulk, storage_data, storage_placement
from benchmarks.report import publish

PARTS = (storage_bulk, storage_data, storage_placement, storage_boot)


def main() -> None:
    publish("storage", [figure for part in PARTS for figure in part.figures()])


if __name__ == "__main__":
    main()
