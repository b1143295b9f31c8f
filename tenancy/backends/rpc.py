"""One JSON-RPC connection to an ovsdb-server, every wait bounded (RFC 7047, section 4)."""

import errno
import os
import time
from typing import Any, Self

import ovs.jsonrpc
import ovs.poller
import ovs.stream

from tenancy.backends import tls
from tenancy.errors import BackendUnavailable


class ConnectionLost(BackendUnavailable):
    """The connection ended, or stayed silent, before the answer came.

    Whether what was asked for has been done is unknown. `silent` tells one that is open still.
    """

    def __init__(self, message: str, *, reason: str, silent: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.silent = silent


class Rpc:
    """Requests and notifications over one stream. Not for use by several threads at once."""

    def __init__(self, remote: str, connection: Any, timeout_s: float) -> None:
        self.remote = remote
        self._connection = connection
        self._timeout_s = timeout_s

    @classmethod
    def connect(cls, remote: str, timeout_s: float) -> Self:
        try:
            error, stream = ovs.stream.Stream.open_block(
                ovs.stream.Stream.open(remote), int(timeout_s * 1000)
            )
        except ValueError as failure:
            raise BackendUnavailable(f"{remote}: {failure}") from failure
        if error:
            reason = tls.failure() if error == errno.EPROTO else None
            hint = f". {tls.HINT}" if reason else ""
            raise BackendUnavailable(f"{remote}: {reason or _reason(error)}{hint}")
        return cls(remote, ovs.jsonrpc.Connection(stream), timeout_s)

    def close(self) -> None:
        self._connection.close()

    def wait_at_most(self, timeout_s: float) -> None:
        """From now on, give up on an answer after this time."""
        self._timeout_s = timeout_s

    def call(self, method: str, params: list[Any]) -> Any:
        """The result of one request; other messages that arrive meanwhile are dropped."""
        deadline = time.monotonic() + self._timeout_s
        message = ovs.jsonrpc.Message.create_request(method, params)
        request_id = message.id
        error = self._connection.send(message)
        if error:
            raise self._lost(f"sending failed: {_reason(error)}")
        while True:
            reply = self.receive(deadline)
            if reply is None:
                raise self._lost(f"no answer within {self._timeout_s:g} s", silent=True)
            if reply.type == ovs.jsonrpc.Message.T_ERROR and reply.id == request_id:
                reason = reply.error.get("error") if isinstance(reply.error, dict) else reply.error
                raise BackendUnavailable(
                    f"{self.remote} refuses {method}: {reason}. Check that it is the fabric "
                    "database which is served there, and not another."
                )
            if reply.type == ovs.jsonrpc.Message.T_REPLY and reply.id == request_id:
                return reply.result

    def receive(self, deadline: float) -> Any:
        """The next message, or None at the deadline. Answers the server's echo requests."""
        while True:
            self._connection.run()
            error, message = self._connection.recv()
            if error == 0:
                if message.type == ovs.jsonrpc.Message.T_REQUEST and message.method == "echo":
                    reply = ovs.jsonrpc.Message.create_reply(message.params, message.id)
                    self._connection.send(reply)
                    continue
                return message
            if error != errno.EAGAIN:
                raise self._lost(f"connection lost: {_reason(error)}")
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                return None
            poller = ovs.poller.Poller()
            self._connection.wait(poller)
            self._connection.recv_wait(poller)
            poller.timer_wait(left_ms)
            poller.block()

    def _lost(self, reason: str, *, silent: bool = False) -> ConnectionLost:
        return ConnectionLost(
            f"fabric database {self.remote} does not answer ({reason}). See `nvctl db status`; "
            "whether the last change was made is unknown, and repeating it is safe.",
            reason=reason,
            silent=silent,
        )


def _reason(error: int) -> str:
    if error == ovs.jsonrpc.EOF:
        return "end of stream"
    # The resolver's own numbers are negative (netdb.h).
    return os.strerror(error) if error > 0 else "the host's name can't be resolved"
