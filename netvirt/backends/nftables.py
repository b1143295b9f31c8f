"""The host's packet filter, by libnftables in this process: a change takes a millisecond there,
and twenty with a process of nft's. See libnftables(3).
"""

from typing import Any

from tenancy.errors import BackendUnavailable


class PacketFilter:
    """What nft(8) does, without waiting for anybody."""

    def __init__(self) -> None:
        self._nft: Any = None

    def apply(self, rules: str) -> None:
        """Make this change, all of it or nothing. Raises `BackendUnavailable`."""
        code, _, reason = self._library().cmd(rules)
        if code != 0:
            first = reason.strip().partition("\n")[0]
            raise BackendUnavailable(
                f"nftables refuses the rules for host access ({first}). See whether the kernel "
                "has nf_tables with NAT: `nft list ruleset`."
            )

    def listing(self, table: str) -> str:
        """What is in a table; nothing if there is none. Raises `BackendUnavailable`."""
        _, listing, _ = self._library().cmd(f"list table {table}")
        return str(listing)

    def _library(self) -> Any:
        if self._nft is None:
            try:
                # Debian's package, and a library that it loads: both may be missing on a host
                # that has no need of them.
                from nftables import Nftables

                self._nft = Nftables()
            except (ImportError, OSError) as error:
                raise BackendUnavailable(
                    f"nftables is not installed here ({error}). Install it: "
                    "`apt-get install python3-nftables`."
                ) from error
        return self._nft
