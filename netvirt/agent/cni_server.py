"""The agent's end of the CNI: requests come in by a socket, become tasks, and are answered.

One request a connection. A runtime that goes away before its ADD is answered never learns of the
container's interface: then the ADD is undone. DELs that the program could not hand over lie in a
queue on disk, and are made up for before anything else is attached.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import ovs.poller
import structlog

from netvirt.agent.attachments import Attachments, NotUndone
from netvirt.agent.parts import Key, Parts
from netvirt.agent.sweep import sweep
from netvirt.agent.tasks import Task, Tasks, Work
from netvirt.backends.cni_queue import DelQueue
from netvirt.cni import errors
from netvirt.cni.call import VERSIONS, Call, Verb, answer_version, parse
from netvirt.cni.errors import CniError, Code
from netvirt.cni.frames import FrameError, Reply, Request, RequestReader, encode_reply
from tenancy.errors import BackendUnavailable, Conflict, VirtkitError

log = structlog.get_logger()

# What a runtime waits for is answered within 20 s: this, and some seconds to undo it.
CALL_S = 10.0
# A GC may have hundreds of attachments to take away.
GC_S = 18.0
# How long a call waits for an agent that has just been started to know what there is.
READY_S = 8.0
# How long a DEL waits for a database that is away before it goes on without, and then for the
# switch.
DEL_PATIENCE_S = 1.5
REQUEST_S = 5.0
# How long a call may take with everything before it that concerns the same interface.
LONGEST_S = 25.0
MOST_CONNECTIONS = 1024
_BACKLOG = 512
_READ_BYTES = 1 << 16
# How often the queue is looked at, besides before every ADD.
_QUEUE_PERIOD_S = 1.0


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    deadline: float
    reader: RequestReader = field(default_factory=RequestReader)
    task: Task | None = None
    outgoing: bytes | None = None
    # The attachment to take back if the answer doesn't reach whoever asked for it.
    made: Key | None = None


class CniServer:
    """Connections, and the tasks that they have started."""

    def __init__(
        self,
        path: Path,
        parts: Parts,
        attachments: Attachments,
        tasks: Tasks,
        queue: DelQueue,
        not_ready: Callable[[], str | None],
    ) -> None:
        """`not_ready` gives the reason why nothing can be attached now, or None."""
        self._path = path
        self._parts = parts
        self._attachments = attachments
        self._tasks = tasks
        self._queue = queue
        self._not_ready = not_ready
        self._listener = _listen(path)
        self._connections: dict[int, _Connection] = {}
        self._queued: set[Path] = set()
        self._look_at_queue_at = 0.0

    def run(self) -> None:
        """Accept, read, write and look at the queue. Never blocks."""
        if time.monotonic() >= self._look_at_queue_at:
            self._drain()
        self._accept()
        now = time.monotonic()
        for number, connection in list(self._connections.items()):
            if connection.outgoing is not None:
                done = self._write(connection)
            else:
                done = self._read(connection)
            if now > connection.deadline and connection.task is not None:
                connection.task.cancel(BackendUnavailable("it has waited for too long."))
            if done or now > connection.deadline:
                self._close(number)

    def wait(self, poller: ovs.poller.Poller) -> None:
        """Wake the poller up when `run` has something to do."""
        if self._listener.fileno() >= 0:
            poller.fd_wait(self._listener.fileno(), ovs.poller.POLLIN)
        for number, connection in self._connections.items():
            wants_out = connection.outgoing is not None
            poller.fd_wait(number, ovs.poller.POLLOUT if wants_out else ovs.poller.POLLIN)
        poller.timer_wait(max(0, int((self._look_at_queue_at - time.monotonic()) * 1000) + 1))

    def stop_listening(self) -> None:
        """Take nothing new; what is under way goes on."""
        self._path.unlink(missing_ok=True)
        self._listener.close()

    def close(self) -> None:
        """Answer nobody any more."""
        for number in list(self._connections):
            self._close(number)

    # Connections

    def _accept(self) -> None:
        while self._listener.fileno() >= 0 and len(self._connections) < MOST_CONNECTIONS:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("connection not accepted", reason=error.strerror)
                return
            accepted.setblocking(False)
            deadline = time.monotonic() + REQUEST_S
            self._connections[accepted.fileno()] = _Connection(accepted, deadline)

    def _read(self, connection: _Connection) -> bool:
        """Take in what has come; True if the connection is to be closed."""
        try:
            data = connection.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            if connection.task is not None:
                connection.task.cancel(BackendUnavailable("the runtime went away."))
            return True
        try:
            request = connection.reader.feed(data)
        except FrameError as error:
            log.warning("request not understood", reason=str(error))
            return True
        if request is not None:
            # From here on it is the task's time that counts.
            connection.deadline = time.monotonic() + LONGEST_S
            self._begin(connection, request)
        return False

    def _write(self, connection: _Connection) -> bool:
        assert connection.outgoing is not None
        try:
            sent = connection.socket.send(connection.outgoing)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("answer not delivered", reason=error.strerror)
            return True
        connection.outgoing = connection.outgoing[sent:]
        return not connection.outgoing

    def _close(self, number: int) -> None:
        connection = self._connections.pop(number, None)
        if connection is None:
            return
        connection.socket.close()
        if connection.made is not None and connection.outgoing:
            # Whoever asked for it does not know of it.
            self._start_delete(connection.made)

    # Calls

    def _begin(self, connection: _Connection, request: Request) -> None:
        """Answer a request at once if it can be, else start its task."""
        try:
            call = parse(request)
            if call.verb is Verb.VERSION:
                answer = {"cniVersion": call.version, "supportedVersions": list(VERSIONS)}
                self._answer(connection, answer)
            elif call.verb is Verb.STATUS:
                self._check_status()
                self._answer(connection, None)
            else:
                if call.verb is Verb.ADD:
                    self._drain()
                key = call.key if call.verb is not Verb.GC else ("", call.conflist)
                work = self._served(connection, call, request)
                limit_s = GC_S if call.verb is Verb.GC else CALL_S
                connection.task = self._tasks.start(key, f"CNI {call.verb}", work, limit_s)
        except VirtkitError as error:
            self._refuse(connection, answer_version(request), error)

    def _check_status(self) -> None:
        reason = self._not_ready()
        if reason is not None:
            raise CniError(
                Code.NOT_AVAILABLE,
                f"the node agent can't attach containers now: {reason}. Wait until it can.",
            )

    def _served(self, connection: _Connection, call: Call, request: Request) -> Work:
        """The task of a call, with its answer."""
        try:
            answer = yield from self._perform(call, request)
        except GeneratorExit:
            reason = BackendUnavailable(f"{call.subject}: it takes too long. Try again.")
            self._refuse(connection, call.version, reason)
            raise
        except VirtkitError as error:
            log.info("refused", verb=str(call.verb), attachment=call.subject, reason=str(error))
            self._refuse(connection, call.version, error)
        except Exception as error:
            log.exception("a fault in virtkit", verb=str(call.verb), attachment=call.subject)
            fault = CniError(
                Code.IO_FAILURE,
                f"a fault in virtkit ({type(error).__name__}). Report it with the agent's log.",
            )
            self._refuse(connection, call.version, fault)
        else:
            if call.verb is Verb.ADD:
                connection.made = call.key
            self._answer(connection, answer)

    def _perform(
        self, call: Call, request: Request
    ) -> Generator[None, None, dict[str, Any] | None]:
        match call.verb:
            case Verb.ADD:
                yield from self._until_ready(READY_S)
                yield from self._make_up_for(call.key)
                return (yield from self._add(call, request))
            case Verb.CHECK:
                yield from self._until_ready(READY_S)
                yield from self._attachments.check(call)
            case Verb.DEL:
                yield from self._delete_or_queue(call.key, request)
            case Verb.GC:
                yield from self._until_ready(READY_S)
                yield from self._collect(call)
        return None

    def _until_ready(self, patience_s: float) -> Work:
        deadline = time.monotonic() + patience_s
        while (reason := self._not_ready()) is not None:
            if time.monotonic() > deadline:
                raise BackendUnavailable(
                    f"the node agent can't attach containers now: {reason}. Try again."
                )
            yield

    def _add(self, call: Call, request: Request) -> Generator[None, None, dict[str, Any]]:
        """Attach. If that fails and what was done can't be taken back now, the queue has it."""
        try:
            return (yield from self._attachments.add(call))
        except (NotUndone, GeneratorExit):
            environment = {**request.environment, "CNI_COMMAND": str(Verb.DEL)}
            try:
                self._queue.leave(replace(request, environment=environment))
            except VirtkitError as error:
                log.error("not undone", attachment=call.subject, reason=str(error))
            raise

    def _delete_or_queue(self, key: Key, request: Request) -> Work:
        """Detach. What can't be done now is noted, and the container taken off the switch if that
        can be: a runtime that waits for us could not end its container.
        """
        try:
            yield from self._until_ready(DEL_PATIENCE_S)
            yield from self._attachments.delete(key)
        except BackendUnavailable as reason:
            yield from self._leave(request)
            log.warning("DEL queued", container=key[0], reason=str(reason))
            with contextlib.suppress(BackendUnavailable):
                yield from _for_a_while(self._attachments.detach_only(key), DEL_PATIENCE_S)

    def _leave(self, request: Request) -> Work:
        """Write a record. A program that writes one at this moment keeps the loop from nothing."""
        while True:
            try:
                return self._queue.leave(request, timeout_s=0)
            except Conflict:
                yield

    def _collect(self, call: Call) -> Work:
        stale = self._attachments.stale(call.conflist, call.valid)
        for key in stale:
            log.info("collecting", container=key[0], interface=key[1])
            self._start_delete(key)
        while any(self._tasks.busy(key) for key in stale):
            yield
        left = self._attachments.stale(call.conflist, call.valid)
        if left:
            raise BackendUnavailable(
                f"GC: {len(left)} attachments could not be taken away. See the agent's log, and "
                "try again."
            )
        yield from sweep(self._parts, self._attachments)

    def _start_delete(self, key: Key) -> Task:
        return self._tasks.start(key, f"detaching {key[0]}", self._attachments.delete(key), CALL_S)

    def _answer(self, connection: _Connection, document: dict[str, Any] | None) -> None:
        self._send(connection, 0, b"" if document is None else msgspec.json.encode(document))

    def _refuse(self, connection: _Connection, version: str, error: VirtkitError) -> None:
        self._send(connection, 1, errors.render(error, version))

    def _send(self, connection: _Connection, status: int, output: bytes) -> None:
        """Answer, and close when the answer has gone out."""
        number = connection.socket.fileno()
        connection.outgoing = encode_reply(Reply(status=status, output=output))
        connection.task = None
        if number not in self._connections:
            if connection.made is not None:
                self._start_delete(connection.made)
        elif self._write(connection):
            self._close(number)

    # The queue

    def _drain(self) -> None:
        """Start what the queue asks for. A record goes when what it asks for has been done."""
        self._look_at_queue_at = time.monotonic() + _QUEUE_PERIOD_S
        if self._not_ready() is not None:
            return
        try:
            for path, request in self._records():
                if path not in self._queued:
                    self._start_queued(path, request)
        except Conflict:
            return  # A program is writing to it. There is another look.
        except VirtkitError as error:
            log.warning("queue of DELs not read", reason=str(error))

    def _records(self) -> list[tuple[Path, Request]]:
        """What lies in the queue. Raises `Conflict` while a program writes to it."""
        if not self._queue.has_records():
            return []
        with self._queue.locked(timeout_s=0):
            return list(self._queue.records())

    def _make_up_for(self, key: Key) -> Work:
        """Do what the queue asks for of an attachment that is about to be made again.

        What was drained when this call was here already is behind it, and would take the new
        attachment away.
        """
        while True:
            try:
                records = self._records()
            except Conflict:
                yield
                continue
            except BackendUnavailable as error:
                log.warning("queue of DELs not read", reason=str(error))
                return
            break
        for path, request in records:
            if _key_of(request) == key:
                self._queued.add(path)
                yield from self._queued_delete(path, key)

    def _start_queued(self, path: Path, request: Request) -> None:
        try:
            call = parse(request)
            if call.verb is not Verb.DEL:
                raise CniError(Code.INVALID_ENVIRONMENT, f"it is a {call.verb}.")
        except VirtkitError as error:
            log.warning("record of the queue of DELs dropped", record=path.name, reason=str(error))
            self._queue.remove(path)
            return
        self._queued.add(path)
        work = self._queued_delete(path, call.key)
        self._tasks.start(call.key, f"queued DEL of {call.container}", work, CALL_S)

    def _queued_delete(self, path: Path, key: Key) -> Work:
        try:
            if not path.exists():
                return  # An ADD has made up for it.
            yield from self._attachments.delete(key)
            self._queue.remove(path)
            log.info("queued DEL made up for", container=key[0], interface=key[1])
        finally:
            self._queued.discard(path)


def _key_of(request: Request) -> Key | None:
    try:
        return parse(request).key
    except VirtkitError:
        return None


def _for_a_while(work: Work, patience_s: float) -> Work:
    """Work that need not come to its end."""
    deadline = time.monotonic() + patience_s
    for _ in work:
        if time.monotonic() > deadline:
            return
        yield


def _listen(path: Path) -> socket.socket:
    """A listening socket at `path`, in the place of one that a dead agent has left."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        listener.listen(_BACKLOG)
        # Renamed when it listens: whoever finds it can connect.
        fresh.rename(path)
    except OSError as error:
        listener.close()
        raise BackendUnavailable(
            f"CNI socket {path} can't be made ({error.strerror}). Run the agent as root."
        ) from error
    return listener
