"""systemd, where it runs: the node agent as a service of the host."""

import subprocess
from pathlib import Path

from tenancy.errors import BackendUnavailable

AGENT = "virtkit-agent.service"
# There only while systemd is process 1 (sd_booted(3)).
_RUNS = Path("/run/systemd/system")
_TIMEOUT_S = 90


def runs() -> bool:
    """Whether services of this host are systemd's."""
    return _RUNS.is_dir()


def start(unit: str) -> None:
    """Start the service now and whenever the host boots; anew if it runs."""
    _call("enable", unit)
    _call("restart", unit)


def stop(unit: str) -> None:
    """Stop the service, now and at the next boot."""
    _call("disable", "--now", unit)


def _call(*arguments: str) -> None:
    command = ["systemctl", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailable(f"`{' '.join(command)}`: {error}.") from error
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise BackendUnavailable(
            f"`{' '.join(command)}` failed: {reason[0].rstrip('.')}. See `journalctl -u "
            f"{arguments[-1]}`; the units are in packaging/systemd."
        )
