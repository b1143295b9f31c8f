"""Hosts that are far from each other: frames are held, and the relays are part of the lab."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.host import Host
from lab.lab import Lab
from lab.latency import relay_name
from tenancy.errors import Refused
from tests.functional.storage import until

pytestmark = [pytest.mark.functional]

LATENCY_US = 5000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"test-latency-{os.getpid()}", hosts=2, agents=False, latency_us=LATENCY_US) as lab:
        yield lab


def shortest_ms(host: Host, to: str) -> float:
    """The shortest of ten round trips."""
    answer = host.run(["ping", "-c", "10", "-i", "0.05", "-W", "5", "-q", to]).stdout
    found = re.search(r"= ([\d.]+)/", answer)
    assert found, answer
    return float(found[1])


def answers(host: Host, to: str) -> bool:
    return host.run(["ping", "-c", "1", "-W", "1", "-q", to], check=False).returncode == 0


def test_a_frame_is_held_once_on_its_way_from_host_to_host(lab: Lab) -> None:
    between, to_ctl = shortest_ms(lab.host("h1"), "h2"), shortest_ms(lab.host("h1"), "ctl")

    # There and back, each held once; to ctl only what the host sends is held.
    assert between >= 2 * LATENCY_US / 1000
    assert LATENCY_US / 1000 <= to_ctl < between


def test_whole_frames_and_bursts_pass(lab: Lab) -> None:
    h1, h2 = lab.host("h1"), lab.host("h2")

    done = h1.run(["ping", "-c", "20", "-i", "0.01", "-s", "1472", "-M", "do", "-W", "5", "h2"])
    assert " 20 received" in done.stdout
    # 8 MiB through TCP, checked: more than a packet socket's default buffer, many times over.
    receive = "import socket,hashlib; s=socket.create_server(('0.0.0.0', 7001)); c,_=s.accept()\n"
    receive += "h=hashlib.sha256()\nwhile b:=c.recv(65536): h.update(b)\nprint(h.hexdigest())"
    send = "import socket,hashlib; d=bytes(range(256))*32768; "
    send += "socket.create_connection(('h2', 7001), 20).sendall(d); "
    send += "print(hashlib.sha256(d).hexdigest())"
    with h2.popen(["python3", "-c", receive], stdout=-1, text=True) as server:
        until(lambda: "7001" in h2.run(["ss", "-ltn"]).stdout)
        sent = h1.run(["python3", "-c", send]).stdout
        assert server.stdout is not None and server.stdout.read() == sent


def test_a_relay_that_died_cuts_its_host_off_until_it_is_started_again(lab: Lab) -> None:
    h1 = lab.host("h1")
    assert answers(h1, "h2")

    assert lab.ctl.kill(relay_name("h1"))
    assert not answers(h1, "h2")

    with pytest.raises(Refused, match=r"is up with 2 hosts.* 5000 us between hosts"):
        Lab.up(lab.name, hosts=2, agents=False)
    Lab.up(lab.name, hosts=2, agents=False, latency_us=LATENCY_US)
    until(lambda: answers(h1, "h2"))


def test_relays_end_with_the_lab() -> None:
    with Lab.up(f"test-latency-end-{os.getpid()}", hosts=1, agents=False, latency_us=100) as lab:
        relays = [pid for pid in lab.processes() if b"virtlab-relay" in _command(pid)]
        assert len(relays) == 1

    assert not any(Path(f"/proc/{pid}").exists() and b"relay" in _command(pid) for pid in relays)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
