"""`nvctl` in a lab, as the network tests call it, and the containers it plugs in."""

import json
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until


@dataclass(frozen=True)
class Container:
    """A network namespace on a host with a port of a tenant's network in it."""

    host: Host
    tenant: str
    network: str
    name: str
    ip: str
    mac: str
    port_id: str
    link: str
    not_yet_on: list[str]

    @property
    def netns(self) -> str:
        return f"{self.tenant}-{self.network}-{self.name}"

    def run(self, line: str, *, check: bool = True, timeout_s: float = 60) -> str:
        """What a command prints in the container."""
        return self.host.run(
            line.split(), netns=self.netns, check=check, timeout_s=timeout_s
        ).stdout

    def python(self, program: str, *arguments: object) -> str:
        """What a Python program prints in the container."""
        argv = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
        return self.host.run(argv, netns=self.netns).stdout

    def ping(self, ip: str, *, count: int = 3, size: int = 56, fragment: bool = True) -> int:
        """How many of `count` pings are answered."""
        line = f"ping -c {count} -i 0.2 -W 1 -s {size} {'' if fragment else '-M do'} {ip}"
        found = self.run(line, check=False)
        return int(found.partition(" received")[0].rpartition(" ")[2] or 0)

    def received(self) -> int:
        """Frames that its interface has received."""
        links = json.loads(self.run("ip -j -s link show eth0"))
        return int(links[0]["stats64"]["rx"]["packets"])


class Fabric:
    """A lab's hosts, driven as an operator drives them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def __call__(self, line: str, host: Host | None = None) -> Any:
        """The decoded answer of a command, run in `ctl` or a host; it must succeed."""
        done = (host or self.lab.ctl).run([*line.split(), "-o", "json"])
        return json.loads(done.stdout)

    def do(self, line: str, host: Host | None = None) -> None:
        """Run a command that prints nothing; it must succeed."""
        (host or self.lab.ctl).run(line.split())

    def refused(self, line: str, host: Host | None = None) -> str:
        """The sentence with which a command that must fail does."""
        done = (host or self.lab.ctl).run(line.split(), check=False)
        assert done.returncode in (1, 2), done
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr.strip()

    def container(
        self, host_name: str, tenant: str, network: str, name: str, ip: str | None = None
    ) -> Container:
        """A container with a new port of this name."""
        host = self.lab.host(host_name)
        address = f"--ip {ip}" if ip else ""
        port = self(f"nvctl port create {name} -t {tenant} -n {network} {address}")
        netns = f"{tenant}-{network}-{name}"
        host.add_netns(netns)
        plug = self(f"nvctl port plug {port['id']} --netns {netns}", host)
        return Container(
            host,
            tenant,
            network,
            name,
            port["addresses"][0],
            port["mac"],
            port["id"],
            plug["link"],
            plug["not_yet_on"],
        )

    def remove(self, container: Container) -> None:
        self.do(f"nvctl port unplug {container.port_id}", container.host)
        container.host.delete_netns(container.netns)
        self.do(f"nvctl port delete {container.port_id} --yes")

    def remove_tenant(self, tenant: str) -> None:
        """Take away a tenant with its networks and ports, wherever they are plugged in."""
        for port in self(f"nvctl port list -t {tenant}"):
            if port["kind"] == "host":
                continue
            if port["host"]:
                host = self.lab.host(port["host"])
                self.do(f"nvctl port unplug {port['id']}", host)
                host.run(
                    ["ip", "netns", "delete", f"{tenant}-{port['network']}-{port['name']}"],
                    check=False,
                )
            self.do(f"nvctl port delete {port['id']} --yes")
        for network in self(f"nvctl network list -t {tenant}"):
            self.do(f"nvctl network delete {network['name']} -t {tenant} --yes")
        self.do(f"nvctl tenant delete {tenant} --yes")

    def drops(self, host: Host) -> dict[str, int]:
        """Packets dropped on a host, by reason."""
        return {row["reason"]: row["packets"] for row in self("nvctl agent drops", host)}

    def dropped_since(
        self, before: dict[str, int], host: Host, reason: str, count: int
    ) -> dict[str, int]:
        """Packets dropped since `before`, once `count` were for this reason; or after seconds.

        A frame is sent long before the switch gets to it, if others want the processor.
        """
        deadline = time.monotonic() + 5
        while True:
            now = self.drops(host)
            since = {name: now[name] - before[name] for name in now}
            if since[reason] >= count or time.monotonic() > deadline:
                return {name: packets for name, packets in since.items() if packets}

    def flows(self, host: Host) -> list[str]:
        """The flows of br-int as ovs-ofctl writes them, without what it counts."""
        dump = ["ovs-ofctl", "dump-flows", "br-int", "--no-stats"]
        return sorted(line.strip() for line in host.run(dump).stdout.splitlines())


def pinging(container: Container, ip: str) -> AbstractContextManager[list[int]]:
    """A hundred pings a second before, during and after the block; the list gets those lost.

    Those lost are numbers that were not answered while a later one was.
    """
    return pinging_from(container.host, ip, netns=container.netns)


@contextmanager
def pinging_from(host: Host, ip: str, *, netns: str | None = None) -> Iterator[list[int]]:
    """The same from a host itself, or from a namespace on it."""
    lost: list[int] = []
    argv = ["ping", "-i", "0.01", ip]
    # A file, since a full pipe would make ping wait and lose what it is sent meanwhile. It is read
    # by another descriptor: one that is shared has one place, and ping would write where we read.
    with tempfile.NamedTemporaryFile("w") as output:
        process = host.popen(argv, netns=netns, stdout=output)

        def answered() -> set[int]:
            text = Path(output.name).read_text()
            return {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", text)}

        def is_answered_after(number: int) -> bool:
            return max(answered(), default=0) > number

        try:
            until(lambda: is_answered_after(0), what="no ping is answered", timeout_s=10)
            yield lost
            last = max(answered())
            until(lambda: is_answered_after(last + 50), what="no ping is answered", timeout_s=30)
        finally:
            process.terminate()
            process.wait(10)
        lost += sorted(set(range(1, max(answered()))) - answered())


def agent_state(host: Host) -> dict[str, int]:
    """What the agent noted when it was ready."""
    found: dict[str, int] = json.loads(host.path("/run/virtkit/agent.ready").read_text())
    return found
