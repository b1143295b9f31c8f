"""A lab: hosts on an underlay network, with Open vSwitch, the fabric and, if asked, Ceph.

`Lab.up` makes one or completes one, `Lab.open` finds one, `Lab.down` removes one. All three work
on the record (`lab.state`), so any process can do any of them.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from lab import cgroups, inventory, state, waiting
from lab.build import Report, build
from lab.capture import capture
from lab.host import CTL, Host
from lab.population import PidNamespace
from lab.state import DEFAULT_NAME, Plan, Record
from lab.underlay import BRIDGE
from tenancy.errors import NotFound, Refused

_END_TIMEOUT_S = 30.0


def _silent(_: str) -> None:
    """Report nothing."""


class Lab:
    """A lab that is up. As a context manager, it is taken down at the end."""

    def __init__(self, record: Record, plan: Plan) -> None:
        """The lab with this plan, whose processes 1 are on record."""
        self.name = plan.name
        self.plan = plan
        self.ctl = inventory.host(record, plan, CTL)
        self.hosts = tuple(inventory.host(record, plan, name) for name in plan.host_names)

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        *,
        hosts: int = 3,
        ceph: bool = False,
        agents: bool = True,
        underlay_mtu: int = 1500,
        latency_us: int = 0,
        tls: bool = False,
        db_members: int = 1,
        report: Report = _silent,
    ) -> Self:
        """The lab, made if need be.

        If it is up, what has ended in it is started again. What a killed `up` left is removed
        first. If it can't be made, nothing of it is left. Refused if it is up and not as asked.
        `latency_us` is what a frame takes from one host to another, see `lab.latency`. With
        `db_members`, so many hosts are a cluster that has the fabric database, instead of `ctl`.
        """
        plan = Plan(
            name=name,
            hosts=hosts,
            ceph=ceph,
            agents=agents,
            underlay_mtu=underlay_mtu,
            latency_us=latency_us,
            tls=tls,
            db_members=db_members,
        )
        record = Record(name)
        with record.locked() as lock:
            present = record.plan()
            if present is not None and present.phase == "up" and _is_alive(record):
                _refuse_another(present, plan)
                lab = cls(record, present)
                lab._start_what_ended(report)
                return lab
            if _remove(record):
                report("removed what an earlier lab of this name had left")
        with record.locked() as lock:
            record.write_plan(plan)
            try:
                build(record, plan, lock, report)
            except BaseException:
                _remove(record)
                raise
            finished = msgspec.structs.replace(plan, phase="up")
            record.write_plan(finished)
            return cls(record, finished)

    @classmethod
    def open(cls, name: str = DEFAULT_NAME) -> Self:
        """The lab of this name; NotFound unless it is up."""
        record = Record(name)
        plan = record.plan()
        if plan is None or plan.phase != "up" or not _is_alive(record):
            raise state.not_up(name)
        return cls(record, plan)

    @staticmethod
    def down(name: str) -> bool:
        """Remove the lab, whatever state it is in; False if there is none."""
        record = Record(name)
        if not record.exists():
            return False
        with record.locked():
            return _remove(record)

    def __enter__(self) -> Self:
        """The lab itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it down."""
        self.down(self.name)

    def host(self, name: str) -> Host:
        """A host by name, `ctl` also; NotFound with the names there are."""
        for host in (self.ctl, *self.hosts):
            if host.name == name:
                return host
        known = ", ".join((CTL, *self.plan.host_names))
        raise NotFound(f"lab {self.name} has no host {name}. It has: {known}.")

    def capture(
        self, file: Path, *, expression: str = "", host: str = CTL, interface: str = BRIDGE
    ) -> AbstractContextManager[Path]:
        """Frames between the hosts, written to a pcap file in a `with`; see `lab.capture`."""
        return capture(self.host(host), file, interface=interface, expression=expression)

    def processes(self) -> tuple[int, ...]:
        """Every process of the lab, whoever started it, by its number on the machine."""
        return PidNamespace.of(self.ctl.process.pid).living()

    def _start_what_ended(self, report: Report) -> None:
        for host in (self.ctl, *self.hosts):
            if not host.process.runs():
                raise Refused(
                    f"host {host.name} of lab {self.name} has ended. "
                    f"Take the lab down: virtlab down --name {self.name}."
                )
            for name in host.daemons:
                if not host.is_running(name):
                    host.start(name)
                    report(f"{host.name}: {name} started again")


def _is_alive(record: Record) -> bool:
    process = record.process(CTL)
    return process is not None and process.runs()


def _refuse_another(present: Plan, asked: Plan) -> None:
    if msgspec.structs.replace(present, phase=asked.phase) != asked:
        has = f"{present.hosts} hosts, {'with' if present.ceph else 'without'} Ceph, "
        has += f"{'with' if present.agents else 'without'} agents, MTU {present.underlay_mtu}"
        has += f", {present.latency_us} us between hosts" if present.latency_us else ""
        has += ", with TLS" if present.tls else ""
        has += f", {present.db_members} members of the database" if present.member_names else ""
        raise Refused(
            f"lab {present.name} is up with {has}. "
            f"Take it down first: virtlab down --name {present.name}."
        )


def _remove(record: Record) -> bool:
    """End a lab's processes and remove its files; False if there were none. Needs the lock."""
    had_something = record.plan() is not None or record.disk.exists()
    _end_processes(record)
    cgroups.remove(record.name)
    record.remove()
    return had_something


def _end_processes(record: Record) -> None:
    process = record.process(CTL)
    if process is None or not process.exists():
        return
    # Every other process of the lab is in this namespace or below, and the kernel ends them all
    # with its first one. (That one may still wait then, for somebody out here to read the exit
    # code of a command that was started in the lab.)
    namespace = PidNamespace.of(process.pid)
    process.kill()
    waiting.until(
        lambda: not namespace.living(),
        what=f"lab {record.name}: processes {namespace.living()} do not end on SIGKILL",
        timeout_s=_END_TIMEOUT_S,
    )
