"""Whether guests can run on KVM here, found out by starting one.

That /dev/kvm exists proves little: in a machine that is itself virtual it may refuse to start a
guest, or start one that hangs. So the guest's own kernel is booted on it once, with a deadline,
and the answer is kept until the machine boots again.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

from lab.guest import CACHE, Guest
from lab.machine import Accelerator, bare_machine, boot_arguments
from tenancy.errors import InvalidRequest

PROBE_TIMEOUT_S = 10.0
# What the initramfs prints when it is told to probe.
REACHED = b"virtkit: probe reached init"


def best_accelerator(guest: Guest, cache: Path = CACHE) -> Accelerator:
    """KVM when a guest starts on it, otherwise TCG. $VIRTKIT_ACCELERATOR overrides."""
    wanted = os.environ.get("VIRTKIT_ACCELERATOR")
    if wanted:
        try:
            return Accelerator(wanted)
        except ValueError as error:
            raise InvalidRequest(
                f"VIRTKIT_ACCELERATOR is {wanted!r}, which is none. Choose kvm or tcg"
            ) from error
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accelerator.TCG
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache / "accelerator.json"
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        known = json.loads(note.read_text())
        if known["boot_id"] == boot_id:
            return Accelerator(known["accelerator"])
    found = Accelerator.KVM if starts_on(Accelerator.KVM, guest) else Accelerator.TCG
    # Guests are started by threads of one process too.
    with tempfile.NamedTemporaryFile("w", prefix="accelerator.", dir=cache, delete=False) as fresh:
        json.dump({"boot_id": boot_id, "accelerator": found}, fresh)
    Path(fresh.name).replace(note)
    return found


def starts_on(accelerator: Accelerator, guest: Guest, timeout_s: float = PROBE_TIMEOUT_S) -> bool:
    """Whether the guest's kernel reaches its first program on `accelerator` in time."""
    command = (
        *bare_machine(accelerator, memory_mib=128),
        *boot_arguments(guest, "virtkit.probe"),
        *("-serial", "stdio"),
    )
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return REACHED in done.stdout
