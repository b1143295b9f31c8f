"""The local switch's database (ovs-vswitchd.conf.db(5)): what is there, and writes to it.

Writes are level-triggered: each `ensure_*` and `remove_*` returns True if the database already
says so. If not, it adds what differs to the transaction that the next `run` sends, and returns
False; the caller asks again when `run` reports a change. So nothing blocks, and a write that
failed or was overtaken is simply made again.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

import ovs.db.idl
import ovs.poller

from netvirt.backends.vswitch_rows import connect, decode
from netvirt.observed import Interface

DEFAULT_REMOTE = "unix:/run/openvswitch/db.sock"

# How long a database that is there may leave a question open before it is asked from scratch.
_ANSWER_S = 10.0
# What the database refuses it will refuse again, unless somebody mends something.
_PAUSE_AFTER_REFUSAL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """What the integration bridge should be.

    `tunnels` gives the names and types of its tunnel ports. Each is one for all remote hosts,
    whose addresses and keys are the flows' business. `tunnel_ip` is the address that they send
    from; without one the routing table chooses.
    """

    name: str = "br-int"
    datapath_type: str = "system"
    tunnels: tuple[tuple[str, str], ...] = (("vk-vxlan", "vxlan"), ("vk-gre", "gre"))
    tunnel_ip: IPv4Address | None = None


class VSwitch:
    """A replica of the few tables that matter, and at most one transaction under way.

    `seqno` changes whenever what is observed does. `failure` says why the last write was
    refused, and is None after one that succeeded.
    """

    def __init__(self, remote: str = DEFAULT_REMOTE, bridge: str = "br-int") -> None:
        self.remote = remote
        self.bridge = bridge
        self.seqno = 0
        self.failure: str | None = None
        self._idl = connect(remote)
        self._idl_seqno = 0
        self._was_connected = False
        self._transaction: Any = None
        self._sent = False
        # Whether a transaction has ended that `run` has not told of.
        self._ended = False
        self._retry_at: float | None = None
        self._waiting_since: float | None = None
        self._interfaces: dict[str, Interface] | None = None
        self._forget()

    @property
    def connected(self) -> bool:
        """Whether the replica is complete and current."""
        idl = self._idl
        return bool(idl.state == idl.IDL_S_MONITORING and idl._session.is_connected())

    def run(self) -> bool:
        """Send and take in what there is, never blocking; True if anything has changed.

        The end of a transaction is a change, too, whatever became of it.
        """
        changed = self._step_transaction() or self._ended
        self._ended = False
        self._mind_silence()
        self._idl.run()
        changed |= self._step_transaction()
        touched, self._idl.touched = self._idl.touched, set()
        if self.connected != self._was_connected:
            self._was_connected = self.connected
            self._forget()
            changed = True
        for table, row in touched:
            self._note(table, row)
        if self._idl.change_seqno != self._idl_seqno:
            self._idl_seqno = self._idl.change_seqno
            changed = True
        if self._retry_at is not None and time.monotonic() >= self._retry_at:
            self._retry_at = None
            changed = True
        if changed:
            self._interfaces = None
            self.seqno += 1
        return changed

    def flush(self) -> None:
        """Send what has gathered now; what becomes of it is for `run` to say."""
        if self._transaction is not None and not self._sent:
            self._ended |= self._step_transaction()

    def wait(self, poller: ovs.poller.Poller) -> None:
        """Wake the poller up when `run` has something to do."""
        if self._ended:
            poller.immediate_wake()
        self._idl.wait(poller)
        if self._transaction is not None:
            if self._sent:
                self._transaction.wait(poller)
            else:
                poller.immediate_wake()
        if self._retry_at is not None:
            poller.timer_wait(max(0, int((self._retry_at - time.monotonic()) * 1000) + 1))

    def close(self) -> None:
        """Leave the database. Nothing of what was written goes away."""
        self._idl.close()

    # Reading

    def interfaces(self) -> Mapping[str, Interface]:
        """Interfaces of the bridge by name; the same object until something changes."""
        if self._interfaces is None:
            bridge = self._find_bridge(self.bridge)
            # Rows that only our own transaction knows of have no data yet: they are not observed.
            ports = [port for port in (bridge.ports if bridge else []) if port._data is not None]
            records = [self._record(row) for port in ports for row in self._interfaces_of(port)]
            self._interfaces = {record.name: record for record in records}
        return self._interfaces

    def datapath_type(self) -> str | None:
        """What forwards for the bridge; None if there is no bridge."""
        bridge = self._find_bridge(self.bridge)
        return None if bridge is None else str(bridge.datapath_type)

    # Writing

    def ensure_bridge(self, bridge: Bridge) -> bool:
        """The bridge with its tunnel ports; other ports stay as they are.

        fail_mode is `secure`, so a switch without flows drops everything instead of learning.
        """
        if not self._begin():
            return False
        row = self._find_bridge(bridge.name)
        missing = [
            port
            for name, type_ in bridge.tunnels
            if (port := self._ensure_tunnel(name, type_, bridge.tunnel_ip)) is not None
        ]
        if row is None:
            row = self._insert("Bridge", name=bridge.name)
            row.ports = [self._insert_port(bridge.name, "internal"), *missing]
            switch = self._top()
            switch.addvalue("bridges", row)
        else:
            for port in missing:
                row.addvalue("ports", port)
        self._set(row, "fail_mode", "secure")
        self._set(row, "datapath_type", bridge.datapath_type)
        return self._end()

    def ensure_port(
        self,
        name: str,
        external_ids: Mapping[str, str],
        *,
        type_: str = "",
        ofport: int | None = None,
    ) -> bool:
        """A port of this name on the bridge, with one interface that has these external ids.

        Of type `internal`, its device is the switch's own. A new one gets the OpenFlow port
        number `ofport` if that is free.
        """
        if not self._begin():
            return False
        bridge = self._find_bridge(self.bridge)
        if bridge is None:
            return self._refuse(f"bridge {self.bridge} does not exist")
        interface = self._find_interface(name)
        if interface is None:
            columns: dict[str, Any] = {"external_ids": dict(external_ids)}
            if ofport is not None:
                columns["ofport_request"] = ofport
            bridge.addvalue("ports", self._insert_port(name, type_, **columns))
        elif name not in self.interfaces():
            return self._refuse(f"interface {name} is on another bridge")
        else:
            self._set(interface, "type", type_)
            self._set_keys(interface, external_ids)
        return self._end()

    def ensure_external_ids(self, interface: str, ids: Mapping[str, str]) -> bool:
        """The interface has these external ids, among others. True if there is no such one."""
        if not self._begin():
            return False
        row = self._find_interface(interface)
        if row is not None:
            self._set_keys(row, ids)
        return self._end()

    def ensure_mtu(self, interface: str, mtu: int) -> bool:
        """The switch gives the interface this MTU in bytes. True if there is no such one."""
        if not self._begin():
            return False
        row = self._find_interface(interface)
        if row is not None:
            self._set(row, "mtu_request", mtu)
        return self._end()

    def remove_port(self, name: str, *, confirmed: bool = False) -> bool:
        """No port of this name is on the bridge. If `confirmed`, `applied` tells when the switch
        has let go of it, too.
        """
        if not self._begin():
            return False
        bridge = self._find_bridge(self.bridge)
        # Not by looking through them all: of many that are removed at once, each would.
        port = self._idl.tables["Port"].rows.get(self._port_names.get(name))
        if bridge is not None and port is not None and name in self.interfaces():
            bridge.delvalue("ports", port)
            if confirmed:
                self._ask_to_apply()
            self._changes += 1
        return self._end()

    @property
    def applied(self) -> bool:
        """Whether the switch, not only the database, has let go of what was removed `confirmed`."""
        top = self._top()
        return top is not None and top.cur_cfg >= top.next_cfg

    # The transaction: changed rows gather in it until `run` sends it; then no other can begin
    # before it has ended.

    def _begin(self) -> bool:
        if not self.connected or self._sent or self._retry_at is not None:
            return False
        if self._transaction is None:
            self._transaction = ovs.db.idl.Transaction(self._idl)
            self._transaction.add_comment("virtkit")
            self._changes = 0
        return True

    def _end(self) -> bool:
        """Whether nothing had to be written, now or by what gathered before."""
        if self._changes == 0:
            self._transaction.abort()
            self._transaction = None
        return self._transaction is None

    def _ask_to_apply(self) -> None:
        """Have the switch say in `cur_cfg` when it has got so far; see ovs-vswitchd.conf.db(5)."""
        top = self._top()
        top.verify("next_cfg")
        top.next_cfg = top.next_cfg + 1

    def _refuse(self, reason: str) -> bool:
        self._end()
        self.failure = reason
        return False

    def _step_transaction(self) -> bool:
        """Send what has gathered, or see what has become of it; True at its end."""
        if self._transaction is None:
            return False
        self._sent = True
        status = self._transaction.commit()
        if status == self._transaction.INCOMPLETE:
            return False
        if status == self._transaction.SUCCESS:
            self.failure = None
        elif status != self._transaction.TRY_AGAIN:
            # The IDL leaves out values that its schema does not allow, and finds nothing to send.
            unchanged = status == self._transaction.UNCHANGED
            self.failure = "a value is out of range" if unchanged else self._transaction.get_error()
            self._retry_at = time.monotonic() + _PAUSE_AFTER_REFUSAL_S
        self._transaction, self._sent = None, False
        return True

    def _mind_silence(self) -> None:
        """Connect anew if an answer does not come, although the database is alive."""
        if self.connected and self._transaction is None:
            self._waiting_since = None
        elif self._waiting_since is None or not self._idl._session.is_connected():
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > _ANSWER_S:
            self._waiting_since = None
            self._idl.force_reconnect()

    def _ensure_tunnel(self, name: str, type_: str, ip: IPv4Address | None) -> Any:
        """Mend the tunnel port of this name, or return a new one to be put on the bridge."""
        options = {"remote_ip": "flow", "key": "flow"}
        if ip is not None:
            options["local_ip"] = str(ip)
        interface = self._find_interface(name)
        if interface is None:
            return self._insert_port(name, type_, options=options)
        self._set(interface, "type", type_)
        self._set(interface, "options", options)
        return None

    def _set(self, row: Any, column: str, value: Any) -> None:
        # A row that this transaction inserts has only the columns that were set.
        found = getattr(row, column, None)
        # An optional value reads as a list of none or one.
        if (found[:1] if isinstance(found, list) else [found]) != [value]:
            setattr(row, column, value)
            self._changes += 1

    def _set_keys(self, row: Any, wanted: Mapping[str, str]) -> None:
        found = row.external_ids
        for key, value in wanted.items():
            if found.get(key) != value:
                row.setkey("external_ids", key, value)
                self._changes += 1

    def _insert(self, table: str, **columns: Any) -> Any:
        row = self._transaction.insert(self._idl.tables[table])
        for column, value in columns.items():
            setattr(row, column, value)
        self._changes += 1
        self._note(table, row.uuid)
        return row

    def _insert_port(self, name: str, type_: str, **columns: Any) -> Any:
        interface = self._insert("Interface", name=name, type=type_, **columns)
        return self._insert("Port", name=name, interfaces=[interface])

    # The replica

    def _forget(self) -> None:
        self._records: dict[UUID, Interface] = {}
        self._members: dict[UUID, list[Any]] = {}
        self._names: dict[str, UUID] = {}
        self._port_names: dict[str, UUID] = {}
        self._interfaces = None

    def _note(self, table: str, id_: UUID) -> None:
        """A row has appeared, changed or gone."""
        self._records.pop(id_, None)
        self._members.pop(id_, None)
        row = self._idl.tables[table].rows.get(id_)
        if table == "Interface" and row is not None:
            self._names[row.name] = id_
        if table == "Port" and row is not None:
            self._port_names[row.name] = id_

    def _top(self) -> Any:
        return next(iter(self._idl.tables["Open_vSwitch"].rows.values()), None)

    def _find_bridge(self, name: str) -> Any:
        rows = self._idl.tables["Bridge"].rows.values()
        return next((row for row in rows if row.name == name), None)

    def _find_interface(self, name: str) -> Any:
        """The row of this name, on whichever bridge; or None."""
        id_ = self._names.get(name)
        return None if id_ is None else self._idl.tables["Interface"].rows.get(id_)

    def _interfaces_of(self, port: Any) -> list[Any]:
        if port.uuid not in self._members:
            self._members[port.uuid] = port.interfaces
        return self._members[port.uuid]

    def _record(self, row: Any) -> Interface:
        if row.uuid not in self._records:
            self._records[row.uuid] = decode(row)
        return self._records[row.uuid]
