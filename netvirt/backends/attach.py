"""Putting an interface on the integration bridge and taking it off, for commands that wait."""

import time
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

import ovs.poller

from netvirt.backends.vswitch import DEFAULT_REMOTE, VSwitch
from tenancy.errors import BackendUnavailable

DEFAULT_TIMEOUT_S = 10.0
# An error may be about an earlier device of the same name: the switch is given this long to look
# again.
_ERROR_GRACE_S = 1.0

T = TypeVar("T")


def add_interface(
    name: str,
    port_id: UUID,
    mac: str,
    *,
    device_is_new: bool = False,
    bridge: str = "br-int",
    remote: str = DEFAULT_REMOTE,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> int:
    """Put an interface on the bridge for a port and return its OpenFlow port number.

    Returns as soon as the switch has opened it. Idempotent. Raises `BackendUnavailable` if it
    does not, and then leaves nothing there that was not there before. `device_is_new` takes an
    interface of this name off first: in userspace, the switch would go on with the old device.
    """
    ids = {"iface-id": str(port_id), "attached-mac": mac, "iface-status": "active"}
    vswitch = VSwitch(remote, bridge)
    try:
        _connect(vswitch, timeout_s)
        if device_is_new:
            _remove(vswitch, name, timeout_s)
            # A switch that is busy would see the removal and what follows as no change at all.
            # One that does not run is noticed below.
            _until(vswitch, lambda: vswitch.applied or None, timeout_s)
        was_there = name in vswitch.interfaces()
        failing_since: float | None = None

        def opened() -> int | str | None:
            nonlocal failing_since
            found = vswitch.ensure_port(name, ids) and vswitch.interfaces().get(name)
            if not found:
                return vswitch.failure
            if found.ofport is not None:
                return found.ofport
            if found.error is None:
                failing_since = None
                return None
            failing_since = failing_since or time.monotonic()
            return found.error if time.monotonic() - failing_since > _ERROR_GRACE_S else None

        outcome = _until(vswitch, opened, timeout_s)
        if isinstance(outcome, int):
            return outcome
        if not was_there:
            _until(vswitch, lambda: vswitch.remove_port(name, confirmed=True) or None, timeout_s)
        raise BackendUnavailable(
            f"Open vSwitch does not open interface {name} on {bridge} "
            f"({outcome or f'no answer within {timeout_s:g} s'}). See the log of ovs-vswitchd."
        )
    finally:
        vswitch.close()


def remove_interface(
    name: str,
    *,
    bridge: str = "br-int",
    remote: str = DEFAULT_REMOTE,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> bool:
    """Take an interface off the bridge; False if it was not there. Raises `BackendUnavailable`."""
    vswitch = VSwitch(remote, bridge)
    try:
        _connect(vswitch, timeout_s)
        was_there = name in vswitch.interfaces()
        _remove(vswitch, name, timeout_s)
        return was_there
    finally:
        vswitch.close()


def interfaces_of(
    port_id: UUID,
    *,
    bridge: str = "br-int",
    remote: str = DEFAULT_REMOTE,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> list[str]:
    """The interfaces on the bridge that name this port. Raises `BackendUnavailable`."""
    vswitch = VSwitch(remote, bridge)
    try:
        _connect(vswitch, timeout_s)
        found = vswitch.interfaces().values()
        return sorted(interface.name for interface in found if interface.iface_id == port_id)
    finally:
        vswitch.close()


def _remove(vswitch: VSwitch, name: str, timeout_s: float) -> None:

    def is_off() -> bool | None:
        return vswitch.remove_port(name, confirmed=True) or None

    if _until(vswitch, is_off, timeout_s) is None:
        raise BackendUnavailable(
            f"interface {name} could not be taken off {vswitch.bridge} within {timeout_s:g} s "
            f"({vswitch.failure or 'no answer'}). See the log of ovsdb-server."
        )


def _connect(vswitch: VSwitch, timeout_s: float) -> None:
    if _until(vswitch, lambda: vswitch.connected or None, timeout_s) is None:
        raise BackendUnavailable(
            f"Open vSwitch's database does not answer at {vswitch.remote} within {timeout_s:g} s. "
            "Start it: `systemctl start openvswitch-switch`."
        )


def _until(vswitch: VSwitch, ready: Callable[[], T | None], timeout_s: float) -> T | None:
    """What `ready` returns once that is something, or None when the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        vswitch.run()
        outcome = ready()
        if outcome is not None:
            return outcome
        left_ms = int((deadline - time.monotonic()) * 1000)
        if left_ms <= 0:
            return None
        poller = ovs.poller.Poller()
        vswitch.wait(poller)
        poller.timer_wait(min(left_ms, 200))
        poller.block()
