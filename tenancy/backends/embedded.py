"""The fabric database as one `ovsdb-server` on this machine: the embedded default.

The server is Open vSwitch's own; this module only makes its file, keeps the file's schema
current, and starts and stops it.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tenancy.backends import codec
from tenancy.errors import BackendUnavailable, InvalidRequest

DEFAULT_DATABASE = Path("/var/lib/virtkit/fabric.db")
DEFAULT_RUN_DIR = Path("/run/virtkit")
START_TIMEOUT_S = 15.0
# The server itself ignores what it does not understand.
_PASSIVE = ("ptcp:", "pssl:", "punix:")


def prepare(database: Path) -> None:
    """Make the database file, or convert it if its schema is another version's.

    A new file is complete, with its one Fabric row, before it gets its name; a conversion is
    ovsdb-tool's, which replaces the file at once. Killed anywhere, a second run mends it.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    schema = database.with_name(f".{database.name}.schema")
    schema.write_text(codec.schema_text())
    try:
        if not database.exists():
            fresh = database.with_name(f".{database.name}.new")
            for leftover in (fresh, _lock_of(fresh)):
                leftover.unlink(missing_ok=True)
            _tool("create", fresh, schema)
            _tool("transact", fresh, json.dumps([codec.DATABASE, codec.FIRST_ROW]))
            fresh.rename(database)
            _lock_of(fresh).unlink(missing_ok=True)
        elif _tool("needs-conversion", database, schema).strip() == "yes":
            _tool("convert", database, schema)
    finally:
        schema.unlink(missing_ok=True)


def argv(database: Path, remotes: Sequence[str], run_dir: Path) -> list[str]:
    """The command line of a foreground ovsdb-server that serves the database on these remotes.

    Remotes are passive, as in ovsdb(7): `punix:PATH`, `ptcp:PORT:IP`.
    """
    return [
        "ovsdb-server",
        "--no-chdir",
        f"--unixctl={run_dir / 'fabric.ctl'}",
        *(f"--remote={remote}" for remote in remotes),
        str(database),
    ]


def start(
    database: Path = DEFAULT_DATABASE,
    *,
    run_dir: Path = DEFAULT_RUN_DIR,
    listen: Sequence[str] = (),
) -> str:
    """Serve the database in the background, and return its unix remote.

    Does nothing if it is being served already. `listen` adds remotes such as `ptcp:6640:IP`.
    """
    _check_passive(listen)
    remote = f"unix:{_socket(run_dir)}"
    if running_pid(run_dir) is not None:
        return remote
    _prepare(database, run_dir)
    command = argv(database, [f"punix:{_socket(run_dir)}", *listen], run_dir)
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
) -> NoReturn:
    """Become the server, in the foreground, as containers and supervisors want it."""
    _check_passive(listen)
    _prepare(database, run_dir)
    command = argv(database, [f"punix:{_socket(run_dir)}", *listen], run_dir)
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as error:
        raise _not_installed(command[0]) from error


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


def _check_passive(listen: Sequence[str]) -> None:
    for passive in listen:
        if not passive.startswith(_PASSIVE):
            raise InvalidRequest(
                f"fabric database: {passive!r} is nothing to listen on. Write ptcp:PORT:IP, such "
                "as ptcp:6640:10.0.0.1."
            )


def _prepare(database: Path, run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        prepare(database)
    except OSError as error:
        raise BackendUnavailable(
            f"fabric database {database}: {error.filename} can't be written ({error.strerror}). "
            "Run as root, or name places that you may write with --database and --run-dir."
        ) from error


def _socket(run_dir: Path) -> Path:
    return run_dir / "fabric.sock"


def _pidfile(run_dir: Path) -> Path:
    return run_dir / "fabric.pid"


def _lock_of(database: Path) -> Path:
    return database.with_name(f".{database.name}.~lock~")


def _tool(*arguments: str | Path) -> str:
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
