"""Places in a lab from where something is called, and where something answers; hosts in tenants'
networks among them."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lab.host import Host
from tests.functional.tenants import Container, Fabric

# How much is sent either way.
SIZE = 3_000_000

SERVE = """
    import hashlib, os, socket, sys
    family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    listener = socket.create_server((sys.argv[1], 8080), family=family)
    print("listening", flush=True)
    while True:
        stream, peer = listener.accept()
        with stream:
            left, digest = int(stream.recv(8)), hashlib.sha256()
            while left:
                data = stream.recv(min(left, 65536))
                if not data:
                    break
                left -= len(data)
                digest.update(data)
            back = os.urandom(int(sys.argv[2]))
            stream.sendall(f"{peer[0]:>39}{digest.hexdigest()}".encode())
            stream.sendall(hashlib.sha256(back).hexdigest().encode() + back)
"""
CALL = """
    import hashlib, os, socket, sys
    size = int(sys.argv[3])
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=15) as stream:
        sent = os.urandom(size)
        stream.sendall(f"{size:08}".encode() + sent)
        reply = b""
        while data := stream.recv(65536):
            reply += data
    peer, there, back, data = reply[:39], reply[39:103], reply[103:167], reply[167:]
    assert there.decode() == hashlib.sha256(sent).hexdigest(), "what was sent arrived otherwise"
    assert len(data) == size and back.decode() == hashlib.sha256(data).hexdigest(), len(data)
    print(peer.decode().strip())
"""


@dataclass(frozen=True)
class Place:
    """Somewhere to run a program: a host itself, or a network namespace on it."""

    host: Host
    netns: str | None = None

    def call(self, ip: str, port: int = 8080, size: int = SIZE) -> str:
        """Send a server that many bytes and take as many from it, all compared; the source
        address that it saw."""
        argv = [sys.executable, "-c", textwrap.dedent(CALL), ip, str(port), str(size)]
        return self.host.run(argv, netns=self.netns, timeout_s=40).stdout.strip()

    @contextmanager
    def serving(self, ip: str) -> Iterator[None]:
        """A server for `call`."""
        argv = [sys.executable, "-c", textwrap.dedent(SERVE), ip, str(SIZE)]
        process = self.host.popen(argv, netns=self.netns, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "listening\n"
            yield
        finally:
            process.kill()
            process.wait(10)

    def ping(self, ip: str, *options: str, count: int = 3) -> int:
        """How many of `count` pings are answered."""
        argv = ["ping", "-c", str(count), "-i", "0.2", "-W", "1", *options, ip]
        found = self.host.run(argv, netns=self.netns, check=False).stdout
        return int(found.partition(" received")[0].rpartition(" ")[2] or 0)


def place(container: Container) -> Place:
    return Place(container.host, container.netns)


def own_port(fabric: Fabric, host: Host, tenant: str = "red") -> dict[str, Any]:
    """The host's own port in a tenant's network."""
    found = fabric(f"nvctl port list -t {tenant} -n front")
    (port,) = [one for one in found if one["name"] == f"host-{host.name}"]
    return dict(port)


def device(fabric: Fabric, host: Host, tenant: str = "red") -> str:
    return "vh" + own_port(fabric, host, tenant)["id"].replace("-", "")[:11]


def is_in(fabric: Fabric, host: Host, tenant: str) -> bool:
    """Whether the host has its device in the network, with an address."""
    names = {f"host-{host.name}"} & {p["name"] for p in fabric(f"nvctl port list -t {tenant}")}
    if not names:
        return False
    links = host.run(["ip", "-j", "address", "show", "up"]).stdout
    name = device(fabric, host, tenant)
    return any(link.get("ifname") == name and link["addr_info"] for link in json.loads(links))
