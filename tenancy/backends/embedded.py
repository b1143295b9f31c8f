"""The fabric database as one `ovsdb-server` on this machine: the embedded default.

The server is Open vSwitch's own; this module only makes its file, keeps the file's schema and
roles current, and starts and stops it. If the file is that of a cluster's member, it is started
and stopped here too, but what is in it is the cluster's: see `tenancy.backends.cluster`.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tenancy import dbfile, roles
from tenancy.backends import codec, tls
from tenancy.errors import BackendUnavailable, InvalidRequest, Refused
from tenancy.pki import Authority

DEFAULT_DATABASE = Path("/var/lib/virtkit/fabric.db")
DEFAULT_RUN_DIR = Path("/run/virtkit")
DEFAULT_CERTIFICATES = tls.DEFAULT_DIRECTORY / Authority.HOSTS
OPERATORS_CERTIFICATES = tls.DEFAULT_DIRECTORY / Authority.OPERATORS
START_TIMEOUT_S = 15.0
# The server itself ignores what it does not understand.
_PASSIVE = ("ptcp:", "pssl:", "punix:")


def prepare(database: Path, doors: Sequence[str] = ()) -> None:
    """Make the database file, or convert it if its schema is another version's.

    A new file is complete, with its one Fabric row, before it gets its name; a conversion is
    ovsdb-tool's, which replaces the file at once. Killed anywhere, a second run mends it. `doors`
    are the passive remotes that hosts come in by, with the rights of `tenancy.roles`.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    schema = database.with_name(f".{database.name}.schema")
    schema.write_text(codec.schema_text())
    try:
        if not database.exists():
            fresh = database.with_name(f".{database.name}.new")
            for leftover in (fresh, lock_of(fresh)):
                leftover.unlink(missing_ok=True)
            tool("create", fresh, schema)
            tool("transact", fresh, json.dumps([codec.DATABASE, codec.FIRST_ROW]))
            fresh.rename(database)
            lock_of(fresh).unlink(missing_ok=True)
        elif tool("needs-conversion", database, schema).strip() == "yes":
            tool("convert", database, schema)
        _set_roles(database, sorted(doors))
    finally:
        schema.unlink(missing_ok=True)


def argv(
    database: Path,
    remotes: Sequence[str],
    run_dir: Path,
    certificates: Path | None = None,
    *,
    doors: bool = True,
) -> list[str]:
    """The command line of a foreground ovsdb-server that serves the database on these remotes.

    Remotes are passive, as in ovsdb(7): `punix:PATH`, `ptcp:PORT:IP`. Those of TLS are not among
    them: they are in the database itself, with the role of whoever comes in by them. Without
    `doors`, certificates are for other members alone.
    """
    secured = []
    if certificates is not None:
        table = f"db:{codec.DATABASE},Fabric,connections"
        secured = [
            *([f"--remote={table}"] if doors else []),
            *tls.server_options(certificates),
        ]
    return [
        "ovsdb-server",
        "--no-chdir",
        f"--unixctl={run_dir / 'fabric.ctl'}",
        *(f"--remote={remote}" for remote in remotes),
        *secured,
        str(database),
    ]


def start(
    database: Path = DEFAULT_DATABASE,
    *,
    run_dir: Path = DEFAULT_RUN_DIR,
    listen: Sequence[str] = (),
    certificates: Path = DEFAULT_CERTIFICATES,
) -> str:
    """Serve the database in the background, and return its unix remote.

    Does nothing if it is being served already. `listen` adds remotes such as `ptcp:6640:IP`, or
    `pssl:6640:IP` for hosts with certificates, which may then write only what is their own.
    """
    remote = f"unix:{socket_of(run_dir)}"
    if running_pid(run_dir) is not None:
        return remote
    command = _command(database, run_dir, listen, certificates)
    command[1:1] = [
        "--detach",
        "--monitor",
        f"--pidfile={_pidfile(run_dir)}",
        f"--log-file={database.with_suffix('.log')}",
        "-vconsole:off",
    ]
    # --detach returns when the server listens, or has failed.
    done = _run(command)
    if done.returncode != 0:
        raise BackendUnavailable(
            f"fabric database {database} could not be started: {_last_line(done.stderr)}. "
            f"See {database.with_suffix('.log')}."
        )
    return remote


def run(
    database: Path = DEFAULT_DATABASE,
    *,
    run_dir: Path = DEFAULT_RUN_DIR,
    listen: Sequence[str] = (),
    certificates: Path = DEFAULT_CERTIFICATES,
) -> NoReturn:
    """Become the server, in the foreground, as containers and supervisors want it."""
    _become(_command(database, run_dir, listen, certificates))


def relay(
    source: str, *, run_dir: Path, listen: Sequence[str], certificates: Path | None
) -> NoReturn:
    """Become a server that passes on what another one has and what its own clients write.

    It serves many readers in that one's place (ovsdb(7), "Relay"); what it writes there it writes
    as itself. So one that reaches a database by its unix socket, and is reached with operators'
    certificates only, is the operators' door.
    """
    check_passive(listen)
    if certificates is not None:
        tls.check(certificates)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendUnavailable(
            f"{run_dir} can't be written ({error.strerror}). Run as root, or name another place "
            "with --run-dir."
        ) from error
    _become(
        [
            "ovsdb-server",
            "--no-chdir",
            f"--unixctl={run_dir / 'relay.ctl'}",
            *(f"--remote={remote}" for remote in listen),
            *(tls.server_options(certificates) if certificates is not None else ()),
            f"relay:{codec.DATABASE}:{source}",
        ]
    )


def stop(run_dir: Path = DEFAULT_RUN_DIR) -> bool:
    """End the server that `start` began; False if there was none."""
    pid = running_pid(run_dir)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + START_TIMEOUT_S
    while running_pid(run_dir) == pid:
        if time.monotonic() > deadline:
            raise BackendUnavailable(f"fabric database (process {pid}) does not end. Kill it.")
        time.sleep(0.02)
    return True


def running_pid(run_dir: Path = DEFAULT_RUN_DIR) -> int | None:
    """The process that serves the database here, or None."""
    try:
        pid = int(_pidfile(run_dir).read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if command.endswith(b"ovsdb-server") else None


def _command(database: Path, run_dir: Path, listen: Sequence[str], certificates: Path) -> list[str]:
    """The server's command line, with everything in place for it."""
    check_passive(listen)
    doors = doors_of(listen)
    clustered = is_clustered(database)
    secured = bool(doors) or (clustered and local_address(database).startswith("ssl:"))
    if secured:
        tls.check(certificates)
    _prepare(database, run_dir, None if clustered else doors)
    plain = [remote for remote in listen if remote not in doors]
    remotes = [f"punix:{socket_of(run_dir)}", *plain]
    return argv(database, remotes, run_dir, certificates if secured else None, doors=bool(doors))


def doors_of(listen: Sequence[str]) -> list[str]:
    """Those remotes that are in the database, with a role."""
    return [remote for remote in listen if remote.startswith("pssl:")]


def is_clustered(database: Path) -> bool:
    """Whether the file is that of a cluster's member."""
    return file_model(database) == dbfile.CLUSTER


def file_model(database: Path) -> str | None:
    """What kind of database a file is, see `dbfile.model`; None if there is none."""
    try:
        with database.open("rb") as file:
            return dbfile.model(file.read(100))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackendUnavailable(
            f"fabric database {database} can't be read ({error.strerror}). Run as root, or name "
            "another with --database."
        ) from error


def local_address(database: Path) -> str:
    """Where a member speaks Raft, by its file."""
    return tool("db-local-address", database).strip()


def _become(command: list[str]) -> NoReturn:
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        raise _not_installed(command[0]) from error


def _set_roles(database: Path, doors: Sequence[str]) -> None:
    """Have the file say who may write what, before anybody can."""
    query = [
        codec.DATABASE,
        {"op": "select", "table": "Fabric", "where": [], "columns": ["settings"]},
        {"op": "select", "table": "Connection", "where": [], "columns": ["target"]},
    ]
    fabric, connections = json.loads(tool("query", database, json.dumps(query)))
    stored = dict(fabric["rows"][0]["settings"][1]).get(roles.STORED) if fabric["rows"] else None
    found = sorted(row["target"] for row in connections["rows"])
    if stored == roles.stored_as() and found == list(doors):
        return
    answer = tool("transact", database, json.dumps([codec.DATABASE, *roles.operations(doors)]))
    refused = [one for one in json.loads(answer) if one and "error" in one]
    if refused:
        raise BackendUnavailable(
            f"fabric database {database} does not take its roles ({refused[0]['error']}: "
            f"{refused[0].get('details')}). Restore it from a copy."
        )


def check_passive(listen: Sequence[str]) -> None:
    """Raise InvalidRequest unless a server can listen on all of these."""
    for passive in listen:
        if not passive.startswith(_PASSIVE):
            raise InvalidRequest(
                f"fabric database: {passive!r} is nothing to listen on. Write a passive remote "
                "such as pssl:6640:10.0.0.1 (with certificates) or ptcp:6640:10.0.0.1 (without)."
            )


def _prepare(database: Path, run_dir: Path, doors: Sequence[str] | None) -> None:
    """Have everything in place; `doors` is None for a cluster's member."""
    if left_file(database).exists() and not database.exists():
        raise Refused(
            f"fabric database {database}: this machine has left its cluster, and another fabric "
            "must not begin here by chance. Run `nvctl db join` to be a member again, or "
            f"remove {left_file(database)}."
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if doors is not None:
            prepare(database, doors)
    except OSError as error:
        raise BackendUnavailable(
            f"fabric database {database}: {error.filename} can't be written ({error.strerror}). "
            "Run as root, or name places that you may write with --database and --run-dir."
        ) from error


def left_file(database: Path) -> Path:
    """What the file of a member that has left is called."""
    return database.with_name(f"{database.name}.left")


def socket_of(run_dir: Path) -> Path:
    """The unix socket that the database is served on."""
    return run_dir / "fabric.sock"


def _pidfile(run_dir: Path) -> Path:
    return run_dir / "fabric.pid"


def lock_of(database: Path) -> Path:
    """The file that OVS locks (fcntl(2)) while it writes the database."""
    return database.with_name(f".{database.name}.~lock~")


def tool(*arguments: str | Path) -> str:
    """What ovsdb-tool prints; BackendUnavailable with its reason if it fails."""
    command = ["ovsdb-tool", *map(str, arguments)]
    done = _run(command)
    if done.returncode != 0:
        raise BackendUnavailable(
            f"fabric database: {' '.join(command[:3])} failed: {_last_line(done.stderr)}."
        )
    return done.stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S)
    except FileNotFoundError as error:
        raise _not_installed(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailable(
            f"{command[0]} does not end within {START_TIMEOUT_S:g} s. See whether its disk answers."
        ) from error


def _not_installed(program: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"{program} is not installed. Install Open vSwitch: apt-get install openvswitch-switch."
    )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason given"
