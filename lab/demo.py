"""The whole of virtkit in one story: two tenants, containers, a VM, its disk, and the wire.

Everything is done with the commands that an operator types, on real Open vSwitch and real Ceph,
and every step says what was checked. `make demo` runs it; with KEEP=1 the lab stays.
"""

import json
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from lab import guest
from lab.accelerator import best_accelerator
from lab.host import Host
from lab.lab import Lab
from lab.machine import Machine, Nic
from lab.report import Report
from lab.vm import VirtualMachine
from lab.wire import TunnelledFrame, tunnelled_frames
from tenancy.cli import run as run_command

NAME = "demo"
# Built by `make`.
CNI_PROGRAM = Path(__file__).parent.parent / "build/virtkit-cni"
CIDR = "10.5.0.0/24"
APP, PEER = "10.5.0.10", "10.5.0.11"
OVERLAY = {"red": "vxlan", "blue": "gre"}
OVERHEAD = {"red": 50, "blue": 42}
PINGS = 5
# Under /run of a lab host, so that what is kept there goes with the host.
WORKPLACE = Path("/run/virtkit/demo")
PROOF = "written-by-the-guest"
# IPv4 and ICMP headers before what `ping -s` counts.
PING_HEADERS = 28


class Demo:
    """The actors: a lab with its three hosts, and what the commands have answered."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.network: dict[str, Any] = {}

    def run(self, directory: Path) -> None:
        """The whole story, with a directory for what need not last. Raises at the first failure."""
        self.capture = directory / "underlay.pcap"
        with self.report.step("a lab of three hosts with Ceph") as step:
            if Lab.down(NAME):
                print(f"the lab {NAME} of an earlier run is removed", file=sys.stderr)
            self.lab = Lab.up(NAME, hosts=3, ceph=True)
            hosts = self.ctl("nvctl host list")
            step.check("3 agents report to the fabric", sum(host["alive"] for host in hosts), 3)
            ceph = json.loads(self.sh(self.lab.ctl, "ceph osd stat -f json"))
            step.check("3 OSDs are up and in", (ceph["num_up_osds"], ceph["num_in_osds"]), (3, 3))

        self.make_tenants()
        self.make_disk()
        self.plug_containers()
        self.boot()
        self.cross()
        self.restart_agent()
        self.rob()

    def make_tenants(self) -> None:
        with self.report.step("tenants red and blue, same addresses, VXLAN and GRE") as step:
            for tenant, overlay in OVERLAY.items():
                self.ctl(f"nvctl tenant create {tenant}")
                self.network[tenant] = self.ctl(
                    f"nvctl network create front --tenant {tenant} --cidr {CIDR} "
                    f"--overlay {overlay}"
                )
            red, blue = self.network["red"], self.network["blue"]
            step.check(f"both networks are {CIDR}", (red["cidr"], blue["cidr"]), ([CIDR], [CIDR]))
            step.check(
                f"segment ids differ: {red['segment_id']} and {blue['segment_id']}",
                red["segment_id"] != blue["segment_id"],
            )
            for tenant in OVERLAY:
                mtu = 1500 - OVERHEAD[tenant]
                claim = f"{tenant}'s MTU is the underlay's 1500 - {OVERHEAD[tenant]} = {mtu}"
                step.check(claim, self.network[tenant]["mtu"], mtu)

    def make_disk(self) -> None:
        files = guest.build()
        self.guest = files
        with self.report.step("red's golden image, imported from qcow2 and cloned") as step:
            self.ctl("svctl pool create disks")
            for tenant in OVERLAY:
                self.ctl(f"svctl namespace create {tenant} --pool disks")
            source = f"--from {files.qcow2} --snapshot base"
            self.ctl(f"svctl image import golden --tenant red {source}", timeout_s=120)
            clone = self.ctl("svctl image clone golden@base web --tenant red")
            export = "set -o pipefail; rbd export --no-progress disks/red/golden - | sha256sum"
            in_ceph = self.lab.ctl.run(["bash", "-c", export]).stdout.split()[0]
            claim = f"the image in Ceph equals the file: sha256 {in_ceph[:12]}..."
            step.check(claim, in_ceph, sha256(files.raw.read_bytes()).hexdigest())
            step.check("web is a clone of golden@base", clone["parent"], "golden@base")

        with self.report.step("svctl place picks the host for the VM") as step:
            place = self.ctl("svctl place web --tenant red")
            self.vm_host = self.lab.host(place["primary_host"])
            ceph = json.loads(
                self.sh(
                    self.lab.ctl,
                    f"ceph osd map disks {place['object_name']} red -f json",
                )
            )
            step.check(
                f"Ceph says the same: pg {ceph['pgid']}, primary osd.{ceph['acting_primary']}",
                (place["pg"], place["primary_osd"]),
                (ceph["pgid"], ceph["acting_primary"]),
            )
            ranked = [entry["host"] for entry in place["ranking"]]
            step.check(f"ranking: {', '.join(ranked)}", ranked[0], self.vm_host.name)
        self.others = [host for host in self.lab.hosts if host.name != self.vm_host.name]

    def plug_containers(self) -> None:
        """`app` of either tenant on one host, with one address; blue's `peer` on another."""
        app_host, peer_host = self.others
        self.app_host = app_host
        title = f"the CNI joins a container of red and one of blue on {app_host.name}, both {APP}"
        with self.report.step(title) as step:
            for tenant in OVERLAY:
                self.plug_container(app_host, tenant, "app", APP)
            self.plug_container(peer_host, "blue", "peer", PEER)
            for tenant in OVERLAY:
                links = json.loads(self.inside(app_host, f"{tenant}-app", "ip -j addr show eth0"))
                address = next(a["local"] for a in links[0]["addr_info"] if a["family"] == "inet")
                mtu = self.network[tenant]["mtu"]
                claim = f"{tenant}'s container has {APP} and MTU {mtu}"
                step.check(claim, (address, links[0]["mtu"]), (APP, mtu))

    def boot(self) -> None:
        with self.report.step(f"a VM of red boots from RBD on {self.vm_host.name}") as step:
            port = self.ctl("nvctl port create web --tenant red --network front --kind vm")
            self.vm_ip = port["addresses"][0]
            plug = self.on(self.vm_host, "nvctl port plug web --tenant red --network front --tap")
            attach = f"svctl image attach web --tenant red --write-dir {WORKPLACE}"
            disk = self.on(self.vm_host, attach)
            accelerator = best_accelerator(self.guest)
            machine = Machine(
                name="web",
                guest=self.guest,
                disk=tuple(disk["qemu"]["arguments"]),
                nics=(Nic(tap=plug["link"], mac=port["mac"]),),
            )
            self.vm = VirtualMachine.start(machine, WORKPLACE / "web", self.vm_host, accelerator)
            self.vm.wait_for_boot(timeout_s=90)
            root = self.vm.check("mount | grep ' / '").split()
            step.check(
                f"its root is a virtio disk, ext4 ({accelerator})",
                (root[0], root[4]),
                ("/dev/vda", "ext4"),
            )
            status = json.loads(self.sh(self.lab.ctl, "rbd status disks/red/web --format json"))
            openers = " ".join(watcher["address"] for watcher in status["watchers"])
            step.check(
                f"Ceph says that {self.vm_host.name} has red's image open",
                f"{self.vm_host.address}:" in openers,
            )
            self.vm.check(f"echo {PROOF} > /root/proof && sync")
            self.vm.check("echo 3 > /proc/sys/vm/drop_caches")
            read_back = self.vm.check("cat /root/proof").strip()
            step.check("what it writes to its disk it reads back", read_back, PROOF)

        with self.report.step("the VM gets its address by DHCP") as step:
            lease = self.vm.lease()
            step.check(f"the port's address, {self.vm_ip}", str(lease.address.ip), self.vm_ip)
            mtu = self.network["red"]["mtu"]
            step.check(f"red's MTU, {mtu}", lease.mtu_bytes, mtu)

    def cross(self) -> None:
        """Traffic of both tenants at once, watched on the underlay and at blue's container."""
        title = f"the VM pings red's container on {self.app_host.name}; the underlay is captured"
        with self.report.step(title) as step:
            blue_before = self.received(self.app_host, "blue-app")
            with self.lab.capture(self.capture):
                mtu = self.network["red"]["mtu"]
                size = mtu - PING_HEADERS
                for what, arguments in (("small", "-s 56"), (f"{mtu}-byte", f"-s {size}")):
                    ping = self.vm.check(f"ping -c {PINGS} {arguments} -W 2 {APP}")
                    claim = f"{PINGS} of {PINGS} {what} packets answered, the first included"
                    step.check(claim, f"{PINGS} packets received" in ping)
                blue_after = self.received(self.app_host, "blue-app")
                step.check(
                    f"blue's container, also {APP}, received 0 frames", blue_after - blue_before, 0
                )
                ping = self.inside(self.others[1], "blue-peer", f"ping -c {PINGS} -i 0.2 {APP}")
                step.check("blue's own ping of its address is answered", " 0% packet loss" in ping)
                step.check(
                    "and that its container did receive",
                    self.received(self.app_host, "blue-app") > blue_after,
                )
        with self.report.step("the captured packets, decoded") as step:
            frames = list(tunnelled_frames(self.capture))
            self.check_frames(step, frames, "red", self.vm_ip, "VNI in the VXLAN header")
            self.check_frames(step, frames, "blue", PEER, "key in the GRE header")

    def check_frames(
        self, step: Any, frames: list[TunnelledFrame], tenant: str, source: str, field: str
    ) -> None:
        segment_id = self.network[tenant]["segment_id"]
        of_tenant = [frame for frame in frames if frame.overlay == OVERLAY[tenant]]
        asked = [frame for frame in of_tenant if str(frame.inner_source) == source]
        step.check(
            f"{tenant}: {len(asked)} packets {source} -> {APP} in {OVERLAY[tenant]}",
            len(asked) >= PINGS and {str(frame.inner_destination) for frame in asked} == {APP},
        )
        step.check(
            f"{tenant}: {field} is {segment_id} in all {len(of_tenant)} packets",
            {frame.segment_id for frame in of_tenant},
            {segment_id},
        )

    def restart_agent(self) -> None:
        with self.report.step(f"the agent of {self.vm_host.name} is killed and comes back") as step:
            self.vm_host.kill("agent")
            ping = self.vm.check(f"ping -c {PINGS} -W 2 {APP}")
            step.check("without it the VM reaches red", f"{PINGS} packets received" in ping)
            self.vm_host.start("agent")
            ready = json.loads(self.sh(self.vm_host, "cat /run/virtkit/agent.ready"))
            claim = f"it found its {ready['flows']} flows and changed none"
            step.check(claim, ready["flow_mods_sent"], 0)

    def rob(self) -> None:
        with self.report.step("blue tries to open red's image") as step:
            self.ctl("svctl image create own --tenant blue --size 8MiB")
            own = self.ctl("svctl image attach own --tenant blue")
            step.check("blue's key opens blue's image", self.opens(own, "blue", "own"))
            step.check("blue's key can't open red's", self.opens(own, "red", "web"), False)
            self.vm.check("echo 3 > /proc/sys/vm/drop_caches")
            step.check("red's disk is as it was", self.vm.check("cat /root/proof").strip(), PROOF)

    # Helpers

    def opens(self, attachment: dict[str, Any], namespace: str, image: str) -> bool:
        """Whether Ceph lets the owner of this attachment's key read an image's header."""
        user, keyring = attachment["user"], Path("/run/virtkit/demo.keyring")
        file = self.lab.ctl.path(keyring)
        file.touch(0o600)
        file.write_text(f"[client.{user}]\n\tkey = {attachment['key']}\n")
        rbd = ["rbd", "--id", user, "--keyring", str(keyring)]
        done = self.lab.ctl.run([*rbd, "info", f"disks/{namespace}/{image}"], check=False)
        file.unlink()
        refused = "Operation not permitted" in done.stderr
        if done.returncode != 0 and not refused:
            raise AssertionError(f"rbd info failed for another reason: {done.stderr}")
        return done.returncode == 0

    def plug_container(self, host: Host, tenant: str, name: str, ip: str) -> None:
        """A network namespace in the place of a container, joined as a runtime would join it."""
        container = f"{tenant}-{name}"
        host.add_netns(container)
        configuration = {"cniVersion": "1.1.0", "name": "demo", "type": "virtkit"}
        done = host.run(
            [str(CNI_PROGRAM)],
            environment={
                "CNI_COMMAND": "ADD",
                "CNI_CONTAINERID": container,
                "CNI_NETNS": f"/run/netns/{container}",
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"IP={ip}",
            },
            input=json.dumps({**configuration, "tenant": tenant, "network": "front"}),
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"CNI ADD of {container} failed: {done.stdout}")

    def received(self, host: Host, netns: str) -> int:
        """Frames that a container's interface has received."""
        links = json.loads(self.inside(host, netns, "ip -j -s link show eth0"))
        return int(links[0]["stats64"]["rx"]["packets"])

    def ctl(self, line: str, timeout_s: float = 60) -> Any:
        return self.on(self.lab.ctl, line, timeout_s)

    def on(self, host: Host, line: str, timeout_s: float = 60) -> Any:
        """What a virtkit command answers in a host."""
        return json.loads(host.run([*line.split(), "-o", "json"], timeout_s=timeout_s).stdout)

    def sh(self, host: Host, line: str) -> str:
        return host.run(line.split()).stdout

    def inside(self, host: Host, netns: str, line: str) -> str:
        return host.run(line.split(), netns=netns).stdout


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab for a look around.")] = False,
) -> None:
    """Show virtkit's whole job on this machine, and check every step of it."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = Report(console)
    story = Demo(report)
    succeeded = False
    try:
        with TemporaryDirectory(prefix="virtkit-demo-") as directory:
            story.run(Path(directory))
        succeeded = True
    finally:
        console.print()
        report.print_table()
        if not (keep and succeeded):
            Lab.down(NAME)
    if keep:
        console.print(f"\nThe lab is up. Take it down with: .venv/bin/virtlab down --name {NAME}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(demo)
    run_command(app)
