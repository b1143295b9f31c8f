"""The record of a lab: what may be in it, and who may change it when."""

import os
import time
from pathlib import Path

import pytest

from lab import state
from lab.linux import Process
from lab.state import Plan, Record
from tenancy.errors import InvalidRequest, Refused


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv("VIRTKIT_LAB_DIR", str(tmp_path / "run" / "labs"))
    monkeypatch.setenv("VIRTKIT_LAB_DISK_DIR", str(tmp_path / "disk" / "labs"))
    return Record("alpha")


def plan(*, name: str = "alpha", hosts: int = 2, underlay_mtu: int = 1500) -> Plan:
    return Plan(name=name, hosts=hosts, ceph=False, agents=True, underlay_mtu=underlay_mtu)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a/b", "..", "a" * 33])
def test_a_name_that_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not valid"):
        Record(name)


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"hosts": 0}, "0 hosts"), ({"hosts": 65}, "65 hosts"), ({"underlay_mtu": 100}, "MTU 100")],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(changes: dict[str, int], found: str) -> None:
    with pytest.raises(InvalidRequest, match=found):
        plan(**changes)  # type: ignore[arg-type]


def test_a_plan_is_read_back_as_it_was_written(record: Record) -> None:
    with record.locked():
        record.write_plan(plan())

        assert record.plan() == plan()
        assert state.names() == ("alpha",)


def test_looking_at_a_record_makes_nothing(record: Record) -> None:
    assert record.plan() is None
    assert record.process("ctl") is None
    assert not record.exists()
    assert state.names() == ()


def test_removal_takes_the_directories_above_along_when_they_are_empty(record: Record) -> None:
    with record.locked():
        record.disk.mkdir(parents=True)
        record.remove()

    assert not record.directory.parent.exists()
    assert not record.disk.parent.exists()


def test_removal_leaves_another_lab_alone(record: Record) -> None:
    other = Record("beta")
    with other.locked(), record.locked():
        other.write_plan(plan(name="beta"))
        record.remove()

    assert state.names() == ("beta",)


def test_a_lab_that_only_has_a_disk_left_is_on_record(record: Record) -> None:
    record.disk.mkdir(parents=True)

    assert record.exists()
    assert state.names() == ("alpha",)


def test_a_second_process_may_not_change_a_lab_meanwhile(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_LOCK_WAIT_S", 0.2)
    with (
        record.locked(),
        pytest.raises(Refused, match="being changed by another process"),
        Record("alpha").locked(),
    ):
        pass


def test_the_lock_is_kept_by_a_newborn_that_inherited_it(record: Record) -> None:
    # The lab's first process keeps the lock until it is on record, also if `up` is killed.
    with record.locked():
        newborn = os.fork()
        if newborn == 0:
            time.sleep(0.3)
            record.process_file("ctl").write_text("4242 1\n")
            os._exit(0)

    with Record("alpha").locked():
        found = record.process("ctl")

    os.waitpid(newborn, 0)
    assert found == Process(4242, 1)


def test_who_waits_for_the_lock_of_a_lab_that_goes_away_gets_that_of_a_new_one(
    record: Record,
) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with record.locked():
            os.write(tell, b".")
            time.sleep(0.2)
            record.remove()
        os._exit(0)
    os.read(ready, 1)

    with Record("alpha").locked():
        assert record.directory.is_dir()
    os.waitpid(child, 0)
