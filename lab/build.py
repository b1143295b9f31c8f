"""Making a lab: every step of a plan, at the same time as all that it does not wait for.

The order is in the futures: a host waits for the monitor before its OSD starts, and for the
database before its agent does; nothing else waits for another host.
"""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from lab import ceph, ceph_conf, fabric, inventory, latency, underlay
from lab.host import CTL, Host, boot
from lab.state import Plan, Record

Report = Callable[[str], None]
"""Is told what has been reached, in a few words."""

_MEMBER_TIMEOUT_S = 180.0


def build(record: Record, plan: Plan, lock: int, report: Report) -> None:
    """Make all of the plan, and return when every daemon is ready.

    If a step fails, the lab's processes are ended, so that no other step goes on, and the
    error is that of the step.
    """
    began = time.monotonic()
    boot(record, CTL, within=None, lock=lock)
    ctl = inventory.host(record, plan, CTL)

    def timed(text: str) -> None:
        report(f"{time.monotonic() - began:5.1f} s  {text}")

    # A host needs a thread for itself and one for its OSD's disk.
    with ThreadPoolExecutor(max_workers=2 * plan.hosts + 4) as pool:
        try:
            fabric.write_settings(ctl, secured=plan.tls, members=plan.member_names)
            underlay.write_names(ctl, plan.host_names)
            underlay.create_switch(ctl, plan.underlay_mtu)
            _Builder(record, plan, ctl, pool, timed).run()
        except BaseException:
            ctl.process.kill()
            raise


class _Builder:
    def __init__(
        self, record: Record, plan: Plan, ctl: Host, pool: ThreadPoolExecutor, report: Report
    ) -> None:
        self._record = record
        self._plan = plan
        self._ctl = ctl
        self._pool = pool
        self._report = report
        self._members: dict[str, Future[None]] = {name: Future() for name in plan.member_names}
        self._keys = ceph_conf.Keys.new(plan.hosts)
        self._conf = ceph_conf.configuration(
            fsid=str(uuid.uuid4()),
            mon_address=underlay.CTL_ADDRESS,
            network=str(underlay.NETWORK),
            hosts=plan.hosts,
        )

    def run(self) -> None:
        submit = self._pool.submit
        database = submit(self._start_database)
        monitor = submit(self._start_monitor) if self._plan.ceph else None
        steps = [submit(self._make_host, name, database, monitor) for name in self._plan.host_names]
        if monitor is not None:
            steps.append(submit(self._complete_ceph, monitor))
        pending: set[Future[None]] = {database, *steps}
        done, _ = wait(pending, return_when=FIRST_EXCEPTION)
        for step in done:
            step.result()

    def _start_database(self) -> None:
        if self._members:
            for member in self._members.values():
                member.result(_MEMBER_TIMEOUT_S)
            return
        if self._plan.tls:
            fabric.certify(self._ctl, self._ctl)
        self._ctl.start("fabric")
        self._report("ctl: fabric database")

    def _start_member(self, host: Host) -> None:
        own, first = self._members[host.name], next(iter(self._members.values()))
        try:
            if own is not first:
                first.result(_MEMBER_TIMEOUT_S)
            host.start("fabric")
            fabric.settle(host)
            own.set_result(None)
        except BaseException as error:
            # Others wait for it.
            own.set_exception(error)
            raise
        self._report(f"{host.name}: member of the fabric database")

    def _start_monitor(self) -> None:
        ceph.create_monitor(self._ctl, self._plan.host_names, self._conf, self._keys)
        self._ctl.start(ceph.MONITOR)
        self._report("ctl: Ceph monitor")

    def _complete_ceph(self, monitor: Future[None]) -> None:
        monitor.result()
        self._ctl.start(ceph.MANAGER)
        self._report("ctl: Ceph manager")
        ceph.wait_until_healthy(self._ctl, self._plan.hosts)
        self._report("ctl: Ceph cluster complete")

    def _make_host(self, name: str, database: Future[None], monitor: Future[None] | None) -> None:
        boot(self._record, name, within=self._ctl, lock=None)
        host = inventory.host(self._record, self._plan, name)
        fabric.write_settings(host, secured=self._plan.tls, members=self._plan.member_names)
        if self._plan.tls:
            fabric.certify(self._ctl, host)
        disk = None
        if monitor is not None:
            disk = self._pool.submit(ceph.create_osd, host, self._conf, self._keys)
        underlay.write_names(host, self._plan.host_names)
        underlay.connect(
            self._ctl, host, self._plan.underlay_mtu, relayed=self._plan.latency_us > 0
        )
        if self._plan.latency_us:
            self._ctl.start(latency.relay_name(name))
        host.start("ovsdb-server")
        host.start("ovs-vswitchd")
        self._report(f"{name}: Open vSwitch")
        if name in self._members:
            self._start_member(host)
        if monitor is not None and disk is not None:
            disk.result()
            monitor.result()
            host.start(ceph.OSD)
            self._report(f"{name}: Ceph OSD")
        if self._plan.agents:
            database.result()
            host.start("agent")
            self._report(f"{name}: agent")
