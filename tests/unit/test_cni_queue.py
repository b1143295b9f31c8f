"""The queue of DELs, from the agent's side: order, lock, and what does not belong in it."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from netvirt.backends.cni_queue import DelQueue
from netvirt.cni.frames import MAX_REQUEST_BYTES, Request, encode_request
from tenancy.errors import BackendUnavailable, Conflict


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "cni" / "queue"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def queue(directory: Path) -> DelQueue:
    return DelQueue(directory)


def delete(container: str) -> Request:
    return Request(environment={"CNI_COMMAND": "DEL", "CNI_CONTAINERID": container}, input=b"{}")


def put(directory: Path, time_ns: int, content: Request | bytes, *, pid: int = 7) -> Path:
    path = directory / f"{time_ns:020}-{pid}.del"
    path.write_bytes(encode_request(content) if isinstance(content, Request) else content)
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_records_come_oldest_first(directory: Path, queue: DelQueue) -> None:
    newest = put(directory, 1_700_000_000_000_000_001, delete("c"))
    oldest = put(directory, 9, delete("a"), pid=1234567)
    between = put(directory, 10, delete("b"))
    assert list(queue.records()) == [
        (oldest, delete("a")),
        (between, delete("b")),
        (newest, delete("c")),
    ]


def test_what_is_handled_goes_and_the_rest_stays(directory: Path, queue: DelQueue) -> None:
    for number, container in enumerate("abc"):
        put(directory, number, delete(container))
    assert queue.drain(lambda request: request != delete("b")) == 2
    assert list(queue.records()) == [(directory / f"{1:020}-7.del", delete("b"))]


def test_an_error_leaves_its_record_and_those_after_it(directory: Path, queue: DelQueue) -> None:
    for number, container in enumerate("abc"):
        put(directory, number, delete(container))

    def handle(request: Request) -> bool:
        if request == delete("b"):
            raise BackendUnavailable("the database is away")
        return True

    with pytest.raises(BackendUnavailable):
        queue.drain(handle)
    assert [request for _, request in queue.records()] == [delete("b"), delete("c")]
    with queue.locked(timeout_s=0):
        pass


def test_a_pass_ends_though_records_are_added_during_it(directory: Path, queue: DelQueue) -> None:
    put(directory, 0, delete("a"))

    def handle(_: Request) -> bool:
        put(directory, 1, delete("another"))
        return True

    assert queue.drain(handle) == 1
    assert queue.drain(lambda _: True) == 1


def test_there_need_be_no_queue(tmp_path: Path) -> None:
    queue = DelQueue(tmp_path / "virtkit" / "cni" / "queue")
    assert list(queue.records()) == []
    assert queue.drain(lambda _: True) == 0
    assert (tmp_path / "virtkit" / "cni" / "queue").stat().st_mode & 0o777 == 0o700


def test_a_record_that_is_left_here_is_found_like_any_other(
    directory: Path, queue: DelQueue
) -> None:
    # A writer that was killed has left this.
    (directory / ".new").write_bytes(bytes(5000))
    queue.leave(delete("a"))
    queue.leave(delete("b"))
    assert [request for _, request in queue.records()] == [delete("a"), delete("b")]
    assert len(names(directory)) == 2


def odd_things(directory: Path) -> Iterator[Path]:
    good = encode_request(delete("a"))
    yield put(directory, 1, b"")
    yield put(directory, 2, good[:-1])
    yield put(directory, 3, good + b"x")
    yield put(directory, 4, bytes(MAX_REQUEST_BYTES + 1))
    yield put(directory, 5, Request(environment={"CNI_COMMAND": "ADD"}))
    link = directory / f"{6:020}-7.del"
    link.symlink_to("/etc/hostname")
    yield link
    pipe = directory / f"{7:020}-7.del"
    os.mkfifo(pipe)
    yield pipe
    folder = directory / f"{8:020}-7.del"
    folder.mkdir()
    yield folder


def test_what_is_no_record_is_put_aside_once(directory: Path, queue: DelQueue) -> None:
    odd = list(odd_things(directory))
    put(directory, 9, delete("z"))
    handled: list[Request] = []

    def handle(request: Request) -> bool:
        handled.append(request)
        return True

    with capture_logs() as logs:
        assert queue.drain(handle) == 1
        assert queue.drain(lambda _: True) == 0
    assert handled == [delete("z")]
    assert names(directory) == [path.with_suffix(".bad").name for path in odd]
    assert [entry["record"] for entry in logs] == [str(path.with_suffix(".bad")) for path in odd]


def test_a_bad_record_that_cannot_be_renamed_stays_and_holds_nobody_up(
    directory: Path, queue: DelQueue
) -> None:
    bad = put(directory, 1, b"no record")
    (bad.with_suffix(".bad") / "full").mkdir(parents=True)
    put(directory, 2, delete("a"))
    with capture_logs() as logs:
        assert queue.drain(lambda _: True) == 1
    assert bad.exists()
    assert [entry["record"] for entry in logs] == [str(bad)]


def test_other_names_are_none_of_its_business(directory: Path, queue: DelQueue) -> None:
    others = ["README", ".old", f"{1:020}-7.bad", f"{1:019}-7.del", f"{1:020}-x.del", "x.del"]
    for name in others:
        (directory / name).write_bytes(encode_request(delete("a")))
    assert queue.drain(lambda _: True) == 0
    assert names(directory) == sorted(others)


def test_what_a_killed_writer_left_unfinished_goes(directory: Path, queue: DelQueue) -> None:
    (directory / ".new").write_bytes(encode_request(delete("a"))[:20])
    assert queue.has_records()
    assert queue.drain(lambda _: True) == 0
    assert names(directory) == []
    assert not queue.has_records()


def test_a_place_for_unfinished_records_that_is_none_holds_nobody_up(
    directory: Path, queue: DelQueue
) -> None:
    (directory / ".new").mkdir()
    put(directory, 1, delete("a"))
    assert queue.drain(lambda _: True) == 1


def test_one_at_a_time_holds_the_lock(queue: DelQueue, directory: Path) -> None:
    with queue.locked():
        with pytest.raises(Conflict, match=r"queue\.lock is held"), queue.locked(timeout_s=0):
            pytest.fail("two hold the lock")
        with pytest.raises(Conflict):
            DelQueue(directory).drain(lambda _: True, timeout_s=0.05)
    with queue.locked(timeout_s=0):
        pass


def test_the_lock_is_waited_for(queue: DelQueue) -> None:
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with queue.locked():
            taken.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(10)
    threading.Timer(0.05, release.set).start()
    with queue.locked(timeout_s=10):
        assert release.is_set()
    holder.join(10)


def test_a_lock_file_that_is_a_link_is_refused(queue: DelQueue, tmp_path: Path) -> None:
    (tmp_path / "cni" / "queue.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BackendUnavailable, match="cannot be locked"), queue.locked():
        pytest.fail("the lock is another file")
    assert not (tmp_path / "elsewhere").exists()


def test_a_queue_that_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "queue").write_text("")
    with pytest.raises(BackendUnavailable, match=f"{tmp_path}/queue cannot be locked"):
        DelQueue(tmp_path / "queue").drain(lambda _: True)
    with pytest.raises(BackendUnavailable, match="cannot be listed"):
        list(DelQueue(tmp_path / "queue").records())


def test_whoever_must_not_wait_is_told_at_once_that_the_lock_is_held(tmp_path: Path) -> None:
    queue, other = DelQueue(tmp_path / "queue"), DelQueue(tmp_path / "queue")
    with other.locked():
        begun = time.monotonic()
        with pytest.raises(Conflict):
            queue.leave(Request(environment={"CNI_COMMAND": "DEL"}), timeout_s=0)
        assert time.monotonic() - begun < 1
    assert not queue.has_records()
