"""Packets of the underlay, written to a file as they pass."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import underlay, waiting
from lab.host import Host
from tenancy.errors import BackendUnavailable

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0


@contextmanager
def capture(
    host: Host, file: Path, *, interface: str = underlay.BRIDGE, expression: str = ""
) -> Iterator[Path]:
    """Write what passes `interface` of a host to a pcap file, from entry to exit.

    On entry the capture has begun; after exit the file is complete. In `ctl`, the default
    interface sees each frame between any two hosts once. `expression` is a pcap-filter(7). The
    file's directory must be one that hosts share with the machine, such as /tmp.
    """
    argv = [
        *("tcpdump", "--interface", interface, "--relinquish-privileges=root"),
        *("--packet-buffered", "--immediate-mode", "-w", str(file), *expression.split()),
    ]
    talk = file.with_name(f"{file.name}.log")
    with talk.open("w+") as log:
        process = host.popen(argv, stdin=subprocess.DEVNULL, stderr=log, start_new_session=True)
        try:
            waiting.until(
                lambda: "listening on" in talk.read_text() or process.poll() is not None,
                what=f"{host.name}: tcpdump on {interface} has not begun",
                timeout_s=_START_TIMEOUT_S,
                explain=talk.read_text,
            )
            if process.poll() is not None:
                raise BackendUnavailable(
                    f"{host.name}: tcpdump on {interface}: {talk.read_text().strip()}."
                )
            yield file
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_STOP_TIMEOUT_S)
            talk.unlink()
