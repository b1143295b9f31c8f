"""The loss test's memory: what it takes for right, and what for wrong."""

from tests.functional.loss_model import BLOCK, ZERO, Disk, pattern, wrong


def read_of(*labels: str) -> list[bytes]:
    return [pattern(label) for label in labels]


def faults(disk: Disk, *labels: str) -> list[int]:
    found = read_of(*labels)
    return [block for block, _ in wrong(disk.contents, disk.blocks, found.__getitem__)]


def test_patterns_fill_a_block_and_differ() -> None:
    assert len(pattern("a")) == BLOCK and pattern("a") != pattern("b")
    assert pattern(ZERO) == bytes(BLOCK)


def test_an_acknowledged_write_that_is_not_there_is_wrong() -> None:
    disk = Disk(name="d", blocks=2)
    disk.begin(0, "a")
    disk.acknowledge(0, "a")

    assert faults(disk, "a", ZERO) == []
    assert faults(disk, ZERO, ZERO) == [0]
    assert faults(disk, "a", "b") == [1]


def test_a_write_without_an_answer_may_be_there_or_not_and_then_stays_as_it_was_found() -> None:
    disk = Disk(name="d", blocks=1)
    disk.acknowledge(0, "a")
    disk.begin(0, "b")

    assert faults(disk, "b") == []
    assert faults(disk, "a") == [0]


def test_snapshots_and_clones_keep_what_was_and_rolling_back_brings_it_again() -> None:
    disk = Disk(name="d", blocks=1)
    disk.acknowledge(0, "a")
    disk.snapshot("s")
    clone = disk.clone("s", "c")
    disk.acknowledge(0, "b")
    clone.acknowledge(0, "c")

    assert (faults(disk, "b"), faults(clone, "c")) == ([], [])
    disk.roll_back("s")
    assert faults(disk, "a") == [] and clone.may_hold(0) == {"c"}


def test_what_is_cut_off_comes_back_empty() -> None:
    disk = Disk(name="d", blocks=2)
    disk.acknowledge(1, "a")
    disk.resize(1)
    disk.resize(2)

    assert faults(disk, ZERO, ZERO) == []
