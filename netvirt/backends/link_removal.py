"""Removing ports' links beside the agent's loop.

The kernel takes a link out of sight within a millisecond or two, and keeps whoever asked for some
twenty more, until every processor has let go of it (rcu_barrier in net/core/dev.c). So the
removal has a thread, and the loop asks whether the link is still to be seen.
"""

import errno
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from uuid import UUID

import structlog
from pyroute2 import NetlinkError

from netvirt.backends import links, netlink
from tenancy.errors import BackendUnavailable, VirtkitError

log = structlog.get_logger()

# The kernel's lock on links lets one in at a time; the waiting after it goes side by side, and
# costs nothing but a thread.
_THREADS = 64


class LinkRemover:
    """Removals under way, by port."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="link-removal")
        self._under_way: dict[UUID, Future[None]] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits for a link to go out of sight."""
        return bool(self._under_way)

    def gone(self, port_id: UUID) -> bool:
        """Have the port's link removed; True when it is not to be seen any more.

        Raises what removing it raised, once: asked again, it tries again.
        """
        removal = self._under_way.get(port_id)
        visible = _is_visible(links.link_name(port_id))
        if removal is None:
            if visible:
                self._under_way[port_id] = self._threads.submit(_remove, port_id)
            return not visible
        if removal.done():
            del self._under_way[port_id]
            removal.result()
            return not _is_visible(links.link_name(port_id))
        if visible:
            return False
        # Nobody waits for the rest, but somebody should hear if it goes wrong.
        del self._under_way[port_id]
        removal.add_done_callback(_note_failure)
        return True

    def close(self) -> None:
        """Wait for what is under way."""
        self._threads.shutdown()


def _remove(port_id: UUID) -> None:
    """Remove the port's link; its name, made of the port's id, is nobody else's."""
    name = links.link_name(port_id)
    try:
        with netlink.Channel() as here:
            here.send(netlink.no_link(socket.if_nametoindex(name)))
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise BackendUnavailable(f"link {name} can't be removed ({error}).") from error
    except OSError:
        return  # It has gone with its namespace.


def _is_visible(name: str) -> bool:
    try:
        # Unlike netlink, this doesn't wait for the kernel's lock on links.
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _note_failure(removal: Future[None]) -> None:
    error = removal.exception()
    if isinstance(error, VirtkitError):
        log.warning("link not removed", reason=str(error))
    elif error is not None:
        log.error("link not removed", exc_info=error)
