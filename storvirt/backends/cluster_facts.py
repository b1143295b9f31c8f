"""What a check-up asks of the cluster as a whole: clocks, versions, health, who is connected."""

import re
import subprocess
import time
from datetime import datetime

from storvirt.backends.cluster import Cluster
from tenancy.errors import BackendUnavailable

_RELEASE = re.compile(r"ceph version (\d+)\.(\d+)\.(\d+)")


def clock_offset_s(cluster: Cluster) -> float:
    """How far the leading monitor's clock is ahead of this machine's, at least.

    It wrote its time down somewhere between our question and its answer.
    """
    before = time.time()
    report = cluster.command("report")
    after = time.time()
    there = datetime.strptime(report["timestamp"], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
    return max(there - after, 0.0) or min(there - before, 0.0)


def skewed_monitors(cluster: Cluster) -> dict[str, float]:
    """Monitors whose clock Ceph itself finds too far from the leader's, in seconds."""
    found = cluster.command("time-sync-status").get("time_skew_status", {})
    return {name: float(one["skew"]) for name, one in found.items() if one["health"] != "HEALTH_OK"}


def versions(cluster: Cluster) -> dict[str, dict[str, int]]:
    """How many daemons of each kind run which version."""
    found = cluster.command("versions")
    return {
        kind: {release(text): count for text, count in daemons.items()}
        for kind, daemons in found.items()
        if kind != "overall" and daemons
    }


def own_release() -> str | None:
    """The release of Ceph's programs on this machine; None if that can't be told."""
    try:
        done = subprocess.run(
            ["rbd", "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return release(done.stdout) if done.returncode == 0 else None


def release(text: str) -> str:
    """`16.2.15` of `ceph version 16.2.15 (...) pacific (stable)`."""
    found = _RELEASE.search(text)
    return ".".join(found.groups()) if found else text


def health(cluster: Cluster) -> dict[str, str]:
    """What Ceph itself finds wrong: its code, and its sentence."""
    checks = cluster.command("health").get("checks", {})
    return {code: str(one["summary"]["message"]) for code, one in checks.items()}


def others_connected(cluster: Cluster) -> bool:
    """Whether anybody else is connected with virtkit's own key, and so may be at work.

    If a monitor does not say who is connected to it, somebody may be.
    """
    own = f"client.{cluster.user}"
    # Asking one monitor in particular opens a session of its own, named after ours.
    ours = f"client.{cluster.instance}"
    for monitor in cluster.command("mon dump")["mons"]:
        try:
            sessions = cluster.tell_monitor(monitor["name"], "sessions")
        except BackendUnavailable:
            return True
        for one in sessions:
            is_ours = one["global_id"] == cluster.instance or one["name"] == ours
            if one["entity_name"] == own and not is_ours:
                return True
    return False
