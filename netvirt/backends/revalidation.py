"""Hearing when the switch's datapath follows its flow tables.

The datapath goes by decisions that it remembers. After a change of the tables, threads of
ovs-vswitchd look through all of them; until then a packet may be dropped by a memory of the time
before. The switch acknowledges a bundle at once. That its memories have been gone through is heard
over its control socket, by the command `revalidator/wait` of ovs-vswitchd(8): it answers at the
end of the next pass. Asked before the change that causes a pass, it answers at the end of that.
"""

import json
import select
import socket
from pathlib import Path

import ovs.poller

_PID_FILE = "ovs-vswitchd.pid"
_REQUEST = json.dumps({"id": 0, "method": "revalidator/wait", "params": []}).encode()


class Revalidation:
    """One pass at a time. A switch that can't be asked counts as done: nobody is kept waiting."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._socket: socket.socket | None = None

    @property
    def done(self) -> bool:
        """Whether the pass that was expected is over, as far as is known."""
        return self._socket is None

    def expect(self) -> None:
        """Expect a pass; what causes it must be sent to the switch after this."""
        self.close()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        connection.setblocking(False)
        try:
            pid = int((self._run_dir / _PID_FILE).read_text())
            connection.connect(str(self._run_dir / f"ovs-vswitchd.{pid}.ctl"))
            connection.send(_REQUEST)
        except (OSError, ValueError):
            connection.close()
            return
        self._socket = connection

    def run(self) -> None:
        """Take in the answer. Never blocks."""
        if self._socket is None:
            return
        try:
            self._socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            pass  # It was restarted: it remembers nothing.
        self.close()

    def wait(self, poller: ovs.poller.Poller) -> None:
        """Wake the poller up when `run` has something to do."""
        if self._socket is not None:
            poller.fd_wait(self._socket.fileno(), ovs.poller.POLLIN)

    def close(self) -> None:
        """Expect nothing any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def await_pass(run_dir: Path, timeout_s: float) -> None:
    """Wait until the flow tables have counted what the datapath has handled up to now.

    The datapath counts by itself, and a pass hands on what it has counted: every half second if
    nobody asks (ovs-vswitchd.conf.db(5), max-revalidator).
    """
    revalidation = Revalidation(run_dir)
    revalidation.expect()
    try:
        if revalidation._socket is not None:
            select.select([revalidation._socket], [], [], timeout_s)
    finally:
        revalidation.close()
