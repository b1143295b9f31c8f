"""OVN's side of `benchmarks.control_plane`: one logical switch, ports by OVSDB as ovn-nbctl does.

Its programs are unpacked from Debian's packages, not installed: an installation would start them
on this machine. What is timed is what `ovn-nbctl --wait=hv` does, without the start of a process.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.control_plane_side import SIMULATED_HOSTS, Side, process_of, resident_kib
from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tenancy.backends.rpc import Rpc

PROGRAMS = Path("build/ovn").resolve()
PACKAGES = ("ovn-common", "ovn-central", "ovn-host")
NORTH, SOUTH = "OVN_Northbound", "OVN_Southbound"
SOCKETS = {NORTH: "/run/ovn-nb.sock", SOUTH: "/run/ovn-sb.sock"}
SCHEMAS = {NORTH: "ovn-nb.ovsschema", SOUTH: "ovn-sb.ovsschema"}
SOUTH_PORT = 6642
WAIT_S = 300.0
PROBE_S = 60
ASK_AGAIN_S = 10.0


def unpack() -> None:
    """Have OVN's programs under build/ovn, from the package archive if they are not there."""
    if (PROGRAMS / "usr/bin/ovn-northd").exists() and (PROGRAMS / ".whole").exists():
        return
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=PROGRAMS, check=True)
    for archive in PROGRAMS.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, PROGRAMS], check=True)
    (PROGRAMS / ".whole").touch()


class Ovn(Side):
    """A lab without our agents: OVN's databases and northd in `ctl`, a controller in each host."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._start_central(lab.ctl)
        for host in lab.hosts:
            self._start_controller(host, lab.ctl.address)
        [switch, *_] = self._transact(
            NORTH, {"op": "insert", "table": "Logical_Switch", "row": {"name": "front"}}
        )
        self._switch = switch["uuid"]
        until(lambda: self._rows("Chassis") == 2, what="controllers are not there", timeout_s=60)
        for number in range(SIMULATED_HOSTS):
            self._enter_chassis(number)
        for host in lab.hosts:
            host.run(
                "ovs-vsctl add-port br-int real -- set Interface real type=internal "
                f"external_ids:iface-id=real-{host.name}".split()
            )
        self._make([f"real-{host.name}" for host in lab.hosts], 1 << 20)
        self._wait("hv_cfg")

    def grow(self, first: int, number: int) -> tuple[float, float]:
        began = time.monotonic()
        names = [f"p{n}" for n in range(first, first + number)]
        for start in range(0, number, 500):
            self._make(names[start : start + 500], first + start)
        self._wait("sb_cfg")
        for start in range(0, number, 500):
            self._place(names[start : start + 500])
        written = time.monotonic() - began
        self._wait("hv_cfg")
        return written, time.monotonic() - began

    def add(self, name: str) -> None:
        self._make([name], 1 << 21, bump=True)
        self._await("hv_cfg")

    def bind(self, name: str) -> None:
        self._place([name])
        self._wait("hv_cfg")

    def remove(self, name: str) -> None:
        [found] = self._transact(
            NORTH,
            {
                "op": "select",
                "table": "Logical_Switch_Port",
                "where": [["name", "==", name]],
                "columns": ["_uuid"],
            },
        )
        change = ["ports", "delete", found["rows"][0]["_uuid"]]
        self._transact(NORTH, self._change_switch(change), *self._bump())
        self._await("hv_cfg")

    def resident_kib(self) -> float:
        controllers = [process_of(self._lab, host, "ovn-controller") for host in self._lab.hosts]
        return sum(map(resident_kib, controllers)) / len(controllers)

    # Its programs

    def _start_central(self, ctl: Host) -> None:
        for database, path in SOCKETS.items():
            file = f"/var/lib/virtkit/{database}.db"
            schema = PROGRAMS / "usr/share/ovn" / SCHEMAS[database]
            ctl.run(["ovsdb-tool", "create", file, str(schema)])
            remotes = [f"--remote=punix:{path}"]
            if database == SOUTH:
                remotes.append(f"--remote=db:{SOUTH},SB_Global,connections")
            _start(
                ctl, ["ovsdb-server", file, *remotes, f"--unixctl=/run/{database}.ctl"], database
            )
            until(ctl.path(path).exists, what=f"{database} is not there", timeout_s=30)
        north, south = (f"unix:{SOCKETS[database]}" for database in (NORTH, SOUTH))
        program = str(PROGRAMS / "usr/bin/ovn-northd")
        databases = [f"--ovnnb-db={north}", f"--ovnsb-db={south}"]
        _start(ctl, [program, *databases, "--unixctl=/run/northd.ctl"], "northd")
        self._rpcs = {
            database: Rpc.connect(f"unix:{ctl.path(path)}", WAIT_S)
            for database, path in SOCKETS.items()
        }
        until(lambda: self._rows("SB_Global") == 1, what="northd is not there", timeout_s=60)
        target = f"ptcp:{SOUTH_PORT}:{ctl.address}"
        # Five seconds, which is what it would be, are not enough on a busy machine.
        door = {"target": target, "inactivity_probe": 1000 * PROBE_S}
        self._transact(
            SOUTH,
            {"op": "insert", "table": "Connection", "uuid-name": "door", "row": door},
            {
                "op": "update",
                "table": "SB_Global",
                "where": [],
                "row": {"connections": ["named-uuid", "door"]},
            },
        )

    def _start_controller(self, host: Host, central: str) -> None:
        settings = {
            "system-id": host.name,
            "ovn-remote": f"tcp:{central}:{SOUTH_PORT}",
            "ovn-encap-type": "geneve",
            "ovn-encap-ip": host.address,
            "ovn-bridge-datapath-type": "netdev",
            "ovn-remote-probe-interval": str(1000 * PROBE_S),
            "ovn-openflow-probe-interval": str(PROBE_S),
        }
        options = [f'external_ids:{name}="{value}"' for name, value in settings.items()]
        host.run(["ovs-vsctl", "set", "Open_vSwitch", ".", *options])
        program = str(PROGRAMS / "usr/bin/ovn-controller")
        _start(host, [program], "ovn-controller")

    # Its databases

    def _transact(self, database: str, *operations: Mapping[str, Any]) -> list[Any]:
        results: list[Any] = self._rpcs[database].call("transact", [database, *operations])
        failed = [result for result in results if result and "error" in result]
        assert not failed, failed
        return results

    def _rows(self, table: str) -> int:
        [found] = self._transact(SOUTH, {"op": "select", "table": table, "where": []})
        return len(found["rows"])

    def _enter_chassis(self, number: int) -> None:
        encapsulation = {
            "op": "insert",
            "table": "Encap",
            "uuid-name": "encap",
            "row": {
                "type": "geneve",
                "ip": f"192.0.2.{100 + number}",
                "chassis_name": f"s{number}",
            },
        }
        row = {"name": f"s{number}", "encaps": ["named-uuid", "encap"]}
        self._transact(SOUTH, encapsulation, {"op": "insert", "table": "Chassis", "row": row})

    def _make(self, names: Sequence[str], number: int, *, bump: bool = False) -> None:
        operations: list[Mapping[str, Any]] = []
        for index, name in enumerate(names, number):
            mac = ":".join(f"{byte:02x}" for byte in (0x0A0000000000 + index).to_bytes(6, "big"))
            ip = ".".join(str(byte) for byte in (0x0A000002 + index).to_bytes(4, "big"))
            operations.append(
                {
                    "op": "insert",
                    "table": "Logical_Switch_Port",
                    "uuid-name": f"port{index}",
                    "row": {"name": name, "addresses": f"{mac} {ip}"},
                }
            )
        ports = ["set", [["named-uuid", f"port{n}"] for n, _ in enumerate(names, number)]]
        operations.append(self._change_switch(["ports", "insert", ports]))
        self._transact(NORTH, *operations, *(self._bump() if bump else ()))

    def _place(self, names: Sequence[str]) -> None:
        """Bind ports to simulated chassis, as their controllers would."""
        [chassis] = self._transact(SOUTH, {"op": "select", "table": "Chassis", "where": []})
        by_name = {row["name"]: row["_uuid"] for row in chassis["rows"]}
        operations = [
            {
                "op": "update",
                "table": "Port_Binding",
                "where": [["logical_port", "==", name]],
                "row": {"chassis": by_name[f"s{number % SIMULATED_HOSTS}"], "up": True},
            }
            for number, name in enumerate(names)
        ]
        counts = self._transact(SOUTH, *operations)
        assert all(result["count"] == 1 for result in counts), "a port is not there to be bound"

    def _change_switch(self, mutation: Sequence[Any]) -> dict[str, Any]:
        where = [["_uuid", "==", self._switch]]
        return {"op": "mutate", "table": "Logical_Switch", "where": where, "mutations": [mutation]}

    def _bump(self) -> tuple[dict[str, Any], ...]:
        change = {"op": "mutate", "table": "NB_Global", "where": []}
        return ({**change, "mutations": [["nb_cfg", "+=", 1]]},)

    def _wait(self, column: str) -> None:
        self._transact(NORTH, *self._bump())
        self._await(column)

    def _await(self, column: str) -> None:
        """Wait until `NB_Global` says that all have come to the present `nb_cfg`."""
        rpc = self._rpcs[NORTH]
        request = {"NB_Global": [{"columns": ["nb_cfg", column]}]}
        [row] = rpc.call("monitor", [NORTH, "wait", request])["NB_Global"].values()
        known = row["new"]
        deadline = time.monotonic() + WAIT_S
        while known[column] < known["nb_cfg"]:
            message = rpc.receive(time.monotonic() + ASK_AGAIN_S)
            assert time.monotonic() < deadline, f"{column} does not follow within {WAIT_S:g} s"
            if message is None:
                # A controller whose connection was lost meanwhile says nothing of old numbers.
                self._transact(NORTH, *self._bump())
                [found] = self._transact(
                    NORTH,
                    {
                        "op": "select",
                        "table": "NB_Global",
                        "where": [],
                        "columns": ["nb_cfg", column],
                    },
                )
                known = found["rows"][0]
            elif message.method == "update":
                [row] = message.params[1]["NB_Global"].values()
                known = {**known, **row["new"]}
        rpc.call("monitor_cancel", ["wait"])


def _start(host: Host, argv: Sequence[str], name: str) -> None:
    """A daemon that ends with its host at the latest."""
    log = Path(f"build/ovn/{host.lab}-{host.name}-{name}.log")
    with log.open("w") as output:
        host.popen(
            argv,
            environment={"OVN_RUNDIR": "/run"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def up() -> Lab:
    return Lab.up(f"bench-control-ovn-{os.getpid()}", hosts=2, agents=False)
