"""The connection to a Ceph cluster: every wait is bounded, every error is one of ours.

The timeouts given to librados calls are ignored by it (`connect(timeout=)`,
`mon_command(timeout=)`); what bounds a wait are three settings, made here once. Without them a
command against a silent monitor waits five minutes, and one against a silent OSD for ever.
"""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import rados
import rbd

from storvirt.backends import activity
from storvirt.caps import APPLICATION, READ_ONLY_TAG, TAG
from storvirt.model import ImagePath
from tenancy.errors import AlreadyExists, BackendUnavailable, NotFound, Refused

DEFAULT_TIMEOUT_S = 10
# An OSD that died is replaced by another within half a minute; only then is its silence an error.
OSD_TIMEOUT_S = 40

SILENT = "Ceph did not answer in time. See `ceph -s`; when its OSDs are up, run the same again."

_UNREACHABLE = (errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENOTCONN)


class CommandFailed(Refused):
    """Ceph refused a command. `code` is its errno, for callers that know what it means."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


# Among them may be the protocol, `v2:`, and brackets around several.
_ADDRESS = re.compile(r"((?:[0-9.]+|\[[0-9a-f:.]+\]):\d+/\d+)")


class Cluster:
    """One connection to Ceph as virtkit's own user. Get one from `connect`."""

    def __init__(
        self, handle: Any, conf: str, user: str, timeout_s: int, osd_timeout_s: int
    ) -> None:
        self._rados = handle
        self.conf = conf
        self.user = user
        self.timeout_s = timeout_s
        self.osd_timeout_s = osd_timeout_s

    @classmethod
    def connect(
        cls,
        conf: str,
        user: str,
        *,
        timeout_s: int = DEFAULT_TIMEOUT_S,
        osd_timeout_s: int = OSD_TIMEOUT_S,
    ) -> Self:
        """Connect as `client.<user>` with the configuration file `conf`.

        `timeout_s` bounds each wait for a monitor, `osd_timeout_s` each for an OSD. Raises
        BackendUnavailable if no monitor answers, or the file or the user's key is not there.
        """
        if not Path(conf).is_file():
            raise BackendUnavailable(
                f"Ceph's configuration {conf} is not there. Install it, or name another in "
                "/etc/virtkit/virtkit.toml, [ceph] conf."
            )
        try:
            handle = rados.Rados(
                name=f"client.{user}",
                conffile=conf,
                conf={
                    "client_mount_timeout": str(timeout_s),
                    "rados_mon_op_timeout": str(timeout_s),
                    "rados_osd_op_timeout": str(osd_timeout_s),
                    # Clones need no link that only virtkit's own user could write: see caps.
                    "rbd_default_clone_format": "2",
                    # librados tells the terminal about every slow monitor otherwise.
                    "log_to_stderr": "false",
                },
            )
            with activity.waiting_for("a monitor"):
                handle.connect()
        except rados.ObjectNotFound as error:
            raise BackendUnavailable(
                f"Ceph knows no key for client.{user} through {conf}. Put its keyring beside it, "
                "or name another user in /etc/virtkit/virtkit.toml, [ceph] user."
            ) from error
        except rados.Error as error:
            if error.errno is not None and abs(error.errno) not in _UNREACHABLE:
                raise BackendUnavailable(
                    f"Ceph refuses client.{user} ({_reason(error)}). Check its key and {conf}."
                ) from error
            raise BackendUnavailable(
                f"no Ceph monitor of {conf} answered within {timeout_s} s. Check that the "
                "monitors run and can be reached from here."
            ) from error
        return cls(handle, conf, user, timeout_s, osd_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rados.shutdown()

    @property
    def fsid(self) -> str:
        return str(self._rados.get_fsid())

    def own_addresses(self) -> list[str]:
        """The addresses of this client, `IP:PORT/NONCE`."""
        return _ADDRESS.findall(str(self._rados.get_addrs()))

    def command(self, prefix: str, **arguments: object) -> Any:
        """The answer of a monitor command, decoded. Raises CommandFailed."""
        return json.loads(self.raw_command(prefix, format="json", **arguments) or b"null")

    def raw_command(self, prefix: str, **arguments: object) -> bytes:
        """The answer of a monitor command as bytes. Raises CommandFailed."""
        request = json.dumps({"prefix": prefix, **arguments})
        with translated(prefix):
            code, answer, status = self._rados.mon_command(request, b"")
        if abs(code) in _UNREACHABLE:
            raise BackendUnavailable(f"Ceph's monitors did not answer `{prefix}` in time.")
        if code:
            raise CommandFailed(f"Ceph refuses `{prefix}`: {status.strip() or code}.", abs(code))
        return bytes(answer)

    def tell_monitor(self, monitor: str, prefix: str) -> Any:
        """The answer of one monitor, which others can't give for it, decoded."""
        request = json.dumps({"prefix": prefix, "format": "json"})
        with translated(f"mon.{monitor}"):
            code, answer, status = self._rados.mon_command(request, b"", target=monitor)
        if code:
            raise BackendUnavailable(
                f"mon.{monitor} does not answer `{prefix}` ({status.strip() or code})."
            )
        return json.loads(answer or b"null")

    @property
    def instance(self) -> int:
        """The number by which Ceph knows this connection."""
        return int(self._rados.get_instance_id())

    def group_query(self, group: str) -> Any:
        """What the primary OSD of a placement group says of it, at this moment."""
        request = json.dumps({"prefix": "query", "pgid": group, "format": "json"})
        with translated(f"placement group {group}"):
            code, answer, status = self._rados.pg_command(group, request, b"")
        if code:
            raise BackendUnavailable(
                f"placement group {group} does not answer ({status.strip() or code}). {SILENT}"
            )
        return json.loads(answer)

    def osd_command(self, osd: int, prefix: str, **arguments: object) -> Any:
        """The answer of an OSD to an administrative command, decoded."""
        request = json.dumps({"prefix": prefix, "format": "json", **arguments})
        with translated(f"osd.{osd}"):
            code, answer, status = self._rados.osd_command(osd, request, b"")
        if code:
            raise BackendUnavailable(f"osd.{osd} does not answer `{prefix}`: {status or code}.")
        return json.loads(answer or b"null")

    def wait_for_latest_map(self) -> None:
        """Return when this client, and so every OSD that serves it from now on, has the map that
        the monitors have now."""
        with translated("osdmap"):
            self._rados.wait_for_latest_osdmap()

    def refuse_read_only(self, context: Any) -> None:
        """Refuse to write through an I/O context whose pool tenants may only read.

        That is a pool behind a read-only cache, where what is written lands in the cache. Raises
        Refused. Read from the osdmap that this client has, without a request.
        """
        with translated(f"pool {context.name}"):
            try:
                tags = dict(context.application_metadata_list(APPLICATION))
            except rados.ObjectNotFound:
                return
        if READ_ONLY_TAG in tags and TAG not in tags:
            raise Refused(
                f"pool {context.name} is behind a read-only cache, where writes would be lost. "
                f"First: svctl tier remove {context.name}, or change it: "
                f"svctl tier set {context.name} --mode writeback."
            )

    @contextmanager
    def pool(self, pool: str, namespace: str = "") -> Iterator[Any]:
        """An I/O context of `pool` in `namespace`. Raises NotFound if the pool is missing."""
        try:
            context = self._rados.open_ioctx(pool)
        except rados.ObjectNotFound as error:
            raise NotFound(
                f"pool {pool} does not exist in Ceph. See `svctl pool list`, "
                f"or create it: svctl pool create {pool}."
            ) from error
        try:
            context.set_namespace(namespace)
            # A full pool would otherwise make writers wait without end.
            context.set_osdmap_full_try()
            yield context
        finally:
            context.close()

    @contextmanager
    def image(
        self, path: ImagePath, *, snapshot: str | None = None, read_only: bool = False
    ) -> Iterator[Any]:
        """An open image. Raises NotFound."""
        with (
            translated(f"image {path}"),
            self._pool_for_image(path, read_only=read_only) as context,
            rbd.Image(context, path.name, snapshot, read_only=read_only) as image,
        ):
            yield image

    @contextmanager
    def _pool_for_image(self, path: ImagePath, *, read_only: bool) -> Iterator[Any]:
        with self.pool(path.pool, path.namespace) as context:
            if not read_only:
                self.refuse_read_only(context)
            yield context

    def pool_name(self, pool_id: int) -> str:
        """The name of the pool with this number."""
        with translated(f"pool {pool_id}"):
            return str(self._rados.pool_reverse_lookup(pool_id))

    def object_exists(self, context: Any, name: str) -> bool:
        """Whether an object is in the pool and namespace of `context`."""
        try:
            with translated(f"object {name}"):
                context.stat(name)
        except NotFound:
            return False
        return True

    def tool(self, program: str, *arguments: str) -> list[str]:
        """The command line of one of Ceph's own programs for this cluster and user.

        It ends with the thread that starts it.
        """
        bounds = [
            f"--client-mount-timeout={self.timeout_s}",
            f"--rados-mon-op-timeout={self.timeout_s}",
            f"--rados-osd-op-timeout={self.osd_timeout_s}",
        ]
        # It must not outlive a command that is killed, or ended by its deadline.
        return [
            "setpriv",
            "--pdeathsig",
            "KILL",
            program,
            "--conf",
            self.conf,
            "--id",
            self.user,
            *bounds,
            *arguments,
        ]

    def monitors(self) -> list[tuple[str, int]]:
        """Host and port of each monitor, the newer protocol's port if there is one."""
        found = []
        for monitor in self.command("mon dump")["mons"]:
            addresses = {a["type"]: a["addr"] for a in monitor["public_addrs"]["addrvec"]}
            host, _, port = (addresses.get("v2") or addresses["v1"]).rpartition(":")
            found.append((host.strip("[]"), int(port)))
        return found


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn the exceptions of librados and librbd about `what` into virtkit's."""
    try:
        with activity.waiting_for(what):
            yield
    except (rados.ObjectNotFound, rbd.ImageNotFound) as error:
        raise NotFound(f"{what} does not exist in Ceph.") from error
    except (rados.ObjectExists, rbd.ImageExists) as error:
        raise AlreadyExists(f"{what} exists in Ceph already.") from error
    except (rados.TimedOut, rbd.Timeout) as error:
        raise BackendUnavailable(f"{what}: {SILENT}") from error
    except rbd.ImageBusy as error:
        raise Refused(f"{what} is in use.") from error
    except rbd.ImageHasSnapshots as error:
        raise Refused(f"{what} has snapshots.") from error
    except (rados.NoSpace, rbd.NoSpace, rbd.DiskQuotaExceeded) as error:
        raise Refused(
            f"{what}: the pool is full. Free some of it, or add OSDs; see `ceph df`."
        ) from error
    except (rados.Error, rbd.Error) as error:
        code = abs(getattr(error, "errno", None) or 0)
        if code in _UNREACHABLE:
            raise BackendUnavailable(f"{what}: {SILENT}") from error
        if code == errno.EDQUOT:
            raise Refused(f"{what}: the pool's own quota is used up.") from error
        raise CommandFailed(f"{what}: Ceph says {_reason(error)}.", code) from error


def _reason(error: Exception) -> str:
    code = abs(getattr(error, "errno", None) or 0)
    return os.strerror(code) if code else str(error)


def application_tags(pool: Mapping[str, Any], application: str) -> dict[str, str]:
    """The tags that a pool of `osd dump` carries for an application."""
    return dict(pool.get("application_metadata", {}).get(application, {}))
