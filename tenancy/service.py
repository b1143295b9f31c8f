"""Operations on tenants. Each is one transaction: done or not done, and safe to repeat."""

from collections import defaultdict
from collections.abc import Mapping
from uuid import UUID

from tenancy import ledger
from tenancy.backends.codec import Row
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import ReferenceViolation, Transaction, UniqueViolation
from tenancy.errors import AlreadyExists, InvalidRequest, NotFound, Refused
from tenancy.model import DEFAULT_QUOTA, UNLIMITED, Allowance, Resource, Tenant, TenantId
from tenancy.names import validate_name


def create(
    fabric: Fabric,
    name: str,
    *,
    quota: Mapping[Resource, int] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Tenant:
    """A new tenant with the default quota, changed where `quota` says so (UNLIMITED allowed)."""
    validate_name("tenant", name)
    limits = {**DEFAULT_QUOTA, **_checked(name, quota or {})}

    transaction = fabric.transaction()
    tenant = transaction.insert("Tenant", {"name": name, "labels": labels or {}})
    ledger.open_account(transaction, tenant, limits)
    try:
        transaction.commit()
    except UniqueViolation as error:
        raise AlreadyExists(f"tenant {name} exists already. Choose another name.") from error
    return get(fabric, name)


def get(fabric: Fabric, name: str) -> Tenant:
    return _tenant(fabric, find(fabric, name))


def find(fabric: Fabric, name: str) -> Row:
    """The tenant's row, or `NotFound` with what to do."""
    row = fabric.find("Tenant", name=name)
    if row is None:
        raise NotFound(
            f"tenant {name} does not exist. See `nvctl tenant list`, or create it: "
            "nvctl tenant create NAME."
        )
    return row


def list_all(fabric: Fabric) -> list[Tenant]:
    """All tenants, by name."""
    tenants, quotas = fabric.select_many([("Tenant", {}), ("Quota", {})])
    by_tenant: dict[UUID, list[Row]] = defaultdict(list)
    for row in quotas:
        by_tenant[row["tenant"]].append(row)
    return [
        _from_rows(row, by_tenant[row.id]) for row in sorted(tenants, key=lambda row: row["name"])
    ]


def set_quota(fabric: Fabric, name: str, quota: Mapping[Resource, int]) -> Tenant:
    """Change limits. A limit below what is used is refused, and then nothing is changed."""
    wanted = _checked(name, quota)

    def build(transaction: Transaction) -> None:
        tenant = find(fabric, name)
        rows = {row["resource"]: row for row in fabric.select("Quota", tenant=tenant.id)}
        for resource, limit in wanted.items():
            row = rows.get(resource)
            if row is None:
                # A resource that this version of virtkit knows and the tenant's creator did not.
                transaction.require_none("Quota", tenant=tenant.id, resource=resource)
                ledger.open_account(transaction, tenant.id, {resource: limit})
                continue
            used = row["limit"] - row["available"]
            if limit < used:
                raise Refused(
                    f"tenant {name}: quota {resource}={limit} is below the {used} in use. "
                    "Delete some first, or choose a higher limit."
                )
            transaction.guard(row, "limit", "available")
            transaction.update(row, {"limit": limit, "available": limit - used})

    fabric.change(build)
    return get(fabric, name)


def set_labels(fabric: Fabric, name: str, labels: Mapping[str, str]) -> Tenant:
    """Replace the tenant's labels."""
    transaction = fabric.transaction()
    transaction.update(find(fabric, name), {"labels": labels})
    transaction.commit()
    return get(fabric, name)


def delete(fabric: Fabric, name: str) -> None:
    """Remove a tenant that owns nothing any more."""
    tenant = find(fabric, name)
    transaction = fabric.transaction()
    transaction.delete_where("Quota", tenant=tenant.id)
    transaction.delete(tenant)
    try:
        transaction.commit()
    except ReferenceViolation as error:
        raise Refused(
            f"tenant {name} still has {_possessions(fabric, tenant.id)}. Delete them first."
        ) from error


def _possessions(fabric: Fabric, tenant: UUID) -> str:
    nouns = {
        "Network": "network",
        "Port": "port",
        "Image": "image",
        "ImageGroup": "image group",
        "StorageNamespace": "storage namespace",
    }
    found = fabric.select_many([(table, {"tenant": tenant}) for table in nouns])
    counts = [
        f"{len(rows)} {noun}{'s' if len(rows) > 1 else ''}"
        for noun, rows in zip(nouns.values(), found, strict=True)
        if rows
    ]
    return ", ".join(counts) or "objects"


def _checked(name: str, quota: Mapping[Resource, int]) -> dict[Resource, int]:
    for resource, limit in quota.items():
        if not 0 <= limit <= UNLIMITED:
            raise InvalidRequest(
                f"tenant {name}: quota {resource}={limit} is out of range. "
                f"Give 0 to {UNLIMITED}, or `unlimited`."
            )
    return dict(quota)


def _tenant(fabric: Fabric, row: Row) -> Tenant:
    return _from_rows(row, fabric.select("Quota", tenant=row.id))


def _from_rows(row: Row, quotas: list[Row]) -> Tenant:
    known = {str(resource) for resource in Resource}
    return Tenant(
        id=TenantId(row.id),
        name=row["name"],
        labels=row["labels"],
        quota={
            Resource(quota["resource"]): Allowance(
                limit=quota["limit"], used=quota["limit"] - quota["available"]
            )
            for quota in sorted(quotas, key=lambda quota: quota["resource"])
            if quota["resource"] in known
        },
    )
