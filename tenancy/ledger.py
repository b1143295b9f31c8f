"""Quota admission: what a tenant may still use is a number in the database that cannot go below 0.

`Quota.available` has a minimum of 0 in the schema, and it is changed by the server's own
arithmetic in the transaction that uses it. So two writers can never both take the last unit,
whatever they read before, and no one has to read anything to be admitted.
"""

from collections.abc import Callable, Iterable, Mapping
from uuid import UUID

from tenancy.backends.codec import Ref, Row
from tenancy.backends.transaction import Changes
from tenancy.errors import QuotaExceeded
from tenancy.model import Resource
from tenancy.names import format_size


def charge(
    transaction: Changes, tenant: UUID, tenant_name: str, amounts: Mapping[Resource, int]
) -> None:
    """Use this much of the tenant's quota, or fail the transaction with `QuotaExceeded`."""
    for resource, amount in amounts.items():
        if amount == 0:
            continue
        missing = _no_account(tenant_name, resource)
        transaction.require("Quota", missing, tenant=tenant, resource=resource)
        transaction.mutate(
            "Quota",
            {"tenant": tenant, "resource": resource},
            [("available", "-=", amount)],
            on_failure=_refusal(tenant_name, resource, amount),
        )


def refuse_beyond(quota: Iterable[Row], tenant_name: str, amounts: Mapping[Resource, int]) -> None:
    """Raise QuotaExceeded at once if the tenant's quota, as it was read, does not admit this much.

    That saves a transaction that would be refused. One that is sent must charge all the same.
    """
    available = {row["resource"]: row["available"] for row in quota}
    for resource, amount in amounts.items():
        if amount > available.get(resource, amount):
            raise _refusal(tenant_name, resource, amount)("")


def refund(transaction: Changes, tenant: UUID, amounts: Mapping[Resource, int]) -> None:
    """Give back what was used. Only in the transaction that deletes what used it."""
    for resource, amount in amounts.items():
        if amount:
            equals = {"tenant": tenant, "resource": resource}
            transaction.mutate("Quota", equals, [("available", "+=", amount)])


def open_account(transaction: Changes, tenant: UUID | Ref, limits: Mapping[Resource, int]) -> None:
    """The rows of a new tenant."""
    for resource, limit in limits.items():
        row = {"tenant": tenant, "resource": resource, "limit": limit, "available": limit}
        transaction.insert("Quota", row)


def _no_account(tenant: str, resource: Resource) -> Callable[[str], QuotaExceeded]:
    """A tenant made before virtkit knew the resource, or one that is deleted at this moment."""

    def refuse(_details: str) -> QuotaExceeded:
        return QuotaExceeded(
            f"tenant {tenant} has no quota of {resource}. If the tenant still exists, give it "
            f"one: nvctl tenant set {tenant} --quota {resource}=N."
        )

    return refuse


def _refusal(tenant: str, resource: Resource, amount: int) -> Callable[[str], QuotaExceeded]:
    def refuse(_details: str) -> QuotaExceeded:
        wanted = format_size(amount) if resource is Resource.BYTES else str(amount)
        return QuotaExceeded(
            f"tenant {tenant}: its quota of {resource} does not admit {wanted} more. Delete some, "
            f"or raise it: nvctl tenant set {tenant} --quota {resource}=N."
        )

    return refuse
