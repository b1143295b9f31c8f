"""A real Open vSwitch in namespaces of its own, for tests of what speaks to it.

It has private network, mount and process namespaces, so it lives at the default paths inside,
nothing of it is seen outside, and all of it ends with one process: also when the test run is
killed. Unlike a lab host it has no underlay and no agent.
"""

import contextlib
import ctypes
import os
import pickle
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_START = r"""
exec 2>&1
set -e
mount --make-rprivate /
for path in /run /etc/openvswitch /var/log/openvswitch; do mount -t tmpfs none $path; done
mkdir /run/openvswitch /run/netns
ip link set lo up
ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server -vconsole:off /etc/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock \
    --pidfile --log-file --detach --no-chdir
ovs-vsctl --no-wait init
ovs-vswitchd -vconsole:off --pidfile --log-file --detach --no-chdir
echo ready
exec sleep infinity
"""
_libc = ctypes.CDLL(None, use_errno=True)


class PrivateSwitch:
    """The switch, as seen from the tests' own namespaces."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        self.pid = int(children.split()[0])
        self.run_dir = Path(f"/proc/{self.pid}/root/run/openvswitch")
        self.remote = f"unix:{self.run_dir}/db.sock"

    def sh(self, command: str) -> str:
        """The output of a shell command inside, which must succeed."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid"]
        done = subprocess.run(
            [*enter, "bash", "-c", command], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def call(self, function: Callable[[], T]) -> T:
        """What the function returns or raises when it runs inside."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            outcome: object
            try:
                self._enter()
                outcome = (True, function())
            except BaseException as error:  # noqa: BLE001 - it is raised again outside
                error.add_note(traceback.format_exc())
                outcome = (False, error)
            with os.fdopen(write, "wb") as pipe:
                pickle.dump(outcome, pipe)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        returned, value = pickle.loads(data)
        if not returned:
            raise value
        result: T = value
        return result

    def restart_vswitchd(self) -> None:
        """Kill the forwarding daemon and start it again, as a crash and its monitor would."""
        self.sh("kill -9 $(cat /run/openvswitch/ovs-vswitchd.pid)")
        self.sh("ovs-vswitchd -vconsole:off --pidfile --log-file --detach --no-chdir")

    def _enter(self) -> None:
        # All are opened first: afterwards /proc is another's.
        names = ("net", "mnt")
        descriptors = [os.open(f"/proc/{self.pid}/ns/{name}", os.O_RDONLY) for name in names]
        for descriptor in descriptors:
            if _libc.setns(descriptor, 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            os.close(descriptor)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait(timeout=30)
        if self._process.stdout:
            self._process.stdout.close()


@contextlib.contextmanager
def private_switch() -> Iterator[PrivateSwitch]:
    """A running switch without bridges."""
    for tool in ("ovs-vswitchd", "unshare", "setpriv"):
        assert shutil.which(tool), f"{tool} is missing: run packaging/bootstrap"
    process = subprocess.Popen(
        # The kernel ends `unshare` with us, and `unshare` its child; that is process 1 in there,
        # with which all others end.
        [
            *("setpriv", "--pdeathsig=KILL"),
            *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"),
            *("bash", "-c", _START),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line == "ready\n", f"Open vSwitch did not start in its namespaces: {line}"
        switch = PrivateSwitch(process)
        try:
            yield switch
        finally:
            switch.close()
    finally:
        process.kill()
        process.wait()
