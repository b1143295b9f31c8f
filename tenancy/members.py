"""Members of the clustered fabric database: what they report, and who may go. Pure.

A Raft cluster of n members goes on while more than half of them are in touch. Who leaves makes n
smaller, so that those who stay must be a majority of *their* number. The names of members are
written into the fabric itself (`Fabric.settings`), with the doors that each has for hosts.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tenancy.errors import InvalidRequest, NotFound, Refused

PREFIX = "member:"
# A member from which nothing was heard for so many election times counts as dead.
SILENT_ELECTIONS = 3

_FIELD = re.compile(r"^([A-Z][\w ]+): (.*)$", re.MULTILINE)
_SERVER = re.compile(r"^ +(\w+) \(\w+ at (\S+)\)(.*)$", re.MULTILINE)
_ADDRESS = re.compile(r"(?:tcp|ssl):(?:\[[0-9a-fA-F:.]+\]|[^:\[\]\s,]+):(\d{1,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One member as another sees it. `match` is the last entry of the log that it is known to
    have (the leader knows), `silent_ms` how long nothing was heard of it."""

    sid: str
    address: str
    itself: bool
    match: int | None
    silent_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`cluster/status` of ovsdb-server(8)."""

    sid: str
    address: str
    status: str
    role: str
    term: int
    leader: str
    election_ms: int
    log_end: int
    uncommitted: int
    peers: tuple[Peer, ...]

    def alive(self, peer: Peer) -> bool:
        """As far as the leader knows."""
        if peer.itself:
            return True
        return peer.silent_ms is not None and peer.silent_ms < SILENT_ELECTIONS * self.election_ms


def parse_report(text: str) -> Report:
    """What `ovs-appctl cluster/status` prints."""
    head, _, servers = text.partition("\nServers:")
    fields = dict(_FIELD.findall(head))
    log = re.findall(r"\d+", fields.get("Log", ""))
    return Report(
        sid=fields.get("Server ID", "").partition(" ")[0],
        address=fields.get("Address", ""),
        status=fields.get("Status", "").strip(),
        role=fields.get("Role", "").strip(),
        term=int(fields.get("Term", "0")),
        leader=fields.get("Leader", "unknown").strip(),
        election_ms=int(fields.get("Election timer", "1000")),
        log_end=int(log[1]) - 1 if len(log) == 2 else 0,
        uncommitted=int(fields.get("Entries not yet committed", "0")),
        peers=tuple(
            Peer(
                sid=sid,
                address=address,
                itself="(self)" in rest,
                match=_number(r"match_index=(\d+)", rest),
                silent_ms=_number(r"last msg (\d+) ms ago", rest),
            )
            for sid, address, rest in _SERVER.findall(servers)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A member as the fabric has it: its name, where it speaks Raft, the beginning of its server
    id, and its doors for hosts."""

    name: str
    address: str
    sid: str
    doors: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Where Fabric.settings has it."""
        return PREFIX + self.name

    def stored(self) -> str:
        """What Fabric.settings has there."""
        return json.dumps({"address": self.address, "sid": self.sid, "doors": list(self.doors)})


def entries(settings: Mapping[str, str]) -> dict[str, Entry]:
    """Members by name."""
    found = {}
    for key, value in settings.items():
        if key.startswith(PREFIX):
            name, row = key.removeprefix(PREFIX), json.loads(value)
            found[name] = Entry(
                name=name, address=row["address"], sid=row["sid"], doors=tuple(row["doors"])
            )
    return found


def name_of(known: Mapping[str, Entry], address: str) -> str:
    """What a member is called; its address, if it has not told its name yet."""
    return next((entry.name for entry in known.values() if entry.address == address), address)


def find(report: Report, known: Mapping[str, Entry], name: str) -> Peer:
    """The member of this name, address or server id. Raises NotFound with those there are."""
    for peer in report.peers:
        if name in (name_of(known, peer.address), peer.address, peer.sid):
            return peer
    names = ", ".join(sorted(name_of(known, peer.address) for peer in report.peers))
    raise NotFound(
        f"the fabric database has no member {name}. It has: {names}. See `nvctl db status`."
    )


def check_removal(name: str, peers: Collection[str], alive: Collection[str], going: str) -> None:
    """Raise Refused if members are no majority now, or those who stay would be none of theirs.

    `peers`, `alive` and `going` are server ids; `name` is for people.
    """
    answering, needed = len(set(peers) & set(alive)), len(set(peers)) // 2 + 1
    staying = set(peers) - {going}
    if staying and answering < needed:
        raise Refused(
            f"{name} can't go: {answering} of {len(set(peers))} members answer, and {needed} are "
            "needed to decide anything. Bring one back; or, if the others are lost for good, make "
            "a new cluster of this member's file: nvctl db init --from FILE, in another place."
        )
    if not staying:
        raise Refused(
            f"{name} is the only member of its cluster, and the fabric would go with it. Stop it "
            "with `nvctl db stop`, or have another join first."
        )
    left, needed = len(staying & set(alive)), len(staying) // 2 + 1
    if left < needed:
        raise Refused(
            f"{name} can't go: of the {len(staying)} members that stay, {left} "
            f"{'answers' if left == 1 else 'answer'}, and {needed} are needed to go on. Bring the "
            "others back first, see `nvctl db status`."
        )


def check_name(known: Mapping[str, Entry], report: Report, name: str) -> None:
    """Raise Refused if another member has this name."""
    taken = known.get(name)
    if taken and taken.sid != report.sid and any(p.sid == taken.sid for p in report.peers):
        raise Refused(
            f"this machine is a member now, but the name {name} is that of {taken.address}. Run "
            "the same command again with another --name."
        )


def check_address(text: str, what: str = "--address") -> str:
    """`text` as the place where a member speaks Raft. Raises InvalidRequest."""
    found = _ADDRESS.fullmatch(text)
    anywhere = ":0.0.0.0:" in text or ":[::]:" in text
    if not found or anywhere or int(found[1]) not in range(1, 2**16):
        raise InvalidRequest(
            f"{what} {text!r} is nothing that members can reach one another at. Write "
            "ssl:IP:PORT, or tcp:IP:PORT without TLS, of this machine and its own port: "
            "ssl:10.0.0.1:6643."
        )
    return text


def check_addresses(own: str, others: Sequence[str]) -> tuple[str, ...]:
    """The members that somebody joins, without himself. Raises InvalidRequest."""
    found = [check_address(one, "member") for text in others for one in text.split(",")]
    found = [one for one in found if one != own]
    if not found:
        raise InvalidRequest(
            "nobody to join: name at least one other member's Raft address, as "
            "`nvctl db status` shows it there."
        )
    for one in found:
        if one.partition(":")[0] != own.partition(":")[0]:
            raise InvalidRequest(
                f"member {one} and this one, {own}, don't speak alike. Write both with ssl: or "
                "both with tcp:."
            )
    return tuple(found)


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None
