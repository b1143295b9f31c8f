"""What a port is told by DHCP, state by state of RFC 2131, and that no frame upsets the server.

Requests are made and replies read by scapy, which shares no code with the codec.
"""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from netvirt.backends.dhcp_frames import parse, render
from netvirt.dhcp import DhcpRequest, Lease, Message, answer

MAC = "0a:00:00:00:00:05"
SERVER_MAC = "0a:76:6b:00:00:01"
EVERYBODY = "ff:ff:ff:ff:ff:ff"
LEASE = Lease(
    ip=IPv4Address("10.1.0.5"),
    network=IPv4Network("10.1.0.0/24"),
    server_ip=IPv4Address("10.1.0.1"),
    server_mac=SERVER_MAC,
    mtu=1450,
    dns=(IPv4Address("9.9.9.9"), IPv4Address("1.1.1.1")),
    lease_time_s=3600,
    hostname="web-1",
)


def client_frame(kind: str, *options: Any, flags: int = 0, **bootp: Any) -> bytes:
    """What a client sends, by scapy."""
    header = {"chaddr": bytes.fromhex(MAC.replace(":", "")), "xid": 0x1234, "flags": flags}
    return bytes(
        Ether(src=MAC, dst=EVERYBODY)
        / IP(src=bootp.get("ciaddr", "0.0.0.0"), dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(**(header | bootp))
        / DHCP(options=[("message-type", kind), *options, "end"])
    )


def ask(frame: bytes, lease: Lease = LEASE) -> Any:
    """The reply to a frame as scapy reads it, or None."""
    request = parse(frame)
    assert isinstance(request, DhcpRequest), request
    reply = answer(request, lease)
    return None if reply is None else Ether(render(reply))


def options_of(packet: Any) -> dict[str, Any]:
    pairs = [option for option in packet[DHCP].options if isinstance(option, tuple)]
    return {name: values[0] if len(values) == 1 else list(values) for name, *values in pairs}


def test_discover_is_offered_the_ports_address_and_all_it_needs_to_know() -> None:
    reply = ask(client_frame("discover"))

    assert (reply.src, reply.dst) == (SERVER_MAC, MAC)
    assert (reply[IP].src, reply[IP].dst) == ("10.1.0.1", "10.1.0.5")
    assert (reply[UDP].sport, reply[UDP].dport) == (67, 68)
    assert (reply[BOOTP].op, reply[BOOTP].xid, reply[BOOTP].yiaddr) == (2, 0x1234, "10.1.0.5")
    assert options_of(reply) == {
        "message-type": 2,
        "server_id": "10.1.0.1",
        "lease_time": 3600,
        "renewal_time": 1800,
        "rebinding_time": 3150,
        "subnet_mask": "255.255.255.0",
        "broadcast_address": "10.1.0.255",
        "interface-mtu": 1450,
        "name_server": ["9.9.9.9", "1.1.1.1"],
        "hostname": b"web-1",
    }


def test_checksums_are_those_that_scapy_computes() -> None:
    reply = ask(client_frame("discover"))
    sent = (reply[IP].chksum, reply[UDP].chksum)
    del reply[IP].chksum, reply[UDP].chksum
    again = Ether(bytes(reply))

    assert sent == (again[IP].chksum, again[UDP].chksum)


def test_client_that_can_not_take_unicast_yet_is_answered_by_broadcast() -> None:
    reply = ask(client_frame("discover", flags=0x8000))

    assert (reply.dst, reply[IP].dst, int(reply[BOOTP].flags)) == (
        EVERYBODY,
        "255.255.255.255",
        0x8000,
    )


def test_client_identifier_is_given_back() -> None:
    reply = ask(client_frame("discover", ("client_id", b"\x01abcdef")))

    assert options_of(reply)["client_id"] == b"\x01abcdef"


SELECTING = [("server_id", "10.1.0.1"), ("requested_addr", "10.1.0.5")]
OTHER_ADDRESS = [("server_id", "10.1.0.1"), ("requested_addr", "10.1.0.6")]
OTHER_SERVER = [("server_id", "10.1.0.9"), ("requested_addr", "10.1.0.5")]


@pytest.mark.parametrize(
    ("options", "bootp", "expected"),
    [
        pytest.param(SELECTING, {}, Message.ACK, id="selecting"),
        pytest.param(OTHER_ADDRESS, {}, Message.NAK, id="selecting another address"),
        pytest.param(OTHER_SERVER, {}, None, id="selecting another server"),
        pytest.param([("server_id", "10.1.0.1")], {}, Message.NAK, id="selecting nothing"),
        pytest.param([("requested_addr", "10.1.0.5")], {}, Message.ACK, id="rebooting"),
        pytest.param([("requested_addr", "10.7.0.5")], {}, Message.NAK, id="rebooting, moved"),
        pytest.param([], {"ciaddr": "10.1.0.5"}, Message.ACK, id="renewing"),
        pytest.param([], {"ciaddr": "10.1.0.6"}, Message.NAK, id="renewing another address"),
        pytest.param([], {}, None, id="asking for nothing"),
    ],
)
def test_request_is_answered_by_the_state_the_client_is_in(
    options: list[Any], bootp: dict[str, str], expected: Message | None
) -> None:
    reply = ask(client_frame("request", *options, **bootp))

    assert (reply and options_of(reply)["message-type"]) == expected


def test_renewal_is_answered_to_the_address_in_use() -> None:
    reply = ask(client_frame("request", ciaddr="10.1.0.5", flags=0x8000))

    assert (reply.dst, reply[IP].dst, reply[BOOTP].ciaddr) == (MAC, "10.1.0.5", "10.1.0.5")


def test_refusal_goes_to_everybody_and_says_nothing_else() -> None:
    reply = ask(client_frame("request", ("requested_addr", "10.7.0.5"), ("client_id", b"me")))

    assert (reply.dst, reply[IP].dst, reply[BOOTP].yiaddr) == (
        EVERYBODY,
        "255.255.255.255",
        "0.0.0.0",
    )
    assert options_of(reply) == {"message-type": 6, "server_id": "10.1.0.1", "client_id": b"me"}


def test_inform_is_told_the_configuration_without_a_lease() -> None:
    reply = ask(client_frame("inform", ciaddr="10.1.0.77"))

    assert (reply[IP].dst, reply[BOOTP].yiaddr) == ("10.1.0.77", "0.0.0.0")
    told = options_of(reply)
    assert told["message-type"] == Message.ACK
    assert told["interface-mtu"] == 1450
    assert not {"lease_time", "renewal_time", "rebinding_time"} & told.keys()


@pytest.mark.parametrize("kind", ["decline", "release", "offer", "ack", "nak"])
def test_nothing_is_answered_to(kind: str) -> None:
    assert ask(client_frame(kind, ("requested_addr", "10.1.0.5"))) is None


def test_relayed_request_is_not_answered() -> None:
    assert ask(client_frame("discover", giaddr="10.1.0.99")) is None


def test_router_is_among_the_classless_routes_because_they_make_it_be_ignored() -> None:
    gateway = IPv4Address("10.1.0.1")
    routes = ((IPv4Network("10.128.0.0/9"), IPv4Address("10.1.0.7")),)

    told = options_of(ask(client_frame("discover"), replace(LEASE, routes=routes, router=gateway)))

    assert told["router"] == "10.1.0.1"
    assert told["classless_static_routes"] == ["10.128.0.0/9:10.1.0.7", "0.0.0.0/0:10.1.0.1"]


def test_shortest_reply_is_as_long_as_the_oldest_clients_expect() -> None:
    reply = ask(client_frame("request", ("requested_addr", "10.7.0.5")))

    assert len(reply[UDP].payload) == 300


def test_padding_between_options_does_not_end_them() -> None:
    frame = client_frame("request", "pad", "pad", ("requested_addr", "10.1.0.5"), "pad")

    request = parse(frame)

    assert isinstance(request, DhcpRequest)
    assert request.requested_ip == IPv4Address("10.1.0.5")


def test_options_go_on_in_the_name_fields() -> None:
    requested = bytes([50, 4, 10, 1, 0, 5, 255])
    server = bytes([54, 4, 10, 1, 0, 1, 255])

    request = parse(
        client_frame("request", ("dhcp-option-overload", 3), file=requested, sname=server)
    )

    assert isinstance(request, DhcpRequest)
    assert (request.requested_ip, request.server_ip) == (LEASE.ip, LEASE.server_ip)


DISCOVER = client_frame("discover", ("client_id", b"\x01abcdef"), ("requested_addr", "10.1.0.5"))
_OPTIONS_AT = 14 + 20 + 8 + 240


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(b"", "truncated Ethernet header", id="nothing"),
        pytest.param(DISCOVER[:12] + b"\x86\xdd" + DISCOVER[14:], "not IPv4", id="ipv6"),
        pytest.param(DISCOVER[:30], "truncated IPv4 header", id="cut in IPv4"),
        pytest.param(DISCOVER[:100], "IPv4 header's lengths", id="cut in DHCP"),
        pytest.param(
            DISCOVER[:20] + b"\x20\x00" + DISCOVER[22:], "not UDP in one piece", id="fragment"
        ),
        pytest.param(
            DISCOVER[:_OPTIONS_AT] + b"\x35\xff" + DISCOVER[_OPTIONS_AT + 2 :],
            "an option's length",
            id="option beyond the end",
        ),
        pytest.param(client_frame("discover", op=2), "not a request", id="reply"),
        pytest.param(client_frame("discover", hlen=16), "not an Ethernet address", id="infiniband"),
        pytest.param(client_frame("discover", options=b"abcd"), "BOOTP without DHCP", id="bootp"),
        pytest.param(
            client_frame("discover", (50, b"\1\2")), "an address's length", id="short address"
        ),
    ],
)
def test_malformed_frame_is_refused_with_the_reason(frame: bytes, reason: str) -> None:
    assert parse(frame) == reason


@given(st.binary(max_size=600))
def test_no_bytes_upset_the_parser(frame: bytes) -> None:
    parse(frame)


@given(
    cut=st.integers(0, len(DISCOVER)),
    changes=st.lists(st.tuples(st.integers(0, len(DISCOVER) - 1), st.integers(0, 255)), max_size=6),
)
def test_no_damage_to_a_real_request_upsets_the_server(
    cut: int, changes: list[tuple[int, int]]
) -> None:
    frame = bytearray(DISCOVER)
    for at, octet in changes:
        frame[at] = octet
    request = parse(bytes(frame[:cut]))
    if isinstance(request, DhcpRequest):
        reply = answer(request, LEASE)
        if reply is not None:
            Ether(render(reply)).show2(dump=True)


@given(st.binary(max_size=400), st.binary(max_size=64), st.binary(max_size=128))
def test_no_options_upset_the_server(options: bytes, sname: bytes, file: bytes) -> None:
    message = bytes([53, 1, 1, 52, 1, 3]) + options
    frame = bytes(
        Ether(src=MAC, dst=EVERYBODY)
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP(chaddr=b"\x0a\0\0\0\0\5", options=b"c\x82Sc", sname=sname, file=file)
        / message
    )
    request = parse(frame)
    if isinstance(request, DhcpRequest):
        reply = answer(request, LEASE)
        if reply is not None:
            assert Ether(render(reply))[BOOTP].xid == request.xid
