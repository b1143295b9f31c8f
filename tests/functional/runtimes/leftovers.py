"""Whether all that a test's containers had is gone again, in the fabric and on every host."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from lab.host import Host
from lab.lab import Lab
from lab.waiting import until

_TABLES = {
    "Port": ("name", "mac"),
    "Address": ("ip",),
    "Binding": ("port", "host"),
    "Attachment": ("host", "container", "interface"),
}
_TIMEOUT_S = 15.0


@contextmanager
def nothing_left(lab: Lab) -> Iterator[None]:
    """After the block there is what there was before it, at the latest after some seconds.

    Of ports, addresses, bindings and attachments in the fabric, of links, named network
    namespaces, Open vSwitch interfaces, flows, port forwardings and queued calls on the hosts.
    """
    before = _everything(lab)
    yield
    until(
        lambda: _everything(lab) == before,
        what="something is not as it was",
        timeout_s=_TIMEOUT_S,
        explain=lambda: _difference(before, _everything(lab)),
    )


def rows(lab: Lab, table: str) -> list[str]:
    """The rows of a table of the fabric, by those of their columns that tell them apart."""
    dump = ["ovsdb-client", "--format=json", "dump", "unix:/run/virtkit/fabric.sock"]
    done = lab.ctl.run([*dump, "Virtkit_Fabric", table, *_TABLES[table]])
    return [f"{table} {json.dumps(row)}" for row in json.loads(done.stdout)["data"]]


def _everything(lab: Lab) -> set[str]:
    found = {f"fabric: {row}" for table in _TABLES for row in rows(lab, table)}
    for host in lab.hosts:
        found |= {f"{host.name}: {fact}" for fact in _on_host(host)}
    return found


def _on_host(host: Host) -> Iterator[str]:
    for link in json.loads(host.run(["ip", "-j", "link"]).stdout):
        yield f"link {link['ifname']}"
    for space in json.loads(host.run(["ip", "-j", "netns"]).stdout or "[]"):
        yield f"network namespace {space['name']}"
    interfaces = ["ovs-vsctl", "--format=json", "--columns=name", "list", "Interface"]
    for (name,) in json.loads(host.run(interfaces).stdout)["data"]:
        yield f"interface {name}"
    flows = host.run(["ovs-ofctl", "dump-flows", "br-int", "--no-stats"]).stdout
    for line in flows.splitlines():
        yield f"flow {line.strip()}"
    # What portmap writes for a container; the chains that lead there stay for the next one.
    for line in host.run(["iptables-save", "-t", "nat"]).stdout.splitlines():
        if "CNI-DN-" in line:
            yield f"port forwarding {line}"
    for record in host.path("/var/lib/virtkit/cni/queue").glob("*"):
        yield f"queued call {record.name}"


def _difference(before: set[str], after: set[str]) -> str:
    lines = [f"    gone: {one}" for one in sorted(before - after)]
    lines += [f"    left: {one}" for one in sorted(after - before)]
    return "\n".join(lines) or "    (now it is)"
