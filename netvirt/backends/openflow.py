"""The OpenFlow connection to a bridge of the local switch: the only module with its socket."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netvirt.backends.openflow_events import Event
from netvirt.observed import InstalledFlow
from netvirt.pipeline.flow import FlowChanges

DEFAULT_RUN_DIR = Path("/run/openvswitch")


class Switch:
    """One bridge. Nothing blocks: call `run` whenever what `wait` registered has happened."""

    def __init__(self, bridge: str, run_dir: Path = DEFAULT_RUN_DIR) -> None:
        self.flow_mods_sent = 0

    @property
    def connected(self) -> bool:
        raise NotImplementedError

    def run(self) -> list[Event]:
        raise NotImplementedError

    def wait(self, poller: Any) -> None:
        raise NotImplementedError

    def request_flows(self) -> None:
        """Ask for all flows; answered by `FlowsListed`."""
        raise NotImplementedError

    def apply(self, changes: FlowChanges) -> int:
        """Send the changes as one bundle; answered by `Applied` or `ApplyFailed` with this id."""
        raise NotImplementedError

    def ensure_meters(self, rates: Mapping[int, int]) -> None:
        """Have these meters, by id, in packets per second; answered by `MetersEnsured`."""
        raise NotImplementedError

    def packet_out(self, port: int, frame: bytes) -> None:
        """Send a frame out of a port; dropped when not connected."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def dump_flows(
    bridge: str, run_dir: Path = DEFAULT_RUN_DIR, timeout_s: float = 5.0
) -> list[InstalledFlow]:
    """All flows of a bridge, read at once; raises `BackendUnavailable` within the timeout."""
    raise NotImplementedError
