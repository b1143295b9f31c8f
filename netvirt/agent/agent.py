"""The node agent's loop: take in, decide, act, acknowledge, sleep until something happens.

Three inputs (rows of the fabric database, the local switch's interfaces, packets that were
punted), two outputs (bundles of flows, transactions). Everything that decides is elsewhere and
pure. The loop is level-triggered: it compares wanted with found, so that a step that failed or
was interrupted is simply taken again, and an agent that starts beside a working switch finds
nothing to do.
"""

import gc
import json
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import ovs.poller
import structlog

from netvirt import compile as compiler
from netvirt.agent import bindings, interest
from netvirt.agent.attachments import Attachments
from netvirt.agent.cni_server import CniServer
from netvirt.agent.dhcp_server import DhcpServer
from netvirt.agent.gateways import Gateways
from netvirt.agent.knowledge import Knowledge
from netvirt.agent.learning import learn
from netvirt.agent.parts import Parts
from netvirt.agent.programmer import Programmer
from netvirt.agent.sweep import sweep
from netvirt.agent.tasks import Tasks
from netvirt.agent.topology import Topology
from netvirt.backends import link_settings, links
from netvirt.backends.cni_queue import DEFAULT_DIRECTORY, DelQueue
from netvirt.backends.link_removal import LinkRemover
from netvirt.backends.openflow import DEFAULT_RUN_DIR, Switch
from netvirt.backends.openflow_events import Connected, PacketIn
from netvirt.backends.revalidation import Revalidation
from netvirt.backends.vswitch import DEFAULT_REMOTE, Bridge, VSwitch
from netvirt.model import GATEWAY_MAC, NetworkId, Overlay, PortId, PortKind
from netvirt.observed import Interface
from netvirt.rows import AGENT_COLUMNS, REPEATED_COLUMNS
from netvirt.service.hosts import HEARTBEAT_S
from tenancy.backends.codec import Row
from tenancy.backends.requests import Requests
from tenancy.backends.watch import Delete, FabricWatch, Insert, Update, Write
from tenancy.errors import BackendUnavailable, VirtkitError

log = structlog.get_logger()

TUNNEL_NAMES = {Overlay.VXLAN: "vk-vxlan", Overlay.GRE: "vk-gre"}
# The shortest Ethernet frame, broadcast, of the experimental EtherType 0x88b5 (IEEE 802a).
EMPTY_FRAME = b"\xff" * 6 + int(GATEWAY_MAC).to_bytes(6, "big") + b"\x88\xb5" + bytes(46)
# The longest the loop sleeps when nothing happens: the heartbeat, with some room.
IDLE_MS = 1000
# How often it looks whether a link has gone out of sight, of which nobody tells it.
LINK_GONE_MS = 1
# How long containers that are being attached are waited for at the end.
FINISH_S = 5.0
SWEEP_S = 60.0
# How many objects more than before are looked through for garbage.
GARBAGE_THRESHOLD = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """What an agent is told at its start; it reads nothing else from its surroundings."""

    db: str
    host_name: str
    tunnel_ip: IPv4Address
    datapath_type: str
    crush_host: str | None = None
    version: str = ""
    bridge: str = "br-int"
    ovs_run_dir: Path = DEFAULT_RUN_DIR
    ovs_remote: str = DEFAULT_REMOTE
    run_dir: Path = Path("/run/virtkit")
    queue_dir: Path = DEFAULT_DIRECTORY


class Agent:
    """One host's agent. `run` is the loop; everything else is a step of it."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._bridge = Bridge(
            name=config.bridge,
            datapath_type=config.datapath_type,
            tunnels=tuple((TUNNEL_NAMES[overlay], str(overlay)) for overlay in Overlay),
            tunnel_ip=config.tunnel_ip,
        )
        self._watch = FabricWatch(config.db, AGENT_COLUMNS, REPEATED_COLUMNS)
        self._watch.set_interest_in_all("Fabric")
        self._watch.set_interest("Host", [("name", config.host_name)])
        self._watch.set_interest("Binding", [("host", config.host_name)])
        self._watch.set_interest("Attachment", [("host", config.host_name)])
        self._watch.set_interest("Network", [("host_access", True)])
        self._vswitch = VSwitch(config.ovs_remote, config.bridge)
        self._switch = Switch(config.bridge, config.ovs_run_dir)
        self._knowledge = Knowledge(config.host_name)
        self._topology = Topology()
        self._programmer = Programmer(
            self._switch, self._topology, Revalidation(config.ovs_run_dir)
        )
        self._dhcp = DhcpServer(self._knowledge, self._switch)
        self._requests = Requests(config.db)
        self._remover = LinkRemover()
        self._tasks = Tasks(on_error=_note_failure)
        self._parts = Parts(
            self._knowledge,
            self._topology,
            self._programmer,
            self._vswitch,
            self._requests,
            self._remover,
            self._is_complete,
        )
        self._attachments = Attachments(self._parts)
        self._networks_asked: frozenset[NetworkId] = frozenset()
        self._gateways = Gateways(self._knowledge, self._vswitch, self._requests)
        self._networks_attaching: frozenset[NetworkId] = frozenset()
        self._task_ended = False
        self._interfaces_seen: Mapping[str, Interface] | None = None
        self._bridge_ready = False
        self._unexamined: set[PortId] = set()
        self._greeted: frozenset[IPv4Address] = frozenset()
        self._secluded: set[tuple[str, int | None]] = set()
        self._seclusion_due = 0.0
        self._databases_heard: dict[str, bool] = {}
        self._refused: str | None = None
        self._heartbeat_due = 0.0
        self._ready_file = config.run_dir / "agent.ready"
        self._ready = False

    def run(self, stopped: Callable[[], bool], wake_fd: int) -> None:
        """Run until `stopped`; a byte on `wake_fd` makes the loop look."""
        try:
            self._ready_file.parent.mkdir(parents=True, exist_ok=True)
            self._ready_file.unlink(missing_ok=True)
        except OSError as error:
            raise BackendUnavailable(
                f"{self._ready_file.parent} can't be written ({error.strerror}). Run the agent as "
                "root."
            ) from error
        log.info("starting", host=self._config.host_name, db=self._config.db)
        self._server = CniServer(
            self._config.run_dir / "cni.sock",
            self._parts,
            self._attachments,
            self._tasks,
            DelQueue(self._config.queue_dir),
            self._not_ready,
        )
        try:
            while not stopped():
                self._turn(wake_fd)
            self._server.stop_listening()
            finish_by = time.monotonic() + FINISH_S
            while self._tasks and time.monotonic() < finish_by:
                self._turn()
        finally:
            self._ready_file.unlink(missing_ok=True)
            self._tasks.close()
            self._server.close()
            self._remover.close()
            self._requests.close()
            self._watch.close()
            self._vswitch.close()
            self._switch.close()
            log.info("stopped; flows stay", flow_mods_sent=self._switch.flow_mods_sent)

    def _turn(self, wake_fd: int | None = None) -> None:
        """Look once, and sleep until there is something to do."""
        self.step()
        poller = ovs.poller.Poller()
        self._watch.wait(poller)
        self._vswitch.wait(poller)
        self._switch.wait(poller)
        self._requests.wait(poller)
        self._programmer.wait(poller)
        self._server.wait(poller)
        if wake_fd is not None:
            poller.fd_wait(wake_fd, ovs.poller.POLLIN)
        if self._task_ended or self._gateways.busy:
            # Another task may have waited for it.
            poller.immediate_wake()
        poller.timer_wait(LINK_GONE_MS if self._remover else IDLE_MS)
        poller.block()

    def step(self) -> None:
        """One turn of the loop. Never blocks."""
        news = self._take_in()
        self._requests.run()
        self._server.run()
        self._task_ended = self._tasks.step()
        self._learn()
        attaching = frozenset(self._attachments.networks)
        if news or attaching != self._networks_attaching:
            self._networks_attaching = attaching
            self._ask_for_rows()
            self._fit_links()
            self._greet(self._knowledge.endpoints() - self._greeted)
        self._gateways.step(news=news, hold=not self._may_program)
        self._mind_seclusion()
        self._programmer.step(hold=not self._may_program)
        # What tasks want of the switch goes out with this turn, and behind the flows for it.
        self._vswitch.flush()
        self._write_rows()
        self._tell_ready()

    # Taking in

    def _take_in(self) -> bool:
        """Take in what has arrived; True if it concerns anything but packets."""
        rows = self._watch.run()
        for table, row_id in rows:
            self._knowledge.set_row(table, row_id, self._watch.row(table, row_id))
        if self._vswitch.run() or not self._bridge_ready:
            self._bridge_ready = self._vswitch.ensure_bridge(self._bridge)
        self._note_connection("fabric database", self._config.db, self._watch.connected)
        self._note_connection("switch database", self._config.ovs_remote, self._vswitch.connected)
        for event in self._switch.run():
            if isinstance(event, PacketIn):
                self._dhcp.receive(event)
                continue
            if isinstance(event, Connected):
                # A switch that was restarted has forgotten its neighbours with its flows.
                self._greeted = frozenset()
            self._programmer.receive(event)
        self._programmer.settle()

        interfaces = self._vswitch.interfaces()
        new_interfaces = self._vswitch.connected and interfaces is not self._interfaces_seen
        if new_interfaces:
            self._interfaces_seen = interfaces
            self._knowledge.set_interfaces(interfaces)
            self._topology.set_tunnels(
                {
                    overlay: interfaces[name].ofport or 0
                    for overlay, name in TUNNEL_NAMES.items()
                    if name in interfaces and interfaces[name].ofport
                }
            )

        self._learn()
        return bool(rows) or new_interfaces

    def _learn(self) -> None:
        """Have the topology follow what is known."""
        self._unexamined |= learn(self._knowledge, self._topology)

    def _note_connection(self, what: str, remote: str, connected: bool) -> None:
        """Log that a database came or went, for whoever wonders why nothing follows."""
        before = self._databases_heard.get(what)
        if connected is before:
            return
        self._databases_heard[what] = connected
        if connected:
            log.info(f"{what} answers", remote=remote)
        elif before is None:
            log.info(f"waiting for {what}", remote=remote)
        else:
            log.warning(f"{what} lost; what was last known stands", remote=remote)

    def _is_complete(self, network: NetworkId) -> bool:
        return network in self._networks_asked and self._watch.settled

    def _ask_for_rows(self) -> None:
        self._networks_asked = self._knowledge.held_networks() | self._networks_attaching
        # A port that is known comes with its network. To ask for it by itself as well would have
        # every new one change what is asked for, and flows wait until that is answered.
        wanted = interest.clauses(
            self._config.host_name,
            [port for port in self._knowledge.interfaces if port not in self._knowledge.ports],
            self._networks_asked,
            self._knowledge.remote_hosts(),
        )
        for table, clauses in wanted.items():
            self._watch.set_interest(table, clauses)

    # Acting

    @property
    def _may_program(self) -> bool:
        """Whether what we know is whole: programming from half of it would remove flows.

        Without the database, what was last known stands; at the start, nothing is known yet.
        """
        if not self._vswitch.connected or not self._bridge_ready:
            return False
        return self._watch.settled or (self._ready and not self._watch.connected)

    def _not_ready(self) -> str | None:
        """Why no container can be attached now, and where to look."""
        if not self._watch.connected or not self._requests.connected:
            return f"fabric database {self._config.db} does not answer (see `nvctl db status`)"
        if not self._vswitch.connected or not self._switch.connected:
            return "Open vSwitch does not answer (see the logs of ovsdb-server and ovs-vswitchd)"
        return None if self._ready else "it has only just been started (see its log)"

    def _fit_links(self) -> None:
        """Make the host's end of every port fit, whoever made it: the MTU of its network, which
        a tap's guest sees as well, and no part of it in the host's own network stack.
        """
        links_here = set()
        for port, interface in self._knowledge.interfaces.items():
            known = self._knowledge.ports.get(port)
            network = self._knowledge.networks.get(known.network) if known else None
            if known is None or network is None:
                continue
            if interface.mtu not in (None, network.mtu_bytes):
                self._vswitch.ensure_mtu(interface.name, network.mtu_bytes)
            link = (interface.name, interface.ifindex)
            links_here.add(link)
            if link not in self._secluded and known.kind is not PortKind.HOST:
                try:
                    link_settings.seclude(interface.name)
                except OSError as error:
                    log.warning("link not secluded", link=interface.name, reason=str(error))
                self._secluded.add(link)
        self._secluded &= links_here

    def _mind_seclusion(self) -> None:
        """A host that begins to forward does so on all links, whatever was said of each before.

        So one of them tells of all.
        """
        if time.monotonic() < self._seclusion_due:
            return
        self._seclusion_due = time.monotonic() + IDLE_MS / 1000
        link = next(iter(self._secluded), None)
        if link is not None and link_settings.forwards(link[0]):
            log.info("links are secluded again", links=len(self._secluded))
            self._secluded.clear()
            self._fit_links()

    def _greet(self, endpoints: Collection[IPv4Address]) -> None:
        """Have the switch resolve these endpoints before a tenant's packet needs them."""
        tunnel = next(iter(self._topology.tunnels.values()), None)
        if tunnel is None or not self._switch.connected:
            return
        for endpoint in endpoints:
            self._switch.packet_out(compiler.greeting(tunnel, endpoint), EMPTY_FRAME)
        self._greeted = (self._greeted | frozenset(endpoints)) & self._knowledge.endpoints()

    def _write_rows(self) -> None:
        if self._watch.write_refused != self._refused:
            self._refused = self._watch.write_refused
            if self._refused is not None:
                log.error("fabric database refuses what this host reports", reason=self._refused)
        if not self._watch.settled or self._watch.writing or not self._switch.connected:
            return
        if self._interfaces_seen is None:
            # Not having looked yet is not having nothing: no binding is withdrawn for it.
            return
        if time.monotonic() < self._watch.write_not_before:
            return
        writes = self._binding_writes()
        own_row = self._knowledge.own_row
        report = self._host_report(own_row)
        if own_row is None:
            writes.append(Insert("Host", report))
        elif report:
            writes.append(Update(own_row, report))
        if writes:
            self._watch.write(writes)

    def _binding_writes(self) -> list[Write]:
        knowledge = self._knowledge
        present = {
            port: knowledge.ports[port].network
            for port in knowledge.interfaces
            if knowledge.is_stored(port)
            and knowledge.ports[port].host in (None, knowledge.host_name)
        }
        claims, withdrawn = bindings.decide(
            self._config.host_name,
            present,
            knowledge.attached.union(self._attachments.expected, knowledge.own_ports.values()),
            knowledge.bindings,
            self._unexamined,
        )
        self._unexamined = {claim.port for claim in claims}
        writes: list[Write] = []
        for claim in claims:
            log.info("claiming port", port=str(claim.port), claim=claim.number)
            columns = {"port": claim.port, "network": claim.network, "claim": claim.number}
            writes.append(
                Insert("Binding", {**columns, "host": self._config.host_name, "active": True})
            )
        for binding in withdrawn:
            row = self._watch.row("Binding", binding)
            if row is not None:
                log.info("withdrawing from port", port=str(row["port"]))
                self._unexamined.add(PortId(row["port"]))
                writes.append(Delete(row))
        return writes

    def _host_report(self, own: Row | None) -> dict[str, object]:
        """What differs between the host's row and what should be there."""
        report: dict[str, object] = {}
        now = time.monotonic()
        if now >= self._heartbeat_due or own is None:
            self._heartbeat_due = now + HEARTBEAT_S
            # The switch forgets a neighbour that it has not used for some minutes.
            self._greet(self._knowledge.endpoints())
            wanted: dict[str, object] = {
                "name": self._config.host_name,
                "tunnel_ip": str(self._config.tunnel_ip),
                "overlays": frozenset(map(str, Overlay)),
                "underlay_mtu": self._underlay_mtu(),
                "crush_host": self._config.crush_host,
                "version": self._config.version,
            }
            report = {k: v for k, v in wanted.items() if own is None or own[k] != v}
            report["heartbeat"] = int(time.time())
        problems = self._gateways.problems
        if problems != (own["problems"] if own else frozenset()):
            report["problems"] = problems
        caught_up = self._programmer.idle and self._gateways.idle and not self._unexamined
        if caught_up and self._knowledge.cfg != (own["cfg"] if own else None):
            report["cfg"] = self._knowledge.cfg
        return report

    def _underlay_mtu(self) -> int | None:
        try:
            return links.underlay_mtu(self._config.tunnel_ip)[1]
        except VirtkitError as error:
            log.warning("underlay not found", reason=str(error))
            return None

    def _tell_ready(self) -> None:
        if self._ready or not (self._programmer.idle and self._may_program):
            return
        self._ready = True
        state = {
            "pid": os.getpid(),
            "flows": len(self._topology.wanted),
            "flow_mods_sent": self._switch.flow_mods_sent,
        }
        fresh = self._ready_file.with_suffix(".new")
        fresh.write_text(json.dumps(state) + "\n")
        fresh.rename(self._ready_file)
        log.info("ready", **state)
        # What is here now stays: to look through it for garbage again and again would take some
        # tens of milliseconds each time, while a container waits.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GARBAGE_THRESHOLD)
        self._tasks.start("sweep", "sweeping", sweep(self._parts, self._attachments), SWEEP_S)


def _note_failure(what: str, error: VirtkitError) -> None:
    log.warning(f"{what} failed", reason=str(error))
