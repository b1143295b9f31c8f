"""CRUSH rules and erasure code profiles: where a pool's copies or pieces go."""

import errno
from collections import defaultdict
from typing import Any

from storvirt.backends.cluster import Cluster, CommandFailed
from storvirt.poolplan import Erasure, Topology


def topology(cluster: Cluster) -> Topology:
    """Where there are OSDs, by kind of bucket and device class.

    Root and failure domain are those of the first rule, which is what Ceph takes for a new pool
    unless `osd_pool_default_crush_rule` names another.
    """
    rules = cluster.command("osd crush rule dump")
    first = min((rule for rule in rules if rule["type"] == 1), key=lambda rule: rule["rule_id"])
    take = next(step for step in first["steps"] if step["op"] == "take")
    kinds = [step["type"] for step in first["steps"] if step["op"].startswith("choose")]
    root = str(take["item_name"]).partition("~")[0]
    nodes = {node["id"]: node for node in cluster.command("osd tree")["nodes"]}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def classes_below(node: dict[str, Any]) -> set[str]:
        if node["type"] == "osd":
            found = {"", str(node.get("device_class") or "")}
        else:
            below = (nodes[child] for child in node.get("children", ()) if child in nodes)
            found = set().union(*map(classes_below, below))
        for name in found:
            counts[node["type"]][name] += 1
        return found

    for node in nodes.values():
        if node["type"] == "root" and node["name"] == root:
            classes_below(node)
    return Topology(
        root=root,
        default_domain=kinds[-1],
        domains={kind: dict(by_class) for kind, by_class in counts.items() if kind != "root"},
    )


def rules(cluster: Cluster) -> frozenset[str]:
    """The names of the rules that exist."""
    return frozenset(cluster.command("osd crush rule ls"))


def profiles(cluster: Cluster) -> frozenset[str]:
    """The names of the erasure code profiles that exist."""
    return frozenset(cluster.command("osd erasure-code-profile ls"))


def describe_rule(cluster: Cluster, number: int) -> tuple[str, str | None, str | None]:
    """Name, device class and failure domain of a rule."""
    for rule in cluster.command("osd crush rule dump"):
        if rule["rule_id"] == number:
            take = next((s["item_name"] for s in rule["steps"] if s["op"] == "take"), "")
            kinds = [step["type"] for step in rule["steps"] if step["op"].startswith("choose")]
            return rule["rule_name"], take.partition("~")[2] or None, kinds[-1] if kinds else None
    return str(number), None, None


def create_rule(
    cluster: Cluster, name: str, *, root: str, failure_domain: str, device_class: str | None
) -> None:
    """Make a rule for replicas, unless it is there as asked."""
    arguments = {"class": device_class} if device_class else {}
    cluster.raw_command(
        "osd crush rule create-replicated", name=name, root=root, type=failure_domain, **arguments
    )


def create_profile(
    cluster: Cluster,
    name: str,
    erasure: Erasure,
    *,
    root: str,
    failure_domain: str,
    device_class: str | None,
) -> None:
    """Make a profile, unless it is there as asked."""
    words = [f"k={erasure.k}", f"m={erasure.m}", "plugin=jerasure", "technique=reed_sol_van"]
    words += [f"crush-root={root}", f"crush-failure-domain={failure_domain}"]
    if device_class:
        words.append(f"crush-device-class={device_class}")
    cluster.raw_command("osd erasure-code-profile set", name=name, profile=words)


def delete_rule(cluster: Cluster, name: str) -> None:
    """Remove a rule, if it is there. Ceph refuses while a pool uses it."""
    _quiet(cluster, "osd crush rule rm", name)


def delete_profile(cluster: Cluster, name: str) -> None:
    """Remove a profile, if it is there. Ceph refuses while a pool uses it."""
    _quiet(cluster, "osd erasure-code-profile rm", name)


def _quiet(cluster: Cluster, prefix: str, name: str) -> None:
    try:
        cluster.raw_command(prefix, name=name)
    except CommandFailed as error:
        if error.code != errno.ENOENT:
            raise
