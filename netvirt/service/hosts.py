"""Hosts as the fabric knows them: announced by their agents, or entered ahead of them."""

from collections import Counter
from collections.abc import Mapping
from ipaddress import IPv4Address

from netvirt import rows
from netvirt.model import Host, Overlay, PortKind, host_port_name
from netvirt.service import attachments, host_ports
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, NotFound, Refused
from tenancy.names import validate_name

# An agent reports every 15 s; two reports missed and it counts as silent.
HEARTBEAT_S = 15
ALIVE_S = 2 * HEARTBEAT_S + 5


def create(
    fabric: Fabric,
    name: str,
    *,
    tunnel_ip: IPv4Address | None = None,
    labels: Mapping[str, str] | None = None,
) -> Host:
    """Enter a host before its agent first runs."""
    validate_name("host", name)
    transaction = fabric.transaction()
    columns = {"name": name, "labels": labels or {}, "overlays": frozenset(Overlay)}
    if tunnel_ip is not None:
        columns["tunnel_ip"] = str(tunnel_ip)
    transaction.insert("Host", columns)
    try:
        transaction.commit()
    except UniqueViolation as error:
        raise AlreadyExists(f"host {name} exists already. See `nvctl host get {name}`.") from error
    return get(fabric, name)


def get(fabric: Fabric, name: str) -> Host:
    return rows.host(find(fabric, name))


def find(fabric: Fabric, name: str) -> Row:
    row = fabric.find("Host", name=name)
    if row is None:
        raise NotFound(f"host {name} does not exist. See `nvctl host list`.")
    return row


def list_all(fabric: Fabric) -> list[Host]:
    """All hosts, by name."""
    return sorted(map(rows.host, fabric.select("Host")), key=lambda host: host.name)


def bound_ports(fabric: Fabric) -> dict[str, int]:
    """How many ports are bound to each host that has any, not counting its own."""
    bindings, own = fabric.select_many([("Binding", {}), ("Port", {"kind": PortKind.HOST})])
    own_ids = {row.id for row in own}
    return dict(Counter(row["host"] for row in bindings if row["port"] not in own_ids))


def set_labels(fabric: Fabric, name: str, labels: Mapping[str, str]) -> Host:
    """Replace the host's labels."""
    transaction = fabric.transaction()
    transaction.update(find(fabric, name), {"labels": labels})
    transaction.commit()
    return get(fabric, name)


def delete(fabric: Fabric, name: str, *, now_s: int, force: bool = False) -> None:
    """Forget a host. One whose agent still reports, or that holds ports, needs `force`.

    Its own ports, those of its containers and all its bindings go with it; the other ports stay,
    and can be plugged in elsewhere.
    """
    own_name = host_port_name(name)

    def build(transaction: Transaction) -> None:
        row = find(fabric, name)
        host = rows.host(row)
        bindings, own = fabric.select_many(
            [("Binding", {"host": name}), ("Port", {"kind": PortKind.HOST, "name": own_name})]
        )
        own_ids = {port.id for port in own}
        bindings = [binding for binding in bindings if binding["port"] not in own_ids]
        if bindings and not force:
            raise Refused(
                f"host {name} holds {len(bindings)} bound port{'s' if len(bindings) > 1 else ''}. "
                "Unplug them first, or give --force if the host is lost for good."
            )
        if is_alive(host, now_s) and not force:
            raise Refused(
                f"host {name}'s agent reported {max(0, now_s - host.heartbeat_s)} s ago and would "
                "enter it again. Stop the agent first, or give --force."
            )
        host_ports.remove_ports(fabric, transaction, name=own_name)
        if force:
            attachments.forget_host(fabric, transaction, name)
        else:
            # The agent may report, or bind a port, while we look.
            transaction.guard(row, "heartbeat")
            transaction.require_none("Binding", host=name)
        transaction.delete_where("Binding", host=name)
        transaction.delete(row)

    fabric.change(build)


def is_alive(host: Host, now_s: int) -> bool:
    return now_s - host.heartbeat_s < ALIVE_S
