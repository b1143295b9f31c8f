"""Whatever is killed half-way and run again: the end is the same as without it.

One lab with Ceph; container `a` of red on h1, `b` on h2, and a VM on h3 with its root on RBD.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.guest import build
from lab.host import Host
from lab.lab import Lab
from lab.machine import Machine, Nic
from lab.vm import VirtualMachine
from lab.waiting import until
from tests.functional.tenants import Fabric, agent_state

pytestmark = [pytest.mark.functional, pytest.mark.ceph]


class World:
    """What the tests of this module disturb."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.fabric = Fabric(lab)
        self.fabric("nvctl tenant create red")
        self.fabric("nvctl network create front -t red --cidr 10.1.0.0/24")
        self.a = self.fabric.container("h1", "red", "front", "a", "10.1.0.10")
        self.b = self.fabric.container("h2", "red", "front", "b", "10.1.0.11")
        self.vm = self.boot(lab.host("h3"))

    def boot(self, host: Host) -> VirtualMachine:
        guest = build()
        self.fabric("svctl pool create vms")
        self.fabric("svctl namespace create red --pool vms")
        self.fabric(f"svctl image import golden --tenant red --from {guest.qcow2} --snapshot v1")
        self.fabric("svctl image clone golden@v1 web --tenant red")
        self.fabric("nvctl port create web -t red -n front --kind vm --ip 10.1.0.20")
        plug = self.fabric("nvctl port plug web -t red -n front --tap", host)
        disk = self.fabric("svctl image attach web --tenant red --write-dir /run/virtkit/vm", host)
        machine = Machine(
            name="web",
            guest=guest,
            disk=tuple(disk["qemu"]["arguments"]),
            nics=(Nic(tap=plug["link"], mac=plug["mac"]),),
        )
        vm = VirtualMachine.start(machine, Path("/run/virtkit/vm/web"), host)
        vm.wait_for_boot(timeout_s=120)
        assert str(vm.lease().address) == "10.1.0.20/24"
        return vm

    def everyone_meets(self) -> None:
        assert self.a.ping(self.b.ip) == 3
        assert self.b.ping("10.1.0.20") == 3
        assert "3 packets received" in self.vm.check(f"ping -c 3 -W 2 {self.a.ip}")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab.up(f"test-recovery-{os.getpid()}", hosts=3, ceph=True) as lab:
        world = World(lab)
        world.everyone_meets()
        yield world
        world.vm.stop()


def assert_flows_are_complete(host: Host) -> None:
    """An agent started anew, which compiles everything afresh, finds nothing to change."""
    host.stop("agent")
    host.start("agent")
    assert agent_state(host)["flow_mods_sent"] == 0


def test_what_changed_while_the_agent_was_away_is_all_that_it_changes(world: World) -> None:
    host = world.a.host
    host.kill("agent")
    container = world.fabric.container("h2", "red", "front", "new", "10.1.0.50")
    assert container.not_yet_on == ["h1"]

    host.start("agent")

    # One flow to reach it and one to answer ARP for it.
    assert agent_state(host)["flow_mods_sent"] == 2
    assert world.a.ping("10.1.0.50") == 3
    world.fabric.remove(container)
    assert_flows_are_complete(host)


def test_an_agent_killed_while_ports_come_and_go_ends_up_right(world: World) -> None:
    host = world.a.host
    flows = world.fabric.flows(host)
    for round_ in range(4):
        restart = threading.Thread(target=lambda: (host.kill("agent"), host.start("agent")))
        restart.start()
        container = world.fabric.container("h2", "red", "front", f"flap-{round_}")
        restart.join()
        restart = threading.Thread(target=lambda: (host.kill("agent"), host.start("agent")))
        restart.start()
        world.fabric.remove(container)
        restart.join()

    world.fabric("nvctl network set front -t red --label round=over --wait")
    assert world.fabric.flows(host) == flows
    world.everyone_meets()


def test_a_killed_switch_comes_back_with_its_flows(world: World) -> None:
    host = world.a.host
    flows = world.fabric.flows(host)

    host.kill("ovs-vswitchd")
    host.start("ovs-vswitchd")

    until(
        lambda: world.fabric.flows(host) == flows,
        what="the flows are not what they were",
        timeout_s=20,
    )
    until(lambda: world.a.ping(world.b.ip, count=1) == 1, what="no answer", timeout_s=20)
    world.everyone_meets()
    assert_flows_are_complete(host)


def test_an_agent_that_starts_without_the_database_leaves_traffic_alone(world: World) -> None:
    host = world.a.host
    flows = world.fabric.flows(host)
    world.lab.ctl.kill("fabric")
    host.kill("agent")
    agent = host.popen(["nvctl", "agent", "run"], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert agent.poll() is None
            assert world.fabric.flows(host) == flows
            time.sleep(0.2)
    finally:
        world.lab.ctl.start("fabric")
        agent.terminate()
        agent.wait(10)
        host.start("agent")
    world.everyone_meets()


@pytest.mark.parametrize("verb", ["create", "plug", "unplug", "delete"])
def test_a_command_killed_anywhere_and_run_again_ends_the_same(world: World, verb: str) -> None:
    """Kill `nvctl` after ever longer times, then run it to its end."""
    fabric, host = world.fabric, world.a.host
    usage = fabric("nvctl tenant get red")["usage"]
    flows, links = fabric.flows(host), host.run(["ip", "-j", "link"]).stdout
    netns = "red-front-victim"
    host.add_netns(netns)
    where = "-t red -n front"
    lines = {
        "create": (world.lab.ctl, f"nvctl port create victim {where} --ip 10.1.0.60"),
        "plug": (host, f"nvctl port plug victim {where} --netns {netns}"),
        "unplug": (host, f"nvctl port unplug victim {where}"),
        "delete": (world.lab.ctl, f"nvctl port delete victim {where} --yes"),
    }
    for delay_ms in range(100, 500, 50):
        for name, (place, line) in lines.items():
            if name == verb:
                process = place.popen(
                    line.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                time.sleep(delay_ms / 1000)
                process.kill()
                process.wait(10)
            done = place.run(line.split(), check=False)
            # What the killed one had already done is said, and is no failure of the second.
            already = "exists already" in done.stderr or "does not exist" in done.stderr
            assert done.returncode == 0 or (name == verb and already), done.stderr
            if name == "plug":
                assert world.b.ping("10.1.0.60", count=1) == 1

    host.delete_netns(netns)
    fabric("nvctl network set front -t red --label killed=often --wait")
    assert fabric("nvctl tenant get red")["usage"] == usage
    assert fabric.flows(host) == flows
    assert host.run(["ip", "-j", "link"]).stdout == links


def test_a_killed_osd_costs_no_written_byte(world: World) -> None:
    write = "dd if=/dev/urandom of=/root/{0} bs=64k count=16 conv=fsync 2>/dev/null"
    checksum = "sha256sum /root/{0} | cut -d' ' -f1"
    world.vm.check(write.format("before"), timeout_s=60)
    before = world.vm.check(checksum.format("before"))
    victim = world.lab.host("h1")

    victim.kill("ceph-osd")
    world.vm.check(write.format("during"), timeout_s=90)
    during = world.vm.check(checksum.format("during"))
    victim.start("ceph-osd")

    def is_healthy() -> bool:
        status = world.lab.ctl.run(["ceph", "pg", "stat", "-f", "json"]).stdout
        states = json.loads(status)["pg_summary"]["num_pg_by_state"]
        return {state["name"] for state in states} == {"active+clean"}

    until(is_healthy, what="placement groups are not clean again", timeout_s=90)
    world.vm.check("sync; echo 3 > /proc/sys/vm/drop_caches")
    assert world.vm.check(checksum.format("before"), timeout_s=60) == before
    assert world.vm.check(checksum.format("during"), timeout_s=60) == during
    world.everyone_meets()
