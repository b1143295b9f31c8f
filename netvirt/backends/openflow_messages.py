"""OpenFlow 1.5 messages as bytes, by os-ken: all but flows, which are in `openflow_flows`.

OpenFlow 1.5, because there a meter is an action with a place among the others; in 1.4 it is an
instruction that comes first. See the OpenFlow 1.5.1 specification, section 7.
"""

import struct
from typing import Any

from os_ken.ofproto import ofproto_common
from os_ken.ofproto import ofproto_v1_5 as ofproto
from os_ken.ofproto import ofproto_v1_5_parser as parser
from os_ken.ofproto.ofproto_parser import msg as _parse_message
from os_ken.ofproto.ofproto_protocol import ProtocolDesc

from netvirt.backends.openflow_events import PacketIn

VERSION = ofproto.OFP_VERSION
HEADER = struct.Struct(ofproto_common.OFP_HEADER_PACK_STR)
# OFPC_FRAG_NX_MATCH of Open vSwitch's openflow-common.h.
_MATCH_FIRST_FRAGMENT = 3
BUNDLE_FLAGS = ofproto.OFPBF_ATOMIC | ofproto.OFPBF_ORDERED

# What os-ken's message classes take for a switch; it only tells them the version.
DATAPATH = ProtocolDesc(VERSION)


def encode(message: Any, xid: int) -> bytes:
    """The bytes of an os-ken message."""
    message.set_xid(xid)
    message.serialize()
    return bytes(message.buf)


def hello(xid: int) -> bytes:
    return encode(parser.OFPHello(DATAPATH), xid)


def echo_reply(xid: int, data: bytes) -> bytes:
    return encode(parser.OFPEchoReply(DATAPATH, data), xid)


def echo_request(xid: int) -> bytes:
    return encode(parser.OFPEchoRequest(DATAPATH, b""), xid)


def set_config(xid: int) -> bytes:
    """Have packets sent to us, uncut, and a datagram's ports seen in its first fragment.

    A switch sends no packet to a controller that it did not call (ovs-vswitchd's "service"
    connections) before it is given a length. As OpenFlow has it, all fragments have ports 0, and
    what is dropped by its port passes in pieces. See "set-frags" in ovs-ofctl(8), nx-match.
    """
    return encode(
        parser.OFPSetConfig(DATAPATH, _MATCH_FIRST_FRAGMENT, ofproto.OFPCML_NO_BUFFER), xid
    )


# Meters


def meters_request(xid: int) -> bytes:
    return encode(parser.OFPMeterDescStatsRequest(DATAPATH), xid)


def parse_meters(message: bytes) -> dict[int, int | None]:
    """Packets per second of each meter in one part of the answer to `meters_request`.

    None stands for a meter that is not as `meter_mod` writes them.
    """
    return {meter.meter_id: _meter_rate(meter) for meter in _parse(message).body}


def _meter_rate(meter: Any) -> int | None:
    ours = ofproto.OFPMF_PKTPS | ofproto.OFPMF_BURST
    if meter.flags & (ours | ofproto.OFPMF_KBPS) != ours or len(meter.bands) != 1:
        return None
    band = meter.bands[0]
    same = isinstance(band, parser.OFPMeterBandDrop) and band.burst_size == band.rate
    return int(band.rate) if same else None


def meter_mod(xid: int, meter_id: int, packets_per_s: int, *, exists: bool) -> bytes:
    """Write a meter whose burst is what it lets through in one second."""
    return encode(
        parser.OFPMeterMod(
            DATAPATH,
            ofproto.OFPMC_MODIFY if exists else ofproto.OFPMC_ADD,
            ofproto.OFPMF_PKTPS | ofproto.OFPMF_BURST,
            meter_id,
            [parser.OFPMeterBandDrop(rate=packets_per_s, burst_size=packets_per_s)],
        ),
        xid,
    )


def barrier_request(xid: int) -> bytes:
    return encode(parser.OFPBarrierRequest(DATAPATH), xid)


# Bundles


def bundle_control(xid: int, bundle_id: int, kind: int) -> bytes:
    return encode(parser.OFPBundleCtrlMsg(DATAPATH, bundle_id, kind, BUNDLE_FLAGS, []), xid)


def bundle_kind(message: bytes) -> int:
    """Which control message this is, one of OFPBCT_*."""
    kind: int = struct.unpack_from(ofproto.OFP_BUNDLE_CTRL_MSG_PACK_STR, message, HEADER.size)[1]
    return kind


# Multipart replies

_MULTIPART = struct.Struct(ofproto.OFP_MULTIPART_REPLY_PACK_STR)


def is_last_part(message: bytes) -> bool:
    """Whether no further part of this multipart reply follows."""
    flags: int = _MULTIPART.unpack_from(message, HEADER.size)[1]
    return not flags & ofproto.OFPMPF_REPLY_MORE


# Packets and errors


def parse_packet_in(message: bytes) -> PacketIn:
    packet = _parse(message)
    return PacketIn(
        cookie=packet.cookie,
        table=packet.table_id,
        in_port=packet.match.get("in_port", 0),
        metadata=packet.match.get("metadata", 0),
        tunnel_id=packet.match.get("tunnel_id"),
        tunnel_source=packet.match.get("tun_ipv4_src"),
        frame=bytes(packet.data),
    )


def error_text(message: bytes) -> str:
    """What an error message says, by the specification's names."""
    type_, code = struct.unpack_from(ofproto.OFP_ERROR_MSG_PACK_STR, message, HEADER.size)
    names: dict[str, str] = ofproto.ofp_error_to_jsondict(type_, code)
    return f"{names['type']}, {names['code']}"


def _parse(message: bytes) -> Any:
    """The os-ken message of these bytes; raises `struct.error`."""
    parsed = _parse_message(DATAPATH, *HEADER.unpack_from(message), message)
    if parsed is None:
        raise struct.error("os-ken can't read it")
    return parsed
