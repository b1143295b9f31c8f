"""Following the fabric database: what a replica does when an answer does not come."""

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ovs.poller
import pytest

from tenancy.backends import watch
from tenancy.backends.fabric import Fabric
from tenancy.backends.watch import FabricWatch


class Forgetful:
    """A server before a server, which loses one request of a method and passes on all else."""

    def __init__(self, path: Path, server: str, method: str) -> None:
        self.lost = 0
        self._server = server.removeprefix("unix:")
        self._method = method
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        # Either side may leave at any time.
        with suppress(OSError), client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._server)
            text = ""
            while not self._over.is_set():
                ready, _, _ = select.select([client, server], [], [], 0.05)
                if server in ready:
                    data = server.recv(1 << 16)
                    client.sendall(data)
                if client in ready:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    text = self._forward(text + data.decode(), server)

    def _forward(self, text: str, server: socket.socket) -> str:
        """Pass on whole messages; what is left over."""
        decoder = json.JSONDecoder()
        while text:
            try:
                message, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break
            if message.get("method") == self._method and not self.lost:
                self.lost += 1
            else:
                server.sendall(text[:end].encode())
            text = text[end:]
        return text


@contextmanager
def watching(remote: str) -> Iterator[FabricWatch]:
    followed = FabricWatch(remote, {"Tenant": ["name"], "Network": ["name"]})
    try:
        yield followed
    finally:
        followed.close()


def run_until_settled(followed: FabricWatch, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        followed.run()
        if followed.settled:
            return
        assert time.monotonic() < deadline, "it does not settle"
        poller = ovs.poller.Poller()
        followed.wait(poller)
        poller.timer_wait(50)
        poller.block()


def test_an_interest_whose_answer_is_lost_is_told_again(
    fabric: Fabric, fabric_remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "ANSWER_S", 0.3)
    transaction = fabric.transaction()
    transaction.insert("Tenant", {"name": "red"})
    transaction.commit()
    server = Forgetful(tmp_path / "sock", fabric_remote, "monitor_cond_change")

    with watching(f"unix:{tmp_path / 'sock'}") as followed:
        run_until_settled(followed)
        followed.set_interest_in_all("Tenant")
        assert not followed.settled
        run_until_settled(followed)

        assert server.lost == 1
        assert [row["name"] for row in followed.rows("Tenant")] == ["red"]
    server.close()


def test_an_interest_that_nobody_can_be_told_of_keeps_nobody_awake(tmp_path: Path) -> None:
    with watching(f"unix:{tmp_path / 'nobody'}") as followed:
        followed.run()
        followed.set_interest_in_all("Tenant")
        began = time.process_time()
        for _ in range(3):
            followed.run()
            poller = ovs.poller.Poller()
            followed.wait(poller)
            poller.timer_wait(100)
            waited = time.monotonic()
            poller.block()
            if time.monotonic() - waited > 0.05:
                break
        else:
            pytest.fail(f"woken at once, again and again ({time.process_time() - began:.3f} s)")
