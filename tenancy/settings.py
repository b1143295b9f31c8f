"""Where this machine's fabric database, host name and Ceph are: option, environment, file, default.

Read once, at the edge; the rest of the code is handed values.
"""

import json
import os
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tenancy.errors import InvalidRequest
from tenancy.names import validate_remotes

DEFAULT_FILE = Path("/etc/virtkit/virtkit.toml")
DEFAULT_DB = "unix:/run/virtkit/fabric.sock"


class HostSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[host]`: who this machine is in the fabric, and where its tunnels end."""

    name: str = msgspec.field(default_factory=socket.gethostname)
    tunnel_ip: str | None = None
    crush_host: str | None = None


class CephSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[ceph]`: the cluster, the user that virtkit itself is there, and the deadline of commands.

    `timeout_s`: a command of `svctl` in which nothing gets on for so long ends with an error.
    `clone_depth`: how many parents a clone may have, one behind the other.
    """

    conf: str = "/etc/ceph/ceph.conf"
    user: str = "admin"
    timeout_s: float = 120.0
    clone_depth: int = 4


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[tls]`: where key.pem, cert.pem and ca.pem are, for a database named `ssl:`."""

    directory: str = "/etc/virtkit/tls"


class GoldenSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[golden]`: where this host keeps chunks of golden images, and how many.

    A directory on a tmpfs is RAM, one on an SSD survives a restart. `plugin` is nbdkit's name or
    the path of the block server.
    """

    directory: str = "/run/virtkit/golden/chunks"
    limit: str = "2GiB"
    plugin: str | None = None


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole of virtkit.toml."""

    db: str = DEFAULT_DB
    host: HostSettings = msgspec.field(default_factory=HostSettings)
    ceph: CephSettings = msgspec.field(default_factory=CephSettings)
    tls: TlsSettings = msgspec.field(default_factory=TlsSettings)
    golden: GoldenSettings = msgspec.field(default_factory=GoldenSettings)


def load(
    *,
    db: str | None = None,
    file: Path = DEFAULT_FILE,
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings in force. `db` is the --db option; VIRTKIT_DB comes next, then the file.

    VIRTKIT_TLS names the directory of certificates before the file does.
    """
    try:
        text = file.read_text()
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise InvalidRequest(
            f"{file} can't be read ({error.strerror}). Make it a file that you may read, or "
            "remove it."
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file}: {error}. Write it in UTF-8.") from error
    try:
        settings = msgspec.convert(tomllib.loads(text), Settings)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(f"{file}: {error}. Correct the file.") from error
    chosen = db or environment.get("VIRTKIT_DB") or settings.db
    certificates = environment.get("VIRTKIT_TLS")
    secured = TlsSettings(directory=certificates) if certificates else settings.tls
    return msgspec.structs.replace(settings, db=validate_remotes(chosen), tls=secured)


def as_toml(settings: Settings) -> str:
    """virtkit.toml with these settings, without those that are as they are by default."""
    lines = [f"db = {_value(settings.db)}"]
    for section in msgspec.structs.fields(settings):
        chosen = getattr(settings, section.name)
        if not isinstance(chosen, msgspec.Struct):
            continue
        values = msgspec.structs.asdict(chosen)
        default = msgspec.structs.asdict(type(chosen)())
        # The name is written in any case: what the system calls itself may change.
        said = {key: value for key, value in values.items() if value != default[key]}
        if section.name == "host":
            said = {"name": values["name"], **said}
        if said:
            lines += ["", f"[{section.name}]"]
            lines += [f"{key} = {_value(value)}" for key, value in said.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    # Strings of TOML are those of JSON, but that they take no bare DEL (toml.io, "String").
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
