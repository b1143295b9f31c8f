"""The cluster's member that runs on this machine, spoken to by its control socket and its database.

Everything is bounded: `ovs-appctl` is given a time, and what takes longer is waited for here.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tenancy import members, roles
from tenancy.backends import codec, embedded, standing
from tenancy.backends.codec import DATABASE
from tenancy.backends.fabric import Fabric
from tenancy.backends.rpc import Rpc
from tenancy.backends.transaction import GuardFailed
from tenancy.errors import BackendUnavailable, NotFound, VirtkitError
from tenancy.members import Entry, Peer, Report

ANSWER_S = 10
# Whether somebody listens where a member speaks Raft.
REACH_S = 2.0
# How long a member that is started in the foreground is waited for.
BESIDE_S = 120.0
_POLL_S = 0.1


class NoCluster(NotFound):
    """The server has no clustered fabric: it has left, or never was a member."""


def control(run_dir: Path, *command: str) -> str:
    """What the server answers to a command of ovs-appctl(8). NoCluster if it has none."""
    path = run_dir / "fabric.ctl"
    argv = ["ovs-appctl", f"--timeout={ANSWER_S}", f"--target={path}", *command]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ANSWER_S + 5)
    except FileNotFoundError as error:
        raise BackendUnavailable(
            "ovs-appctl is not installed. Install Open vSwitch: apt-get install openvswitch-switch."
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = " ".join(done.stderr.split())
    if "unknown cluster" in said or "not a valid database" in said:
        raise NoCluster(
            f"the database served at {path} is no member of a cluster. See `nvctl db status`; "
            "`nvctl db init` makes it the first member of one."
        )
    raise BackendUnavailable(
        f"no fabric database is served here, or it does not answer at {path} ({said}). Start it "
        "with `nvctl db start`, or name its directory with --run-dir."
    )


def report(run_dir: Path) -> Report:
    """What the member here knows of its cluster."""
    return members.parse_report(control(run_dir, "cluster/status", DATABASE))


def wait_until(holds: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it held within the time; what can't be asked does not hold."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if holds():
                return True
        except NoCluster:
            raise
        except VirtkitError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)


def in_touch(run_dir: Path) -> bool:
    """Whether the member here has joined, and is in touch with a majority."""
    rpc = Rpc.connect(f"unix:{embedded.socket_of(run_dir)}", ANSWER_S)
    try:
        found = standing.ask(rpc)
        return found.connected and found.cid is not None
    finally:
        rpc.close()


def reachable(peers: Sequence[Peer]) -> frozenset[str]:
    """The server ids of those who answer calls where they speak Raft."""
    found = set()
    for peer in peers:
        host, _, port = peer.address.partition(":")[2].rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), REACH_S):
                found.add(peer.sid)
        except OSError:
            continue
    return frozenset(found)


def entries(fabric: Fabric) -> dict[str, Entry]:
    """Members by name, as the fabric has them."""
    return members.entries(fabric.top()["settings"])


def settle(run_dir: Path, *, name: str | None, doors: Sequence[str], timeout_s: float) -> bool:
    """Once the member here is in touch, have the schema converted, and its name and doors entered.

    `name` None keeps the one that it has. False if it is not in touch within the time: then
    whatever was stored before stands.
    """
    if not wait_until(lambda: in_touch(run_dir), timeout_s):
        return False
    remote = f"unix:{embedded.socket_of(run_dir)}"
    _convert(remote)
    own = report(run_dir)
    with Fabric.connect(remote) as fabric:
        known = entries(fabric)
        present = next((e for e in known.values() if e.sid == own.sid), None)
        chosen = name or (present.name if present else own.address.replace(":", "-"))
        members.check_name(known, own, chosen)
        entry = Entry(name=chosen, address=own.address, sid=own.sid, doors=tuple(sorted(doors)))
        _store(fabric, entry)
    return True


def settle_beside(run_dir: Path, *, doors: Sequence[str]) -> None:
    """`settle`, by a process of its own, while this one becomes the server."""
    if os.fork():
        return
    # The grandchild is nobody's to wait for.
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        settle(run_dir, name=None, doors=doors, timeout_s=BESIDE_S)
    except VirtkitError as error:
        print(error, file=sys.stderr)
    finally:
        os._exit(0)


def forget(fabric: Fabric, sid: str) -> None:
    """Remove a member's name and doors from the fabric, if they are there."""
    _store(fabric, None, without=sid)


def _store(fabric: Fabric, entry: Entry | None, without: str = "") -> None:
    """Have exactly the members that there are with their doors, and this version's roles."""
    while True:
        top = fabric.top()
        before = members.entries(top["settings"])
        after = {
            e.name: e
            for e in before.values()
            if e.sid != without and (entry is None or e.sid != entry.sid)
        }
        if entry is not None:
            after[entry.name] = entry
        if before == after and top["settings"].get(roles.STORED) == roles.stored_as():
            return
        doors = sorted({door for e in after.values() for door in e.doors})
        transaction = fabric.transaction()
        transaction.guard(top, "settings")
        for operation in _replace(before, after, doors):
            transaction.raw(operation)
        try:
            transaction.commit()
        except GuardFailed:
            # Another member does the same at this moment.
            continue
        return


def _replace(
    before: dict[str, Entry], after: dict[str, Entry], doors: Sequence[str]
) -> list[dict[str, object]]:
    keys = ["set", [e.key for e in before.values()]]
    stored = ["map", [[e.key, e.stored()] for e in after.values()]]
    return [
        *roles.operations(doors),
        {
            "op": "mutate",
            "table": "Fabric",
            "where": [],
            "mutations": [["settings", "delete", keys], ["settings", "insert", stored]],
        },
    ]


def _convert(remote: str) -> None:
    """Have the whole cluster take this version's schema, if it has another's; rows stay."""
    needed = _client("needs-conversion", remote)
    if needed.strip() == "yes":
        _client("convert", remote)


def _client(command: str, remote: str) -> str:
    read, write = os.pipe()
    # The schema is handed over by a pipe: no file of it has to lie anywhere.
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as sink:
        text = codec.schema_text().encode()
        argv = ["ovsdb-client", f"--timeout={3 * ANSWER_S}", command, remote, f"/dev/fd/{read}"]
        sink.write(text)
        sink.close()
        try:
            done = subprocess.run(
                argv, capture_output=True, text=True, pass_fds=[source.fileno()], timeout=60
            )
        except subprocess.TimeoutExpired as error:
            raise BackendUnavailable(
                f"fabric database {remote}: {command} does not end. See `nvctl db status`."
            ) from error
    if done.returncode:
        raise BackendUnavailable(
            f"fabric database {remote}: ovsdb-client {command} failed "
            f"({' '.join(done.stderr.split())}). See `nvctl db status`."
        )
    return done.stdout
