"""Probing the underlay between tunnel endpoints with ICMP: what fits through, and whose clock.

All endpoints and sizes are asked at once, so it takes as long as one answer does, however many
hosts there are.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from netvirt.checks.paths import PathFacts
from tenancy.errors import BackendUnavailable

_ECHO_REQUEST, _ECHO_REPLY, _TIMESTAMP, _TIMESTAMP_REPLY = 8, 0, 13, 14  # RFC 792
_HEADERS_BYTES = 28  # IPv4 and ICMP
# Of linux/in.h: don't fragment, whatever the kernel believes of the path.
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
# Of linux/in.h: say how large the fragments were of which a datagram was put together.
_IP_RECVFRAGSIZE = 25
_SMALL = 64
# The MTUs that occur, tried when what is needed does not fit.
_LADDER = (576, 1280, 1350, 1400, 1450, 1480, 1492, 1500, 1550, 1600, 2000, 4000, 9000)
_WAIT_S, _ATTEMPTS = 1.0, 4
# An answer that took longer says too little of the other's clock.
_PROMPT_MS = 500
_DAY_MS = 86_400_000


@dataclass(slots=True)
class _Answers:
    """What has come back from one endpoint."""

    sizes: set[int] = field(default_factory=set)
    fragment: int | None = None
    clock_offset_s: float | None = None


def probe(source: IPv4Address, needed: Mapping[IPv4Address, int]) -> dict[IPv4Address, PathFacts]:
    """What passes from `source` to each endpoint and back, of IP packets as large as `needed`.

    Echo requests may not be fragmented on the way there; on the way back they may, and the kernel
    tells how small. Raises BackendUnavailable if this may not be asked here.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
            raw.setsockopt(socket.IPPROTO_IP, _IP_RECVFRAGSIZE, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            raw.bind((str(source), 0))
            raw.setblocking(False)
            return _Prober(raw, needed).run()
    except OSError as error:
        raise BackendUnavailable(
            f"paths from tunnel endpoint {source} can't be probed ({error.strerror}). Run it as "
            "root on the host that has this address."
        ) from error


class _Prober:
    def __init__(self, raw: socket.socket, needed: Mapping[IPv4Address, int]) -> None:
        self._raw = raw
        self._needed = needed
        self._id = os.getpid() & 0xFFFF
        self._answers = {endpoint: _Answers() for endpoint in needed}

    def run(self) -> dict[IPv4Address, PathFacts]:
        wanted = {e: {_SMALL, size} for e, size in self._needed.items()}
        for _ in range(_ATTEMPTS):
            self._ask(wanted, clock=True)
            wanted = self._unanswered(wanted)
            if not wanted:
                break
        short = {
            e: {size for size in _LADDER if size < self._needed[e]}
            for e, sizes in wanted.items()
            if _SMALL not in sizes
        }
        for _ in range(_ATTEMPTS if short else 0):
            self._ask(short, clock=False)
            short = self._unanswered(short)
        return {e: self._facts(e) for e in self._needed}

    def _facts(self, endpoint: IPv4Address) -> PathFacts:
        answers = self._answers[endpoint]
        return PathFacts(
            needed_bytes=self._needed[endpoint],
            passed_bytes=max(answers.sizes, default=None),
            back_bytes=answers.fragment,
            clock_offset_s=answers.clock_offset_s,
        )

    def _unanswered(self, wanted: Mapping[IPv4Address, set[int]]) -> dict[IPv4Address, set[int]]:
        left = {e: sizes - self._answers[e].sizes for e, sizes in wanted.items()}
        return {e: sizes for e, sizes in left.items() if sizes}

    def _ask(self, wanted: Mapping[IPv4Address, Collection[int]], *, clock: bool) -> None:
        for endpoint, sizes in wanted.items():
            for size in sorted(sizes):
                self._send(endpoint, _ECHO_REQUEST, size, bytes(size - _HEADERS_BYTES))
            if clock and self._answers[endpoint].clock_offset_s is None:
                self._send(endpoint, _TIMESTAMP, 0, struct.pack("!III", _now_ms(), 0, 0))
        give_up = time.monotonic() + _WAIT_S
        while self._unanswered({e: set(s) for e, s in wanted.items()}):
            left_s = give_up - time.monotonic()
            if left_s <= 0 or not select.select([self._raw], [], [], left_s)[0]:
                return
            self._receive()

    def _send(self, endpoint: IPv4Address, kind: int, number: int, payload: bytes) -> None:
        head = struct.pack("!BBHHH", kind, 0, 0, self._id, number)
        packet = struct.pack("!BBHHH", kind, 0, _checksum(head + payload), self._id, number)
        try:
            self._raw.sendto(packet + payload, (str(endpoint), 0))
        except OSError:
            # Too large for our own link (EMSGSIZE), or no route: as good as unanswered.
            return

    def _receive(self) -> None:
        try:
            data, ancillary, _, (sender, _) = self._raw.recvmsg(65535 + 64, 256)
        except OSError:
            return
        answers = self._answers.get(IPv4Address(sender))
        header = (data[0] & 0x0F) * 4
        message = data[header:]
        if answers is None or len(message) < 8:
            return
        kind, _, _, id_, number = struct.unpack_from("!BBHHH", message)
        if id_ != self._id:
            return
        if kind == _ECHO_REPLY:
            answers.sizes.add(number)
            for level, what, value in ancillary:
                if (level, what) == (socket.IPPROTO_IP, _IP_RECVFRAGSIZE):
                    size = int.from_bytes(value[:4], "little")
                    answers.fragment = min(size, answers.fragment or size) if size else None
        elif kind == _TIMESTAMP_REPLY and len(message) >= 20:
            sent, received, _ = struct.unpack_from("!III", message, 8)
            # The top bit says that it is no time of day (RFC 792).
            now = _now_ms()
            if not received >> 31 and (now - sent) % _DAY_MS < _PROMPT_MS:
                answers.clock_offset_s = _offset_s(sent, received, now)


def _offset_s(sent_ms: int, received_ms: int, now_ms: int) -> float:
    """How far the other clock is ahead; the way there and back take equally long, or nearly."""
    middle = sent_ms + ((now_ms - sent_ms) % _DAY_MS) / 2
    ahead = (received_ms - middle + _DAY_MS / 2) % _DAY_MS - _DAY_MS / 2
    return float(ahead) / 1000


def _now_ms() -> int:
    return int(time.time() * 1000) % _DAY_MS


def _checksum(data: bytes) -> int:
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    total = (total >> 16) + (total & 0xFFFF)
    return int(~(total + (total >> 16)) & 0xFFFF)
