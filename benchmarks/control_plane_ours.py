"""virtkit's side of `benchmarks.control_plane`: one tenant, one network, ports through the SDK.

Simulated hosts are rows whose agent, to judge by them, has applied everything for ever.
"""

import json
import os
import time
from typing import Any

from benchmarks.control_plane_side import SIMULATED_HOSTS, Side, process_of, resident_kib
from lab.lab import Lab
from lab.waiting import until
from netvirt.service import hosts, networks, port_batches, ports
from netvirt.service.acknowledge import wait_for_hosts
from netvirt.service.ports import PortRequest, PortState
from tenancy.backends.fabric import Fabric

WAIT_S = 120.0
FOR_EVER = 2**62


class Ours(Side):
    """A lab with agents; what is timed runs here and reaches the database by its unix socket."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        for line in (
            "nvctl tenant create bench --quota ports=1000000 --quota addresses=1000000",
            "nvctl network create front -t bench --cidr 10.0.0.0/9",
        ):
            lab.ctl.run(line.split())
        self._fabric = Fabric.connect(f"unix:{lab.ctl.path('/run/virtkit/fabric.sock')}")
        for host in lab.hosts:
            create = f"nvctl port create real-{host.name} -t bench -n front -o json"
            made = json.loads(lab.ctl.run(create.split()).stdout)
            host.run(
                "ovs-vsctl add-port br-int real -- set Interface real type=internal "
                f"external_ids:iface-id={made['id']}".split()
            )
        transaction = self._fabric.transaction()
        for number in range(SIMULATED_HOSTS):
            columns: dict[str, Any] = {"name": f"s{number}", "tunnel_ip": f"192.0.2.{100 + number}"}
            columns |= {"overlays": frozenset({"vxlan", "gre"}), "cfg": FOR_EVER}
            transaction.insert("Host", columns)
        transaction.commit()
        until(
            lambda: all(hosts.bound_ports(self._fabric).get(host.name) for host in lab.hosts),
            what="the real ports are not bound",
            timeout_s=60,
        )
        self._network = networks.find(self._fabric, "bench", "front").id
        self._made: dict[str, PortState] = {}

    def grow(self, first: int, number: int) -> tuple[float, float]:
        began = time.monotonic()
        for start in range(first, first + number, 500):
            names = [f"p{n}" for n in range(start, min(start + 500, first + number))]
            requests = [PortRequest(name=name) for name in names]
            states = port_batches.create_many(self._fabric, "bench", "front", requests)
            self._bind(states, waits=start + 500 >= first + number)
        written = time.monotonic() - began
        self._wait()
        return written, time.monotonic() - began

    def add(self, name: str) -> None:
        request = PortRequest(name=name)
        self._made[name] = ports.create(self._fabric, "bench", "front", request, wait_s=WAIT_S)

    def bind(self, name: str) -> None:
        self._bind([self._made[name]], waits=True)
        self._wait()

    def remove(self, name: str) -> None:
        ports.delete(self._fabric, "bench", "front", name, force=True, wait_s=WAIT_S)

    def resident_kib(self) -> float:
        agents = [process_of(self._lab, host, "agent run") for host in self._lab.hosts]
        return sum(map(resident_kib, agents)) / len(agents)

    def _bind(self, states: list[PortState], *, waits: bool) -> None:
        """Bind ports to simulated hosts, as their agents would."""
        transaction = self._fabric.transaction()
        for number, state in enumerate(states):
            columns = {"port": state.port.id, "network": state.network.id, "claim": 1}
            host = f"s{number % SIMULATED_HOSTS}"
            transaction.insert("Binding", {**columns, "host": host, "active": True})
        if waits:
            transaction.request_acknowledgement(self._network)
        transaction.commit()
        self._asked = transaction

    def _wait(self) -> None:
        asked = self._asked
        wait_for_hosts(self._fabric, "ports", asked.cfg, asked.holders, WAIT_S)


def up() -> Lab:
    return Lab.up(f"bench-control-ours-{os.getpid()}", hosts=2)
