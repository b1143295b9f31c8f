"""The host's forwarding for gateway devices: rules of the packet filter, and the kernel's leave.

Packets are forwarded only under our rules, which keep networks apart. Rules that are there go on
to be good, whatever keeps them from being looked at.
"""

import structlog

from netvirt import masquerade
from netvirt.backends import gateway_device
from netvirt.backends.nftables import PacketFilter
from tenancy.errors import BackendUnavailable

log = structlog.get_logger()


class Forwarding:
    """What the host lets pass. `problem` is a sentence on what is missing."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self._filter = PacketFilter()
        # The rules that were set last, and how they were listed then.
        self._rules: tuple[str, str] | None = None
        self._covered: frozenset[str] = frozenset()

    def allow(self, devices: frozenset[str], *, ipv6: bool) -> bool:
        """Have the host forward what comes from exactly these gateway devices; whether it does."""
        try:
            self._ensure_rules(devices)
            if devices:
                gateway_device.allow_forwarding(ipv6=ipv6)
        except BackendUnavailable as error:
            if devices:
                self.problem = f"containers do not get out by this host: {error}"
                return devices <= self._covered
        self.problem = None
        return True

    def _ensure_rules(self, devices: frozenset[str]) -> None:
        rules = masquerade.rules(devices)
        is_known = self._rules is not None and self._rules[0] == rules
        if is_known and not devices:
            return
        listing = self._filter.listing(masquerade.TABLE)
        if self._rules == (rules, listing):
            return
        if is_known:
            log.warning("rules for host access had been changed; they are put back")
        if devices or listing:
            self._filter.apply(rules)
            log.info("rules for host access set", gateways=len(devices))
        self._rules = (rules, self._filter.listing(masquerade.TABLE))
        self._covered = devices
