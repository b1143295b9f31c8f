"""A thousand ADD and DEL while the program, the agent, the switch and the fabric are killed.

Nothing may be left of it after one GC, and what was promised in between must have been true: an
ADD that succeeded can be reached, no address is given twice, DEL always succeeds, and an error is
one that a runtime can read. What else may go wrong with a single call is in the tests below.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until
from tests.functional.tenants import Fabric, agent_state

pytestmark = pytest.mark.functional

PROGRAM = Path(__file__).parents[2] / "build" / "virtkit-cni"
DRIVER = Path(__file__).parent / "probes" / "cni_storm.py"
QUEUE = "/var/lib/virtkit/cni/queue"

# One that comes to a host and leaves it with its ports, and one that every host is in.
NETWORKS = {
    "front": "--cidr 10.1.0.0/20 --cidr fd00:1::/64",
    "pods": "--cidr 10.2.0.0/20 --cidr fd00:2::/64 --host-access",
}
CONTAINERS = 450  # on each of both hosts
WORKERS = 12
STORM_S = 180.0
SETTLED_WITHIN_S = 60.0
# An agent that is ready has yet to say so to the fabric, and to find a switch that is back.
AFTERMATH_S = {"agent": 1.0, "ovs-vswitchd": 3.0, "ovsdb-server": 3.0, "fabric": 3.0}

UNKNOWN_CONTAINER, TRY_AGAIN_LATER, TAKEN, DIFFERENCE_FOUND = 3, 11, 102, 103

Keys = Mapping[str, Any]


def configuration(name: str = "storm", **keys: Any) -> dict[str, Any]:
    own = {"cniVersion": "1.1.0", "name": name, "type": "virtkit"}
    return {**own, "tenant": "default", "network": "front", **keys}


class Error(msgspec.Struct, forbid_unknown_fields=True):
    """What the specification says of an error."""

    cniVersion: str
    code: int
    msg: str
    details: str = ""


class Answer(NamedTuple):
    status: int
    output: bytes
    seconds: float

    def result(self) -> dict[str, Any]:
        assert self.status == 0, self
        found: dict[str, Any] = json.loads(self.output)
        return found

    def error(self) -> Error:
        assert self.status == 1, self
        return msgspec.json.decode(self.output, type=Error)

    def succeeded(self) -> bool:
        return (self.status, self.output) == (0, b"")


def begin(
    host: Host, verb: str, container: str, keys: Keys, interface: str = "eth0"
) -> "subprocess.Popen[bytes]":
    """The program, called as a runtime does; the container's namespace is called like it."""
    process: subprocess.Popen[bytes] = host.popen(
        [str(PROGRAM)],
        environment={
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": interface,
            "CNI_NETNS": f"/run/netns/{container}",
            "CNI_PATH": "/opt/cni/bin",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(keys).encode())
    process.stdin.close()
    process.stdin = None
    return process


def end(process: "subprocess.Popen[bytes]", begun: float) -> Answer:
    output, _ = process.communicate(timeout=60)
    return Answer(process.returncode, output, time.monotonic() - begun)


def call(host: Host, verb: str, container: str, *, interface: str = "eth0", **keys: Any) -> Answer:
    begun = time.monotonic()
    return end(begin(host, verb, container, configuration(**keys), interface), begun)


def addresses_of(result: Mapping[str, Any]) -> list[str]:
    return [str(ip["address"]).partition("/")[0] for ip in result["ips"]]


def pings(host: Host, netns: str, address: str) -> bool:
    """Whether it answers at once, whatever a switch may lose while its host's links change."""
    argv = ["ping", "-c3", "-i0.2", "-W5", "-q", address]
    return host.run(argv, netns=netns, check=False).returncode == 0


# What there is


def state(lab: Lab, host: Host) -> set[str]:
    """Everything that attachments leave on a host and in the fabric, a line for each."""
    return {*rows(lab), *on_switch(host), *links(host), *queued(host)}


def rows(lab: Lab) -> Iterator[str]:
    dump = ["ovsdb-client", "--format=json", "dump", "unix:/run/virtkit/fabric.sock"]
    for table in ("Port", "Address", "Binding", "Attachment", "Quota"):
        listing = json.loads(lab.ctl.run([*dump, "Virtkit_Fabric", table]).stdout)
        for row in listing["data"]:
            yield f"{table} {json.dumps(row)}"


def on_switch(host: Host) -> Iterator[str]:
    listing = ["ovs-vsctl", "--format=json", "--columns=name", "list", "Interface"]
    for (name,) in json.loads(host.run(listing).stdout)["data"]:
        yield f"{host.name}: interface {name}"
    for line in flows(host):
        yield f"{host.name}: flow {line}"


def flows(host: Host) -> set[str]:
    dump = ["ovs-ofctl", "dump-flows", "br-int", "--no-stats"]
    return {line.strip() for line in host.run(dump).stdout.splitlines()}


def links(host: Host) -> Iterator[str]:
    for link in json.loads(host.run(["ip", "-j", "link", "show"]).stdout):
        yield f"{host.name}: link {link['ifname']}"


def queued(host: Host) -> Iterator[str]:
    """Records of DELs, those that are none and those that are unfinished."""
    directory = host.path(QUEUE)
    for path in directory.iterdir() if directory.exists() else ():
        yield f"{host.name}: record {path.name}"


def settles_as(lab: Lab, host: Host, before: set[str]) -> None:
    def difference() -> str:
        now = state(lab, host)
        gone = [f"    gone: {line}" for line in sorted(before - now)]
        left = [f"    left: {line}" for line in sorted(now - before)]
        return "\n".join([*gone[:40], *left[:40], host.log_tail("agent")])

    until(
        lambda: state(lab, host) == before,
        what=f"not all is as it was on {host.name}",
        timeout_s=SETTLED_WITHIN_S,
        explain=difference,
    )


def assert_no_faults(host: Host) -> None:
    """The agent met nothing that it had no words for."""
    log = host.path("/var/log/virtkit/agent.log").read_text()
    for words in ("Traceback", "a fault in virtkit"):
        assert words not in log, log[max(0, log.index(words) - 500) :][:6000]


def is_ready(host: Host) -> bool:
    return call(host, "STATUS", "").succeeded()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"test-faults-{os.getpid()}", hosts=2) as lab:
        fabric = Fabric(lab)
        fabric("nvctl tenant create default")
        for name, options in NETWORKS.items():
            fabric(f"nvctl network create {name} -t default {options}")
        yield lab


@contextmanager
def residents(lab: Lab) -> Iterator[dict[str, list[str]]]:
    """A container on each host that stays, in all networks; by host's name its addresses."""
    found: dict[str, list[str]] = {host.name: [] for host in lab.hosts}
    for host in lab.hosts:
        host.add_netns("resident")
        for network in NETWORKS:
            keys = {"name": "residents", "network": network}
            added = call(host, "ADD", "resident", interface=network, **keys)
            found[host.name] += addresses_of(added.result())
    try:
        yield found
    finally:
        for host in lab.hosts:
            for network in NETWORKS:
                gone = call(host, "DEL", "resident", interface=network, name="residents")
                assert gone.succeeded(), gone
            host.delete_netns("resident")


# The storm


class Outage(NamedTuple):
    """A daemon was away, from its end until it was ready again and a moment beyond."""

    host: str
    daemon: str
    begun: float
    ended: float


class Mischief:
    """Kills daemons at random moments, and starts them again, until told to stop."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.outages: list[Outage] = []
        self._lab = lab
        self._seed = seed
        self._over = threading.Event()

    def run(self) -> None:
        plans: list[tuple[Host, str, float, float]] = [
            *((host, "agent", 0.8, 3.5) for host in self._lab.hosts),
            *((host, "ovs-vswitchd", 10.0, 30.0) for host in self._lab.hosts),
            *((host, "ovsdb-server", 15.0, 45.0) for host in self._lab.hosts),
            (self._lab.ctl, "fabric", 8.0, 20.0),
        ]
        with ThreadPoolExecutor(len(plans)) as threads:
            running = [threads.submit(self._harass, *plan) for plan in plans]
            for one in running:
                one.result()

    def stop(self) -> None:
        self._over.set()

    def _harass(self, host: Host, daemon: str, least_s: float, most_s: float) -> None:
        chance = random.Random(f"{self._seed} {host.name} {daemon}")
        while not self._over.wait(chance.uniform(least_s, most_s)):
            begun = time.monotonic()
            host.kill(daemon)
            time.sleep(chance.choice((0.0, 0.0, 0.2, 0.5)))
            host.start(daemon)
            ended = time.monotonic() + AFTERMATH_S[daemon]
            self.outages.append(Outage(host.name, daemon, begun, ended))

    def tell(self, event: Mapping[str, Any]) -> str:
        """A call, and what was away at about that time."""
        near = [
            f"    {one.host} {one.daemon} {one.begun:.2f} to {one.ended:.2f}"
            for one in sorted(self.outages, key=lambda one: one.begun)
            if one.begun < event["ended"] + 5 and one.ended + 5 > event["begun"]
        ]
        return "\n".join([str(event), *near])

    def disturbed(self, far: str, begun: float, ended: float) -> bool:
        """Whether what crosses the underlay, or follows the fabric on the far host, may have been
        late: a switch, the fabric or that host's agent was away, or had just come back."""
        return any(
            one.begun < ended and one.ended > begun
            for one in self.outages
            if one.daemon != "agent" or one.host == far
        )


def weather(host: Host, far: Host, seed: int) -> list[dict[str, Any]]:
    """What the calls of a storm on one host came to."""
    namespace = os.open(far.path("/run/netns/resident"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        driver = host.popen(
            [sys.executable, "-S", str(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(namespace,),
            text=True,
        )
    finally:
        os.close(namespace)
    orders = {
        "program": str(PROGRAM),
        "configurations": [configuration(network=network) for network in NETWORKS],
        "host": host.name,
        "far": namespace,
        "seed": seed,
        "containers": CONTAINERS,
        "workers": WORKERS,
    }
    try:
        output, _ = driver.communicate(json.dumps(orders) + "\n", timeout=STORM_S)
    except BaseException:
        driver.kill()
        driver.communicate()
        raise
    assert driver.returncode == 0
    return [json.loads(line) for line in output.splitlines()]


def test_nothing_is_left_of_a_storm(lab: Lab) -> None:
    seed = int(os.environ.get("VIRTKIT_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"VIRTKIT_TEST_SEED={seed}")
    before = {host.name: state(lab, host) for host in lab.hosts}
    h1, h2 = lab.hosts
    begun = time.monotonic()
    with residents(lab) as stay:
        mischief = Mischief(lab, seed)
        with ThreadPoolExecutor(3) as threads:
            harassing = threads.submit(mischief.run)
            try:
                storms = [
                    threads.submit(weather, host, far, seed) for host, far in ((h1, h2), (h2, h1))
                ]
                events = [storm.result() for storm in storms]
            finally:
                mischief.stop()
                harassing.result()
        describe(events, mischief, time.monotonic() - begun)

        for one, far in ((events[0], h2), (events[1], h1)):
            broken = [*broken_promises(one, far.name, mischief)]
            assert not broken, "\n".join(mischief.tell(event) for event in broken)
        # Else nothing would have been seen. On a busy machine none of them may be undisturbed.
        assert any(event["verb"] == "ping" for one in events for event in one)
        assert_no_address_was_given_twice([*events[0], *events[1]])

        for host in lab.hosts:
            until(lambda host=host: is_ready(host), what=f"{host.name} is not ready", timeout_s=30)
            answer = call(host, "GC", "", **{"cni.dev/valid-attachments": []})
            assert answer.succeeded(), answer
        assert all(pings(h1, "resident", address) for address in stay["h2"])
        assert all(pings(h2, "resident", address) for address in stay["h1"])
        # Whatever was undisturbed in the storm: with nothing in the way, who comes is reached.
        for host, far in ((h1, h2), (h2, h1)):
            with container(host, "calm") as name:
                came = call(host, "ADD", name).result()
                assert all(pings(far, "resident", address) for address in addresses_of(came))
                assert call(host, "DEL", name).succeeded()

    for host in lab.hosts:
        settles_as(lab, host, before[host.name])
        assert_every_namespace_is_empty(host)
        assert_no_faults(host)
    assert_quota_is_whole(lab)
    for host in lab.hosts:
        assert_agent_has_nothing_to_do(host)


def describe(events: list[list[dict[str, Any]]], mischief: Mischief, took_s: float) -> None:
    """What happened, for whoever wonders whether anything did."""
    every = [event for each in events for event in each]
    print(f"{took_s:.0f} s", dict(Counter(outage.daemon for outage in mischief.outages)), "killed")
    for verb in ("ADD", "DEL", "CHECK"):
        found = [event for event in every if event["verb"] == verb]
        codes = Counter(
            json.loads(event["output"])["code"] if event["status"] == 1 else event["status"]
            for event in found
        )
        times = sorted(event["ended"] - event["begun"] for event in found)
        shown = (
            [round(times[len(times) * part // 100], 3) for part in (50, 90, 99)] if times else ""
        )
        print(verb, len(found), dict(codes), "seconds p50 p90 p99:", shown)
    pinged = [event for event in every if event["verb"] == "ping"]
    calm = calm_pings(events[0], "h2", mischief) + calm_pings(events[1], "h1", mischief)
    print("pings", len(pinged), "in vain", sum(not one["at_once"] for one in pinged), end=" ")
    print("undisturbed", calm)


def broken_promises(
    events: list[dict[str, Any]], far: str, mischief: Mischief
) -> Iterator[dict[str, Any]]:
    """Calls that came to what they must not come to."""
    for event in events:
        calm = not mischief.disturbed(far, event["begun"], event["ended"])
        if event["verb"] == "ping":
            if not event["answered"] or (calm and not event["at_once"]):
                yield event
        elif event["status"] == 1:
            code = msgspec.json.decode(event["output"], type=Error).code
            excused = {TRY_AGAIN_LATER} if event["verb"] != "DEL" else set()
            if event["verb"] == "ADD" and "again" in event:
                excused.add(TAKEN)
            if event["verb"] == "CHECK" and not calm:
                excused.add(DIFFERENCE_FOUND)
            if code not in excused:
                yield event
        elif event["status"] != -signal.SIGKILL:
            says = event["verb"] == "ADD"
            if event["status"] != 0 or says != bool(event["output"]):
                yield event


def calm_pings(events: list[dict[str, Any]], far: str, mischief: Mischief) -> int:
    """How many containers were pinged with nothing in the way."""
    return sum(
        event["verb"] == "ping" and not mischief.disturbed(far, event["begun"], event["ended"])
        for event in events
    )


def assert_no_address_was_given_twice(events: list[dict[str, Any]]) -> None:
    """A container has its address from the answer of ADD until somebody asks for DEL."""
    had: dict[str, list[tuple[float, float, str]]] = {}
    for event in events:
        if event["verb"] != "ADD" or event["status"] != 0:
            continue
        ends = [
            other["begun"]
            for other in events
            if other["verb"] == "DEL"
            and other["container"] == event["container"]
            and other["begun"] >= event["ended"]
        ]
        until_s = min(ends, default=float("inf"))
        for address in addresses_of(json.loads(event["output"])):
            had.setdefault(address, []).append((event["ended"], until_s, event["container"]))
    for address, times in had.items():
        times.sort()
        for (_, ended, one), (begun, _, other) in pairwise(times):
            assert ended <= begun, f"{address} was {one}'s and {other}'s"


def assert_every_namespace_is_empty(host: Host) -> None:
    """No container that was left behind has an interface, wherever its other end was."""
    for entry in json.loads(host.run(["ip", "-j", "netns"]).stdout or "[]"):
        shown = host.run(["ip", "-j", "link", "show"], netns=entry["name"]).stdout
        names = [link["ifname"] for link in json.loads(shown)]
        assert names == ["lo"], (entry["name"], names)


def assert_quota_is_whole(lab: Lab) -> None:
    dump = ["ovsdb-client", "--format=json", "dump", "unix:/run/virtkit/fabric.sock"]
    columns = ["resource", "limit", "available"]
    of_ports = ("ports", "addresses")
    listing = json.loads(lab.ctl.run([*dump, "Virtkit_Fabric", "Quota", *columns]).stdout)
    accounts = [dict(zip(listing["headings"], row, strict=True)) for row in listing["data"]]
    found = [account for account in accounts if account["resource"] in of_ports]
    assert len(found) == len(of_ports)
    assert all(account["available"] == account["limit"] for account in found), found


def assert_agent_has_nothing_to_do(host: Host) -> None:
    """One that starts anew compiles everything afresh, and finds it in the switch."""
    there = flows(host)
    host.stop("agent")
    host.start("agent")
    assert agent_state(host)["flow_mods_sent"] == 0
    assert flows(host) == there


# One thing at a time


@contextmanager
def container(host: Host, name: str) -> Iterator[str]:
    host.add_netns(name)
    yield name
    host.run(["ip", "netns", "delete", name], check=False)


@contextmanager
def unchanged(lab: Lab, *hosts: Host) -> Iterator[None]:
    """Nothing is left of what is done, at the latest after some seconds."""
    before = {host.name: state(lab, host) for host in hosts}
    yield
    for host in hosts:
        settles_as(lab, host, before[host.name])
        assert_no_faults(host)


@contextmanager
def without(host: Host, *daemons: str) -> Iterator[None]:
    """These have been killed; afterwards they are back, in the opposite order."""
    for daemon in daemons:
        host.kill(daemon)
    try:
        yield
    finally:
        for daemon in reversed(daemons):
            host.start(daemon)


@contextmanager
def paused(host: Host, daemon: str) -> Iterator[None]:
    """It hangs, and what it is told waits for it."""
    host.pause(daemon)
    try:
        yield
    finally:
        host.resume(daemon)


def has_record(host: Host) -> bool:
    return any(line.endswith(".del") for line in queued(host))


def test_a_container_that_comes_back_is_not_taken_away_by_its_own_past(lab: Lab) -> None:
    """Its DEL is queued, and its ADD is there before the agent can do either."""
    h1, h2 = lab.hosts
    with unchanged(lab, h1), residents(lab), container(h1, "back") as name:
        call(h1, "ADD", name).result()
        h1.kill("agent")
        assert call(h1, "DEL", name).succeeded()
        assert has_record(h1)
        with ThreadPoolExecutor(1) as threads:
            with without(lab.ctl, "fabric"):
                starting = threads.submit(h1.start, "agent")
                until(lambda: takes_calls(h1), what="no socket", timeout_s=30)
                begun = time.monotonic()
                adding = begin(h1, "ADD", name, configuration())
                until(lambda: begun + 0.5 < time.monotonic(), what="time stands", timeout_s=5)
            result = end(adding, begun).result()
            starting.result()
        until(lambda: not has_record(h1), what="the record stays", timeout_s=10)
        assert call(h1, "CHECK", name, prevResult=result).succeeded()
        assert all(pings(h2, "resident", address) for address in addresses_of(result))
        assert call(h1, "DEL", name).succeeded()


def takes_calls(host: Host) -> bool:
    """Whether an agent answers, whatever it says."""
    return b"no node agent" not in call(host, "STATUS", "").output


def test_an_add_whose_fate_nobody_knows_is_taken_back(lab: Lab) -> None:
    """The fabric is asked for a port, and does not say whether it has made it; it will have."""
    h1, _ = lab.hosts
    with residents(lab), unchanged(lab, h1), container(h1, "limbo") as name:
        with paused(lab.ctl, "fabric"):
            begun = time.monotonic()
            adding = begin(h1, "ADD", name, configuration())
            until(
                lambda: len(own_links(h1)) == len(NETWORKS) + 1,
                what="nothing is begun",
                timeout_s=10,
            )
            answer = end(adding, begun)
            assert answer.error().code == TRY_AGAIN_LATER
            assert answer.seconds < 25
        until(lambda: is_ready(h1), what="the agent is not ready", timeout_s=30)


def test_an_agent_that_is_stopped_in_the_middle_takes_back_what_it_began(lab: Lab) -> None:
    h1, _ = lab.hosts
    with residents(lab), unchanged(lab, h1), container(h1, "half") as name:
        with paused(lab.ctl, "fabric"):
            begun = time.monotonic()
            adding = begin(h1, "ADD", name, configuration())
            until(
                lambda: len(own_links(h1)) == len(NETWORKS) + 1,
                what="nothing is begun",
                timeout_s=10,
            )
            h1.stop("agent")
            assert end(adding, begun).error().code == TRY_AGAIN_LATER
        h1.start("agent")


def own_links(host: Host) -> list[str]:
    """Links of ports."""
    return [line for line in links(host) if ": link vk" in line and "vk-" not in line]


def test_a_runtime_that_goes_away_takes_its_container_along(lab: Lab) -> None:
    """Also when all is done, and only the other host has yet to say that it knows."""
    h1, h2 = lab.hosts
    with residents(lab), unchanged(lab, h1), container(h1, "gone") as name, paused(h2, "agent"):
        adding = begin(h1, "ADD", name, configuration())
        until(
            lambda: len(own_links(h1)) == len(NETWORKS) + 1, what="nothing is begun", timeout_s=10
        )
        # Two seconds are waited for a host that lags.
        time.sleep(1.0)
        assert adding.poll() is None
        adding.kill()
        adding.wait(10)


def test_a_container_goes_without_fabric_and_switch(lab: Lab) -> None:
    h1, _ = lab.hosts
    with unchanged(lab, h1), container(h1, "alone") as name:
        call(h1, "ADD", name).result()
        with without(lab.ctl, "fabric"), without(h1, "ovs-vswitchd", "ovsdb-server"):
            answer = call(h1, "DEL", name)
            assert answer.succeeded(), answer
            assert answer.seconds < 10
            assert has_record(h1)
        until(
            lambda: not has_record(h1),
            what="the record stays",
            timeout_s=SETTLED_WITHIN_S,
            explain=lambda: h1.log_tail("agent"),
        )


def test_a_link_that_was_being_made_is_no_obstacle(lab: Lab) -> None:
    """The agent was killed after making it, and before saying on it whose it is."""
    h1, _ = lab.hosts
    with unchanged(lab, h1), container(h1, "stub") as name:
        with without(h1, "agent"):
            stub = ["ip", "link", "add", "vk0123456789a", "type", "veth"]
            h1.run([*stub, "peer", "name", "eth0", "netns", name])
        until(lambda: not own_links(h1), what="the link stays", timeout_s=20)
        call(h1, "ADD", name).result()
        assert call(h1, "DEL", name).succeeded()


def test_a_record_that_was_being_written_is_not_kept(lab: Lab) -> None:
    """The program was killed before it was one; its DEL has failed."""
    h1, _ = lab.hosts
    with unchanged(lab, h1):
        h1.path(QUEUE).mkdir(parents=True, exist_ok=True)
        (h1.path(QUEUE) / ".new").write_bytes(b"VKCNI")


def test_a_container_has_as_many_routes_as_a_configuration_may(lab: Lab) -> None:
    h1, _ = lab.hosts
    routes = [{"dst": f"172.{16 + number // 256}.{number % 256}.0/24"} for number in range(1000)]
    with unchanged(lab, h1), container(h1, "routed") as name:
        result = call(h1, "ADD", name, routes=routes).result()
        assert len(result["routes"]) == 1000
        shown = json.loads(h1.run(["ip", "-j", "route"], netns=name).stdout)
        assert len(shown) == 1001
        assert call(h1, "DEL", name).succeeded()
