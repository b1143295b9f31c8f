"""Comparing all that the flows of a bridge say, not their cookies only, with ovs-ofctl(8).

`diff-flows` brings both sides into Open vSwitch's own form before it compares them, whatever its
version, so that no second encoding of ours can be wrong about what is equal.
"""

import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from netvirt.backends.openflow import DEFAULT_RUN_DIR
from netvirt.pipeline.flow import Flow
from tenancy.errors import BackendUnavailable

_PROGRAM = "ovs-ofctl"
# 0: no difference, 2: some; ovs-ofctl(8).
_COMPARED = (0, 2)


def lines(
    bridge: str, wanted: Iterable[Flow], run_dir: Path = DEFAULT_RUN_DIR, timeout_s: float = 10.0
) -> list[str]:
    """What differs: `-` before a flow that is there, `+` before one that should be.

    Raises BackendUnavailable.
    """
    with tempfile.NamedTemporaryFile("w", prefix="virtkit-flows-", suffix=".txt") as file:
        file.writelines(f"cookie={flow.cookie:#x},{flow.text}\n" for flow in wanted)
        file.flush()
        argv = [
            *(_PROGRAM, "--protocols=OpenFlow15", "--no-names", f"--timeout={int(timeout_s)}"),
            *("diff-flows", f"unix:{run_dir / bridge}.mgmt", file.name),
        ]
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=timeout_s + 5, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendUnavailable(f"bridge {bridge}: {_PROGRAM} failed ({error}).") from error
    if done.returncode not in _COMPARED:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise BackendUnavailable(
            f"bridge {bridge}: its flows can't be read ({reason[0]}). See the log of ovs-vswitchd."
        )
    return done.stdout.splitlines()
