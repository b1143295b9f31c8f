"""Process 1 of a host: makes the host's namespaces and file system, then only reaps orphans.

Run as `python -m lab.init` by `lab.host`. Every other process of the host lives in the PID
namespace of this one, those of `ctl` around those of the hosts, so the kernel ends them all,
whatever they forked or detached, when this process is killed. Nothing of a host is mounted or
named outside of it, so then its mounts, links and network namespaces are gone as well.

A host exists on record or not at all: this process writes its own number down before it does
anything else, and `lab.state` tells what keeps the lab locked until then.
"""

import argparse
import os
import signal
from pathlib import Path

from lab import cgroups, linux, rootfs


def main() -> None:
    """Become a host; report on `--ready`, and stay until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lab", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--ready", type=int, required=True, help="descriptor for the report")
    parser.add_argument("--lock", type=int, help="descriptor to hold until on record")
    arguments = parser.parse_args()

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    linux.unshare(linux.Namespace.PID)
    if os.fork():
        return
    os.setsid()
    try:
        _record(arguments.record)
        if arguments.lock is not None:
            os.close(arguments.lock)
        linux.unshare(linux.HOST & ~linux.Namespace.PID)
        linux.set_hostname(arguments.host)
        cgroups.create(arguments.lab, arguments.host)
        rootfs.build(arguments.host, arguments.disk)
        cgroups.enter(arguments.lab, arguments.host)
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        os.write(arguments.ready, str(reason).encode())
        raise SystemExit(1) from error
    _detach()
    os.write(arguments.ready, b"ready")
    os.close(arguments.ready)
    _reap_for_ever()


def _record(file: Path) -> None:
    # /proc is still the one of the outer PID namespace, and so gives the number out there.
    own = linux.Process.named(int(Path("/proc/self").readlink().name))
    draft = file.with_suffix(".draft")
    draft.write_text(f"{own.pid} {own.started}\n")
    draft.rename(file)


def _detach() -> None:
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _reap_for_ever() -> None:
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main()
