"""Transactions and reads that do not block, on a real server that comes and goes."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import ovs.poller
import pytest

from lab.waiting import until
from tenancy.backends import embedded
from tenancy.backends.fabric import Fabric
from tenancy.backends.requests import Pending, Requests, rows
from tenancy.backends.transaction import Changes, GuardFailed, UniqueViolation
from tenancy.errors import BackendUnavailable
from tests.conftest import _is_served

PATIENCE_S = 20.0


class Server:
    """A database that is killed and started with what it had."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._socket = directory / "fabric.sock"
        self._process: subprocess.Popen[bytes] | None = None
        embedded.prepare(directory / "fabric.db")

    @property
    def remote(self) -> str:
        return f"unix:{self._socket}"

    def start(self) -> None:
        argv = embedded.argv(
            self._directory / "fabric.db", [f"punix:{self._socket}"], self._directory
        )
        with (self._directory / "log").open("a") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv], stdout=log, stderr=log
            )
        until(lambda: _is_served(self._socket), what="it is not served", timeout_s=PATIENCE_S)

    def pause(self) -> None:
        """It takes calls, and does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
        self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def requests(server: Server) -> Iterator[Requests]:
    requests = Requests(server.remote)
    run_until(requests, lambda: requests.connected)
    yield requests
    requests.close()


def run_until(requests: Requests, holds: Callable[[], bool]) -> None:
    """The agent's loop, as far as it matters here."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        requests.run()
        if holds():
            return
        assert time.monotonic() < deadline, "it takes too long"
        poller = ovs.poller.Poller()
        requests.wait(poller)
        poller.timer_wait(1000)
        poller.block()


def answered(requests: Requests, pending: Pending) -> Pending:
    run_until(requests, lambda: pending.done)
    return pending


def tenant(requests: Requests, name: str) -> Changes:
    changes = requests.changes()
    changes.insert("Tenant", {"name": name, "labels": {}})
    return changes


def names(requests: Requests, **equals: str) -> list[str]:
    pending = answered(requests, requests.select([("Tenant", equals)]))
    return sorted(row["name"] for row in rows(pending, ["Tenant"])[0])


def commit(requests: Requests, changes: Changes) -> None:
    changes.conclude(answered(requests, requests.commit(changes)).results())


def test_what_is_committed_is_found(requests: Requests) -> None:
    commit(requests, tenant(requests, "red"))
    commit(requests, tenant(requests, "blue"))

    assert names(requests) == ["blue", "red"]
    assert names(requests, name="red") == ["red"]
    assert names(requests, name="green") == []


def test_several_tables_are_asked_at_once(requests: Requests) -> None:
    commit(requests, tenant(requests, "red"))

    queries = [("Tenant", {"name": "red"}), ("Port", {"id": uuid4()}), ("Tenant", {})]
    found = rows(answered(requests, requests.select(queries)), ["Tenant", "Port", "Tenant"])

    assert [len(each) for each in found] == [1, 0, 1]
    assert found[0][0].table == "Tenant"


def test_nothing_is_done_before_the_server_said_so(requests: Requests) -> None:
    pending = requests.commit(tenant(requests, "red"))
    assert not pending.done

    answered(requests, pending)

    assert pending.done


def test_requests_are_served_in_their_order(requests: Requests) -> None:
    """What takes a change back may be sent right behind it, its outcome unknown."""
    made = requests.commit(tenant(requests, "red"))
    between = requests.select([("Tenant", {})])
    taking_back = requests.changes()
    taking_back.require("Tenant", name="red")
    taking_back.delete_where("Tenant", name="red")
    taken_back = requests.commit(taking_back)
    afterwards = requests.select([("Tenant", {})])
    order: list[Pending] = []

    def all_done() -> bool:
        order.extend(
            one for one in (made, between, taken_back, afterwards) if one.done and one not in order
        )
        return len(order) == 4

    run_until(requests, all_done)

    assert order == [made, between, taken_back, afterwards]
    taking_back.conclude(taken_back.results())
    assert len(rows(between, ["Tenant"])[0]) == 1
    assert rows(afterwards, ["Tenant"]) == [[]]


def test_a_refusal_is_the_changes_own_to_tell(requests: Requests) -> None:
    commit(requests, tenant(requests, "red"))

    with pytest.raises(UniqueViolation) as caught:
        commit(requests, tenant(requests, "red"))
    assert (caught.value.table, caught.value.columns) == ("Tenant", ("name",))

    guarded = tenant(requests, "blue")
    guarded.require("Tenant", name="green")
    with pytest.raises(GuardFailed):
        commit(requests, guarded)
    assert names(requests) == ["red"]


def test_a_request_that_the_server_does_not_understand_is_an_error(requests: Requests) -> None:
    pending = answered(requests, requests.select([("Nonsense", {})]))

    with pytest.raises(BackendUnavailable, match=r"refused a read .*Nonsense"):
        rows(pending, ["Nonsense"])


def test_other_writers_see_it(requests: Requests) -> None:
    with Fabric.connect(requests.remote) as fabric:
        commit(requests, tenant(requests, "red"))
        assert [row["name"] for row in fabric.select("Tenant")] == ["red"]


def test_a_connection_that_is_lost_fails_what_is_under_way(
    server: Server, requests: Requests
) -> None:
    server.pause()
    under_way = [requests.commit(tenant(requests, f"t{number}")) for number in range(3)]

    server.kill()
    run_until(requests, lambda: all(pending.done for pending in under_way))

    for pending in under_way:
        with pytest.raises(BackendUnavailable, match="does not answer"):
            pending.results()
    assert not requests.connected


def test_without_a_connection_nothing_is_sent(server: Server, requests: Requests) -> None:
    server.kill()
    run_until(requests, lambda: not requests.connected)

    pending = requests.commit(tenant(requests, "red"))

    assert pending.done
    with pytest.raises(BackendUnavailable, match="no connection"):
        pending.results()
    server.start()
    run_until(requests, lambda: requests.connected)
    assert names(requests) == []


def test_it_connects_again_and_again(server: Server, requests: Requests) -> None:
    for number in range(2):
        server.kill()
        run_until(requests, lambda: not requests.connected)
        server.start()
        run_until(requests, lambda: requests.connected)
        commit(requests, tenant(requests, f"t{number}"))

    assert names(requests) == ["t0", "t1"]


def test_an_answer_of_before_is_nobodys_afterwards(server: Server, requests: Requests) -> None:
    """What was under way when the connection was lost stays failed."""
    server.pause()
    lost = requests.commit(tenant(requests, "red"))
    server.kill()
    server.start()
    run_until(requests, lambda: lost.done)
    with pytest.raises(BackendUnavailable):
        lost.results()

    run_until(requests, lambda: requests.connected)
    commit(requests, tenant(requests, "blue"))

    assert "blue" in names(requests)
    with pytest.raises(BackendUnavailable):
        lost.results()


def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    server = Server(tmp_path)
    requests = Requests(server.remote)
    for _ in range(3):
        requests.run()
    assert not requests.connected
    server.start()
    try:
        run_until(requests, lambda: requests.connected)
        commit(requests, tenant(requests, "red"))
        assert names(requests) == ["red"]
    finally:
        requests.close()
        server.kill()
