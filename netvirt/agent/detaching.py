"""Taking a container's port away, step by step: its interface, its link, its rows."""

from collections.abc import Generator
from typing import Any

from netvirt import rows as decode
from netvirt.agent.parts import Key, Parts
from netvirt.agent.tasks import Work
from netvirt.backends import links
from netvirt.model import Port, PortId
from tenancy import ledger
from tenancy.backends import requests as asked
from tenancy.backends.transaction import GuardFailed
from tenancy.model import Resource


def detach_all(parts: Parts, key: Key) -> Work:
    """Take off the switch everything that says it is this attachment's interface."""
    found = [
        PortId(interface.iface_id)
        for interface in parts.vswitch.interfaces().values()
        if interface.attachment == key and interface.iface_id is not None
    ]
    for port_id in found:
        yield from detach(parts, port_id)


def detach(parts: Parts, port_id: PortId) -> Work:
    """No interface of the port is on the switch, and no link of it is left."""
    name = links.link_name(port_id)
    while True:
        off = parts.vswitch.remove_port(name)
        gone = parts.remover.gone(port_id)
        if off and gone:
            return
        yield


def find_port(parts: Parts, port_id: PortId) -> Generator[None, None, Port | None]:
    """The port with all its addresses: as known, if that is all there is, or as stored."""
    known = parts.knowledge.ports.get(port_id)
    if known is not None and parts.is_complete(known.network):
        return known
    pending = parts.requests.select([("Port", {"id": port_id}), ("Address", {"port": port_id})])
    ports, addresses = yield from answered(pending, ["Port", "Address"])
    return decode.port(ports[0], addresses) if ports else None


def forget(parts: Parts, port: Port, key: Key) -> Work:
    """Delete the port with all that refers to it, and give its quota back, if it exists."""
    changes = parts.requests.changes()
    changes.require("Port", id=port.id)
    for table in ("Binding", "Address", "Attachment"):
        changes.delete_where(table, port=port.id)
    changes.delete_where("Port", id=port.id)
    amounts = {Resource.PORTS: 1, Resource.ADDRESSES: len(port.addresses)}
    ledger.refund(changes, port.tenant, amounts)
    pending = parts.requests.commit(changes)
    while not pending.done:
        yield
    try:
        changes.conclude(pending.results())
    except GuardFailed:
        return  # Somebody else has deleted it.
    # There may be another by then, of a container that has come back under its name.
    while (found := parts.knowledge.attachments.get(key)) is not None and found.port == port.id:
        yield


def answered(pending: asked.Pending, tables: list[str]) -> Generator[None, None, list[list[Any]]]:
    """The rows that a select found, once they are there."""
    while not pending.done:
        yield
    return asked.rows(pending, tables)
