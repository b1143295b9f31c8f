"""Tenants and quotas as both halves see them. Pure records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType
from uuid import UUID

TenantId = NewType("TenantId", UUID)

# What "no limit" is in the ledger: large enough never to be reached, small enough that no sum
# leaves OVSDB's signed 64-bit integers.
UNLIMITED = 2**62


class Resource(StrEnum):
    """What a quota can limit. `bytes` are an image's provisioned size, not what it fills."""

    NETWORKS = "networks"
    PORTS = "ports"
    ADDRESSES = "addresses"
    ROUTERS = "routers"
    IMAGES = "images"
    BYTES = "bytes"
    SNAPSHOTS = "snapshots"


# What a tenant gets when nothing is said: room for a department, not for a mistake in a loop.
DEFAULT_QUOTA: Mapping[Resource, int] = {
    Resource.NETWORKS: 100,
    Resource.PORTS: 10_000,
    Resource.ADDRESSES: 20_000,
    Resource.ROUTERS: 20,
    Resource.IMAGES: 1_000,
    Resource.BYTES: 100 * 1024**4,
    Resource.SNAPSHOTS: 10_000,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """How much of one resource a tenant may use and uses. Bytes for `bytes`, else objects."""

    limit: int
    used: int

    @property
    def available(self) -> int:
        return self.limit - self.used


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One tenant with its quota."""

    id: TenantId
    name: str
    quota: Mapping[Resource, Allowance]
    labels: Mapping[str, str] = field(default_factory=dict)
