"""Which daemons each host of a lab has, in the order in which they start."""

from lab import ceph, fabric, latency, ovs, state, underlay
from lab.daemon import Daemon
from lab.host import CTL, Host
from lab.state import Plan, Record


def host(record: Record, plan: Plan, name: str) -> Host:
    """The host of this name as the plan describes it; NotFound if it was never made."""
    process = record.process(name)
    if process is None:
        raise state.not_up(plan.name)
    address = underlay.CTL_ADDRESS if name == CTL else underlay.address_of(name)
    return Host(name, lab=plan.name, process=process, address=address, daemons=daemons(plan, name))


def daemons(plan: Plan, host: str) -> tuple[Daemon, ...]:
    """The daemons of one host, `ctl` included."""
    if host == CTL:
        relays = (latency.relay(name, plan.latency_us) for name in plan.host_names)
        return (
            *(relays if plan.latency_us else ()),
            *(() if plan.member_names else (fabric.database(secured=plan.tls),)),
            *(ceph.control_daemons() if plan.ceph else ()),
        )
    return (
        *ovs.daemons(plan.underlay_mtu),
        *((fabric.member(host, plan.member_names),) if host in plan.member_names else ()),
        *((ceph.osd_daemon(host),) if plan.ceph else ()),
        *((fabric.agent(),) if plan.agents else ()),
    )
