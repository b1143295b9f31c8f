"""Waiting until the hosts that a change concerns have applied it."""

from tenancy.backends.fabric import Fabric
from tenancy.errors import BackendUnavailable

DEFAULT_WAIT_S = 30.0


def wait_for_hosts(
    fabric: Fabric, what: str, cfg: int | None, hosts: frozenset[str], timeout_s: float
) -> None:
    """Return when all of these hosts have applied change `cfg`.

    Raises `BackendUnavailable` with the names of those that have not after the timeout; the
    change itself stays made.
    """
    if cfg is None or not hosts:
        return
    lagging = fabric.wait_for_hosts(cfg, hosts, timeout_s)
    if lagging:
        names = ", ".join(sorted(lagging))
        raise BackendUnavailable(
            f"{what}: stored, but {names} did not apply it within {timeout_s:g} s. "
            "See whether the agent runs there: `nvctl host list`."
        )
