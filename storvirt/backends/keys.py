"""Tenants' cephx keys."""

import errno
from collections.abc import Mapping
from typing import Any

from storvirt.backends.cluster import Cluster, CommandFailed
from tenancy.errors import VerificationFailed


def ensure(cluster: Cluster, entity: str, wanted: Mapping[str, str]) -> None:
    """Make the key, or change its caps, so that they are exactly `wanted`. The key itself stays.

    Sessions that are open keep the caps of their ticket until it is renewed, within an hour.
    """
    if caps_of(cluster, entity) == wanted:
        return
    flat = [word for service, cap in wanted.items() for word in (service, cap)]
    try:
        cluster.command("auth get-or-create", entity=entity, caps=flat)
    except CommandFailed as error:
        # It exists with other caps.
        if error.code != errno.EINVAL:
            raise
        cluster.command("auth caps", entity=entity, caps=flat)
    found = caps_of(cluster, entity)
    if found != wanted:
        raise VerificationFailed(
            f"cephx {entity} has caps {found} after they were set to {dict(wanted)}. "
            "Look at `ceph auth get`; another program may manage this key."
        )


def caps_of(cluster: Cluster, entity: str) -> dict[str, str] | None:
    """The caps of a key by service, or None if there is no such key."""
    found = _get(cluster, entity)
    return None if found is None else dict(found["caps"])


def all_caps(cluster: Cluster, prefix: str) -> dict[str, dict[str, str]]:
    """The caps of all keys whose entity begins so, by entity and service."""
    return {
        one["entity"]: dict(one["caps"])
        for one in cluster.command("auth ls")["auth_dump"]
        if one["entity"].startswith(prefix)
    }


def secret(cluster: Cluster, entity: str) -> str | None:
    """The key itself, base64, or None if there is no such key."""
    found = _get(cluster, entity)
    return None if found is None else str(found["key"])


def delete(cluster: Cluster, entity: str) -> None:
    """Remove the key, if it is there."""
    cluster.raw_command("auth del", entity=entity)


def _get(cluster: Cluster, entity: str) -> dict[str, Any] | None:
    try:
        return dict(cluster.command("auth get", entity=entity)[0])
    except CommandFailed as error:
        if error.code == errno.ENOENT:
            return None
        raise
