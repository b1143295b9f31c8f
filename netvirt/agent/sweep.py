"""Taking away what a crash left: what is attached and on no record, and what is on record and gone.

Only what the CNI made is looked at; it says so on the switch and on its link.
"""

import time
from pathlib import Path

import structlog

from netvirt.agent import detaching
from netvirt.agent.attachments import MAKER, Attachments
from netvirt.agent.parts import Parts
from netvirt.agent.tasks import Work
from netvirt.backends import links
from netvirt.model import PortId

log = structlog.get_logger()

# How long the making of a link takes at most, from the link to its alias.
MAKING_S = 2.0


def sweep(parts: Parts, attachments: Attachments) -> Work:
    """Take away interfaces and links of ports that do not exist, and ports of containers that
    do not.
    """
    yield from _sweep_interfaces(parts, attachments)
    yield from _sweep_half_made(parts)
    yield from _sweep_links(parts, attachments)
    yield from _sweep_rows(parts, attachments)


def _sweep_interfaces(parts: Parts, attachments: Attachments) -> Work:
    """Interfaces on the switch whose attachment is not on record."""
    for interface in list(parts.vswitch.interfaces().values()):
        if interface.attachment is None or interface.iface_id is None:
            continue
        port_id = PortId(interface.iface_id)
        attachment = parts.knowledge.attachments.get(interface.attachment)
        is_on_record = attachment is not None and attachment.port == port_id
        if not is_on_record and not attachments.expected[port_id]:
            log.warning("interface without attachment removed", interface=interface.name)
            yield from detaching.detach(parts, port_id)


def _sweep_half_made(parts: Parts) -> Work:
    """Links whose maker was killed before they said whose they are."""
    before = links.nameless()
    seen_at = time.monotonic()
    while before and time.monotonic() - seen_at < MAKING_S:
        yield
    for name in before & links.nameless() if before else ():
        if name not in parts.vswitch.interfaces():
            log.warning("half-made link removed", link=name)
            links.remove_nameless(name)


def _sweep_links(parts: Parts, attachments: Attachments) -> Work:
    """Links that are on no switch, of ports that do not exist."""
    for port_id in map(PortId, links.made_by(MAKER)):
        if port_id in parts.knowledge.ports or attachments.expected[port_id]:
            continue
        found = yield from detaching.find_port(parts, port_id)
        if found is None and not attachments.expected[port_id]:
            log.warning("link without port removed", link=links.link_name(port_id))
            yield from detaching.detach(parts, port_id)


def _sweep_rows(parts: Parts, attachments: Attachments) -> Work:
    """Attachments whose link is gone with the container's namespace, after a reboot for one.

    Runtimes without GC never ask for them to be taken away.
    """
    there = set(links.made_by(MAKER))
    for key, attachment in list(parts.knowledge.attachments.items()):
        is_gone = attachment.port not in there and not Path(attachment.netns).exists()
        if is_gone and not attachments.expected[attachment.port]:
            log.warning("attachment of a lost container removed", container=key[0])
            yield from attachments.delete(key)
