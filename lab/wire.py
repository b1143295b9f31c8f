"""What a capture of the underlay says: tunnelled frames with their segment id."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from os_ken.lib import pcaplib
from os_ken.lib.packet import gre, ipv4, packet, vxlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelledFrame:
    """A tenant's IPv4 packet as hosts carry it."""

    overlay: str
    segment_id: int
    outer_source: IPv4Address
    outer_destination: IPv4Address
    inner_source: IPv4Address
    inner_destination: IPv4Address


def tunnelled_frames(capture: Path) -> Iterator[TunnelledFrame]:
    """The IPv4 packets inside VXLAN (RFC 7348) and keyed GRE (RFC 2890), in order."""
    with capture.open("rb") as file:
        for _, raw in pcaplib.Reader(file):
            found = _tunnelled(raw)
            if found is not None:
                yield found


def _tunnelled(raw: bytes) -> TunnelledFrame | None:
    layers = list(packet.Packet(raw))
    addresses = [layer for layer in layers if isinstance(layer, ipv4.ipv4)]
    if len(addresses) != 2:
        return None
    outer, inner = addresses
    for layer in layers:
        if isinstance(layer, vxlan.vxlan):
            overlay, segment_id = "vxlan", layer.vni
        elif isinstance(layer, gre.gre) and layer.key is not None:
            overlay, segment_id = "gre", layer.key
        else:
            continue
        return TunnelledFrame(
            overlay=overlay,
            segment_id=segment_id,
            outer_source=IPv4Address(outer.src),
            outer_destination=IPv4Address(outer.dst),
            inner_source=IPv4Address(inner.src),
            inner_destination=IPv4Address(inner.dst),
        )
    return None
