"""The local switch's database (ovs-vswitchd.conf.db(5)): what is there, and writes to it.

Writes are level-triggered: each `ensure_*` and `remove_*` returns True if the database already
says so. If not, it adds what differs to the transaction that the next `run` sends, and returns
False; the caller asks again when `run` reports a change. So nothing blocks, and a write that
failed or was overtaken is simply made again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from netvirt.observed import Interface

DEFAULT_REMOTE = "unix:/run/openvswitch/db.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """What the integration bridge should be. `tunnels` maps port names to tunnel types."""

    name: str = "br-int"
    datapath_type: str = "system"
    tunnels: tuple[tuple[str, str], ...] = (("vk-vxlan", "vxlan"), ("vk-gre", "gre"))


class VSwitch:
    """A replica of the few tables that matter, and at most one transaction under way."""

    def __init__(self, remote: str = DEFAULT_REMOTE, bridge: str = "br-int") -> None:
        pass

    @property
    def connected(self) -> bool:
        """Whether the replica is complete and current."""
        raise NotImplementedError

    @property
    def seqno(self) -> int:
        """Changes whenever what is observed does."""
        raise NotImplementedError

    @property
    def failure(self) -> str | None:
        """Why the last write was refused; None after one that succeeded."""
        raise NotImplementedError

    def run(self) -> bool:
        """Take in and send what there is, never blocking; True if anything has changed."""
        raise NotImplementedError

    def wait(self, poller: Any) -> None:
        raise NotImplementedError

    def interfaces(self) -> Mapping[str, Interface]:
        """Interfaces of the bridge by name; the same object until something changes."""
        raise NotImplementedError

    def ensure_bridge(self, bridge: Bridge) -> bool:
        raise NotImplementedError

    def ensure_mtu(self, interface: str, mtu: int) -> bool:
        raise NotImplementedError

    def ensure_external_ids(self, interface: str, ids: Mapping[str, str]) -> bool:
        raise NotImplementedError

    def remove_port(self, name: str) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def add_interface(
    name: str,
    port_id: UUID,
    mac: str,
    *,
    bridge: str = "br-int",
    remote: str = DEFAULT_REMOTE,
    timeout_s: float = 10.0,
) -> int:
    """Put an interface on the bridge for a port and return its OpenFlow port number.

    Returns as soon as the switch has opened it. Idempotent. Raises `BackendUnavailable`.
    """
    raise NotImplementedError


def remove_interface(
    name: str, *, bridge: str = "br-int", remote: str = DEFAULT_REMOTE, timeout_s: float = 10.0
) -> bool:
    """Take an interface off the bridge; False if it was not there. Idempotent."""
    raise NotImplementedError
