"""What `nvctl doctor` does: the database, the fabric, this host and its paths, one after the other.

Whatever does not answer is a finding and is not asked again in this run; the rest is looked at
all the same. So a run takes a minute at most, however much is down.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from netvirt.agent import doctor
from netvirt.agent.doctor import Place
from netvirt.backends import host_facts
from netvirt.checks import fabric as fabric_checks
from netvirt.checks.fabric import FabricFacts
from netvirt.checks.flows import PutFlows
from netvirt.checks.hosts import ForgetAttachment, WithdrawBinding
from netvirt.service import fabric_doctor
from tenancy import database_checks
from tenancy.backends import database_facts
from tenancy.backends.fabric import Fabric
from tenancy.diagnosis import Finding, Key, Report, examine
from tenancy.errors import VirtkitError

_SWITCH_DATABASE = "/etc/openvswitch/conf.db"
# How long agents may take to follow, in the first look and in later ones.
_FOLLOW_S = (10.0, 3.0)

_ROWS = (
    fabric_checks.DeleteBinding,
    fabric_checks.DeleteHostPort,
    fabric_checks.DeleteLease,
    fabric_checks.ForgetAttachments,
    fabric_checks.Recount,
    ForgetAttachment,
    WithdrawBinding,
)


def run(place: Place, version: str, endpoint: IPv4Address | None, *, dry_run: bool) -> Report:
    """One whole check-up. `endpoint` is where this machine's tunnels end, if its settings say."""
    checkup = _Checkup(place, version, endpoint)
    results = examine(checkup.look, checkup.mend, time.sleep, dry_run=dry_run)
    return Report(results=tuple(results), unseen=tuple(checkup.unseen))


class _Checkup:
    def __init__(self, place: Place, version: str, endpoint: IPv4Address | None) -> None:
        self._place = place
        self._version = version
        self._endpoint = endpoint
        self._fabric: FabricFacts | None = None
        self._paths: list[Finding] | None = None
        # What did not answer, by what it is.
        self._silent: dict[str, list[Finding]] = {}
        self._looks = 0
        # What could not be looked at, and where it can; in order, each once.
        self.unseen: dict[str, None] = {}

    # Looking

    def look(self) -> list[Finding]:
        self._looks += 1
        found = self._asked("database", self._look_at_database)
        found += self._asked("fabric", self._look_at_fabric)
        if not self._is_host():
            self.unseen[
                f"{self._place.host} is no host of the fabric, so no switch was looked at: run "
                "`nvctl doctor` on each host for its ports, links, flows, tunnels and paths."
            ] = None
            return found
        return found + self._asked("host", self._look_at_host)

    def _asked(self, what: str, look: Callable[[], list[Finding]]) -> list[Finding]:
        if what not in self._silent:
            try:
                return look()
            except VirtkitError as error:
                self._silent[what] = [_silence(what, self._place.host, error)]
        return list(self._silent[what])

    def _look_at_database(self) -> list[Finding]:
        found = [database_facts.ask(remote) for remote in self._place.db.split(",")]
        findings = database_checks.servers(found, database_facts.own_schema())
        if any(one.failure is not None for one in found):
            silent = [one.remote for one in found if one.failure is not None]
            findings += self._asked("way", lambda: self._look_at_way_to(silent))
            self._silent["database"] = findings
        if all(one.failure is not None for one in found):
            self._silent["fabric"] = []
            self.unseen["networks, ports, addresses and hosts: the database does not answer."] = (
                None
            )
        return findings

    def _look_at_way_to(self, remotes: Sequence[str]) -> list[Finding]:
        if self._endpoint is None:
            return []
        return doctor.look_at_way_to(self._place, self._endpoint, remotes)

    def _look_at_fabric(self) -> list[Finding]:
        follow_s = _FOLLOW_S[0] if self._looks == 1 else _FOLLOW_S[1]
        with Fabric.connect(self._place.db) as fabric:
            self._fabric = fabric_doctor.observe(fabric, self._version, follow_s)
        return fabric_checks.check(self._fabric)

    def _look_at_host(self) -> list[Finding]:
        if self._fabric is None:
            self.unseen[
                f"the ports, links, flows and paths of {self._place.host}: what they should be, "
                "only the database says."
            ] = None
            return doctor.look_without_fabric(self._place)
        findings = doctor.look(self._place, self._fabric)
        without = f"the flows of {self._place.host}: they follow from its tunnels."
        self.unseen.pop(without, None)
        if doctor.hides_flows(findings):
            self.unseen[without] = None
        if self._paths is None:
            # Nothing that is mended here changes a path, and to find one narrow takes seconds.
            self._paths = self._asked("paths", self._look_at_paths)
        return findings + self._paths

    def _look_at_paths(self) -> list[Finding]:
        assert self._fabric is not None
        return doctor.look_at_paths(self._place, self._fabric)

    def _is_host(self) -> bool:
        known = self._fabric.hosts if self._fabric else ()
        return (
            (self._endpoint is not None and Path(_SWITCH_DATABASE).exists())
            or any(host.name == self._place.host for host in known)
            or host_facts.agent_answers(self._place.run_dir)
            or Path(self._place.ovs_run_dir, f"{doctor.BRIDGE}.mgmt").exists()
        )

    # Mending

    def mend(self, findings: Sequence[Finding]) -> Mapping[Key, str]:
        failures: dict[Key, str] = {}
        flows = [one for one in findings if isinstance(one.mend, PutFlows)]
        for one in findings:
            if one not in flows:
                reason = _reason(partial(self._mend_one, one.mend))
                failures |= {one.key: reason} if reason else {}
        if flows:
            wanted = [one.mend for one in flows if isinstance(one.mend, PutFlows)]
            reason = _reason(lambda: doctor.put_flows(self._place, wanted))
            failures |= {one.key: reason for one in flows} if reason else {}
        return failures

    def _mend_one(self, what: object) -> None:
        if isinstance(what, _ROWS):
            with Fabric.connect(self._place.db) as fabric:
                fabric_doctor.mend(fabric, what)
        else:
            doctor.mend(self._place, self._fabric, what)  # type: ignore[arg-type]


def _reason(act: Callable[[], None]) -> str | None:
    try:
        act()
    except VirtkitError as error:
        return str(error)
    return None


_SUBJECTS = {
    "fabric": "fabric database",
    "host": "Open vSwitch on host {host}",
    "way": "way from host {host} to its database",
    "paths": "paths from host {host}",
}


def _silence(what: str, host: str, error: VirtkitError) -> Finding:
    text, _, advice = str(error).partition(". ")
    return Finding(
        kind=f"{what}-silent",
        object=_SUBJECTS.get(what, what).format(host=host),
        found=text,
        remedy=advice.rstrip(".") or "see its log",
    )
