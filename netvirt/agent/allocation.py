"""New ports, stored without blocking: choose, write, and choose again if somebody was faster.

The agent knows what is taken in the networks that it holds, so that the first choice nearly
always holds; the unique indexes of the fabric database decide. Every host goes round the pools
from a place of its own, so that hosts that choose at the same time do not choose the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any
from uuid import UUID, uuid4

from netvirt import allocate
from netvirt.agent.knowledge import Knowledge
from netvirt.model import IPAddress, Mac, Network, Port, PortId, PortKind, Subnet, SubnetId
from tenancy import ledger
from tenancy.backends.requests import Pending, Requests, rows
from tenancy.backends.transaction import Changes, ReferenceViolation, UniqueViolation
from tenancy.errors import AlreadyExists, Conflict, NotFound
from tenancy.model import Resource

# How often a choice may be lost to other writers.
_ATTEMPTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPlan:
    """A port that does not exist yet; what is None or left out is chosen.

    The port is bound to `host` in the transaction that makes it. `attachment` has the columns of
    an Attachment row besides `host`, `port` and `network`. A port that is not `charged` costs the
    tenant no quota. Without `acknowledged` no host is asked to say that it knows of the port: that
    asks all of the fabric.
    """

    tenant_name: str
    network: Network
    name: str
    kind: PortKind
    host: str
    mac: Mac | None = None
    addresses: tuple[IPAddress, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    attachment: Mapping[str, str] | None = None
    charged: bool = True
    acknowledged: bool = True


class Allocator:
    """Where to look for the next address, subnet by subnet."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._last: dict[SubnetId, IPAddress] = {}

    def address(self, subnet: Subnet, avoid: frozenset[str]) -> IPAddress | None:
        """An address that nobody has as far as is known, and is not in `avoid`; None without."""
        taken = self._knowledge.taken(subnet.network)
        after = self._last.get(subnet.id) or self._start(subnet)
        for candidate in allocate.addresses_from(subnet.cidr, subnet.gateway, subnet.pools, after):
            text = str(candidate)
            if text not in taken and text not in avoid:
                self._last[subnet.id] = candidate
                return candidate
        return None

    def _start(self, subnet: Subnet) -> IPAddress:
        """A place in the first pool that is this host's more than others'."""
        pool = subnet.pools[0]
        digest = blake2b(self._knowledge.host_name.encode(), digest_size=8).digest()
        size = int(pool.last) - int(pool.first) + 1
        return pool.first + int.from_bytes(digest, "big") % size


class PortOrder:
    """One new port on its way into the database. `port` is what it is going to be."""

    def __init__(self, requests: Requests, allocator: Allocator, plan: PortPlan) -> None:
        self.plan = plan
        self._requests = requests
        self._allocator = allocator
        self._avoid: frozenset[str] = frozenset()
        self._attempt = 0
        self._changes: Changes | None = None
        self._pending: Pending | None = None
        self._survey: Pending | None = None
        self.port = self._propose(PortId(uuid4()))

    @property
    def cfg(self) -> int:
        """The change that hosts acknowledge, once the port is stored; 0 if none is asked to."""
        return (self._changes.cfg if self._changes else None) or 0

    def stored(self) -> bool:
        """Go on; whether the port is in the database.

        `port` may be another one afterwards, with the same id. Raises `AlreadyExists`,
        `PoolExhausted`, `QuotaExceeded`, `NotFound` or `BackendUnavailable`; only after the last
        of these may it be stored all the same.
        """
        if self._survey is not None:
            if not self._survey.done:
                return False
            [found] = rows(self._survey, ["Address"])
            self._avoid |= {row["ip"] for row in found}
            self._survey = None
            self.port = self._propose(self.port.id)
        if self._pending is None:
            self._send()
            return False
        if not self._pending.done:
            return False
        assert self._changes is not None
        try:
            self._changes.conclude(self._pending.results())
        except UniqueViolation as error:
            self._retry(error)
            return False
        except ReferenceViolation as error:
            raise NotFound(
                f"port {self.plan.name}: network {self.plan.network.name} has just been deleted."
            ) from error
        return True

    def _propose(self, port_id: PortId) -> Port:
        plan = self.plan
        chosen = []
        for subnet in plan.network.subnets:
            given = [address for address in plan.addresses if address in subnet.cidr]
            if given and str(given[0]) in self._avoid:
                raise AlreadyExists(
                    f"port {plan.name}: address {given[0]} is taken in network "
                    f"{plan.network.name}. Choose another, or omit it and one is allocated."
                )
            address = given[0] if given else self._allocator.address(subnet, self._avoid)
            if address is None:
                raise allocate.PoolExhausted(
                    f"port {plan.name}: network {plan.network.name} ({subnet.cidr}) has no free "
                    "address left. Delete ports, or make a larger network."
                )
            chosen.append(address)
        return Port(
            id=port_id,
            tenant=plan.network.tenant,
            network=plan.network.id,
            name=plan.name,
            mac=plan.mac or allocate.mac_of(chosen[0]),
            kind=plan.kind,
            addresses=tuple(chosen),
            host=plan.host,
            labels=plan.labels,
        )

    def _send(self) -> None:
        changes, port, plan = self._requests.changes(), self.port, self.plan
        network: UUID = plan.network.id
        if port.kind is PortKind.HOST:
            changes.require("Network", id=network, host_access=True)
        changes.insert_as(
            port.id,
            "Port",
            {
                "tenant": port.tenant,
                "network": network,
                "name": port.name,
                "mac": str(port.mac),
                "kind": port.kind,
                "host": port.host,
                "labels": port.labels,
            },
        )
        for address, subnet in zip(port.addresses, plan.network.subnets, strict=True):
            columns: dict[str, Any] = {"network": network, "subnet": subnet.id, "port": port.id}
            changes.insert("Address", {**columns, "ip": str(address), "host": port.host})
        bound = {"port": port.id, "network": network, "host": plan.host}
        changes.insert("Binding", {**bound, "claim": 1, "active": True})
        if plan.attachment is not None:
            changes.insert("Attachment", {**bound, **plan.attachment})
        if plan.charged:
            amounts = {Resource.PORTS: 1, Resource.ADDRESSES: len(port.addresses)}
            ledger.charge(changes, port.tenant, plan.tenant_name, amounts)
        if plan.acknowledged:
            changes.request_acknowledgement(network)
        self._changes, self._pending = changes, self._requests.commit(changes)

    def _retry(self, error: UniqueViolation) -> None:
        """Choose again, if the value that is taken was our choice; otherwise say whose it is."""
        plan, port = self.plan, self.port
        self._attempt += 1
        if self._attempt > _ATTEMPTS:
            raise Conflict(f"port {plan.name}: other writers keep taking what is chosen.")
        what = f"port {plan.name}"
        if "ip" in error.columns:
            # What we know of this network is not all there is: ask for everything.
            self._survey = self._requests.select([("Address", {"network": plan.network.id})])
        elif "mac" in error.columns:
            if plan.mac is not None:
                raise AlreadyExists(
                    f"{what}: MAC address {plan.mac} is taken in network {plan.network.name}. "
                    "Choose another, or omit it and one is allocated."
                )
            # Somebody has chosen what follows from this address: then one follows from the name.
            mac = allocate.mac(plan.network.id, plan.name, self._attempt)
            self.port = replace(port, mac=mac)
        elif "container" in error.columns and plan.attachment is not None:
            raise AlreadyExists(
                f"container {plan.attachment['container']}: its interface "
                f"{plan.attachment['interface']} is attached already. Detach it (DEL) first."
            )
        elif plan.attachment is not None:
            # A name that follows from the container and its interface.
            raise AlreadyExists(
                f"container {plan.attachment['container']}: its interface "
                f"{plan.attachment['interface']} has {what} in network {plan.network.name} already."
                " Detach it (DEL) first, or delete the port."
            )
        else:
            raise AlreadyExists(f"{what} of network {plan.network.name} exists already.")
        self._pending = None
