"""Write docs/pipeline.md from the code: `make docs`. A golden test holds the page to the code.

The sample flows are those of one small world, compiled by the same functions that the agent uses.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from uuid import UUID

from netvirt import compile as compiler
from netvirt.compile import Local, Remote
from netvirt.model import (
    Mac,
    Network,
    NetworkId,
    Overlay,
    Port,
    PortId,
    PortKind,
    Subnet,
    SubnetId,
)
from netvirt.pipeline.fields import ALL_FIELDS
from netvirt.pipeline.flow import Category, Flow
from netvirt.pipeline.tables import ALL_TABLES, EXPLANATION, METERS, Reason, Table
from tenancy.model import TenantId

PAGE = Path(__file__).with_name("pipeline.md")

INTRODUCTION = """\
# The pipeline of br-int

*Generated from the code by `make docs`; do not edit.*

A packet enters at table 0 by a port's interface or out of a tunnel. `metadata` then carries its
network's segment id, through every table and, as `tun_id`, over the wire: it is the VNI of VXLAN
and the key of GRE, 24 bits of either. Whatever is dropped goes through table `drop` with its
reason in `reg14`, so that `nvctl agent drops` can say how many packets died of what.

A flow's cookie is one byte for what the flow is for and seven of a digest of everything it says.
An agent that starts therefore reads only cookies to know which flows to keep, and sends only the
difference, as one bundle. When nothing changed that is nothing.

The sample flows are those of host h1 (192.0.2.1) in a small world: network *front* (VXLAN,
segment 0x1267, 10.1.0.0/24 and fd00:1::/64) with port *web* (10.1.0.2, fd00:1::2) on h1 behind
OpenFlow port 5 and port *db* (10.1.0.3, fd00:1::3) on h2 (192.0.2.2). The network has host access:
*host-h1* (10.1.0.4, fd00:1::4) behind OpenFlow port 6 is h1's own. OpenFlow port 1 is the VXLAN
tunnel and 2 the GRE tunnel.
"""


def page() -> str:
    """The whole page."""
    flows = sorted(sample(), key=lambda flow: (flow.table, -flow.priority, flow.text))
    lines = [INTRODUCTION, "## Tables", "", *_table_list(), ""]
    for table in ALL_TABLES:
        lines += [
            f"### {table.id} {table.name}",
            "",
            f"{table.purpose[0].upper()}{table.purpose[1:]}.",
            "",
            "```",
        ]
        lines += [_line(flow) for flow in flows if flow.table == table.id]
        lines += ["```", ""]
    lines += ["## Drop reasons", "", "| reason | a packet that |", "|---|---|"]
    lines += [f"| `{reason.label}` | {EXPLANATION[reason]} |" for reason in Reason]
    lines += ["", "## Fields", "", "| field | bits | what it holds |", "|---|---|---|"]
    lines += [f"| `{field.name}` | {field.bits} | {field.purpose} |" for field in ALL_FIELDS]
    lines += ["", "## Meters", "", "| meter | limit |", "|---|---|"]
    lines += [
        f"| {meter} | {rate} packets a second to the agent |" for meter, rate in METERS.items()
    ]
    lines += ["", "## Cookies", "", "| first byte | the flow belongs to |", "|---|---|"]
    lines += [
        f"| `{category.value:#04x}` | {category.name.lower().replace('_', ' ')} |"
        for category in Category
    ]
    return "\n".join(lines) + "\n"


def sample() -> Iterator[Flow]:
    """The flows of the small world that the introduction describes."""
    network_id = NetworkId(UUID(int=1))
    subnets = tuple(
        Subnet(
            id=SubnetId(UUID(int=20 + cidr.version)),
            network=network_id,
            cidr=cidr,
            gateway=cidr[1],
            pools=(),
        )
        for cidr in (IPv4Network("10.1.0.0/24"), IPv6Network("fd00:1::/64"))
    )
    network = Network(
        id=network_id,
        tenant=TenantId(UUID(int=3)),
        name="front",
        overlay=Overlay.VXLAN,
        segment_id=0x1267,
        mtu_bytes=1450,
        subnets=subnets,
        host_access=True,
    )
    h2 = IPv4Address("192.0.2.2")
    yield from compiler.base({Overlay.VXLAN: 1, Overlay.GRE: 2})
    yield from compiler.network(network, 1, [5, 6], [h2])
    yield from compiler.port(_port(network, "web", 2), network, Local(5), 1)
    yield from compiler.port(_port(network, "db", 3), network, Remote(h2), 1)
    host = _port(network, "host-h1", 4, PortKind.HOST)
    yield from compiler.port(host, network, Local(6), 1)


def _port(network: Network, name: str, number: int, kind: PortKind = PortKind.CONTAINER) -> Port:
    return Port(
        id=PortId(UUID(int=10 + number)),
        tenant=network.tenant,
        network=network.id,
        name=name,
        mac=Mac(0x0A0000000000 + number),
        kind=kind,
        addresses=tuple(subnet.cidr[number] for subnet in network.subnets),
    )


def _table_list() -> Iterator[str]:
    yield "| table | name | purpose | what matches no flow |"
    yield "|---|---|---|---|"
    for table in ALL_TABLES:
        yield f"| {table.id} | {table.name} | {table.purpose} | {_miss(table)} |"


def _miss(table: Table) -> str:
    if isinstance(table.miss, Reason):
        return f"dropped: `{table.miss.label}`"
    return f"goes to {table.miss.name}" if table.miss else "-"


def _line(flow: Flow) -> str:
    match = f"{flow.priority},{flow.match_text}" if flow.match else str(flow.priority)
    return f"priority={match} actions={flow.text.partition(' actions=')[2]}"


if __name__ == "__main__":
    PAGE.write_text(page())
