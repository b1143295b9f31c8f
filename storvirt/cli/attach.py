"""`svctl image attach`."""

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from storvirt import hypervisor
from storvirt.cli.common import TenantOption, fabric_and_ceph, say
from storvirt.hypervisor import Connection
from storvirt.model import image_name
from tenancy.cli import Format, Output, show
from tenancy.errors import InvalidRequest


class Hypervisor(StrEnum):
    QEMU = "qemu"
    LIBVIRT = "libvirt"


def attach(
    context: typer.Context,
    name: str,
    tenant: TenantOption,
    as_: Annotated[Hypervisor, typer.Option("--as", help="For whom.")] = Hypervisor.QEMU,
    write_dir: Annotated[
        Path | None,
        typer.Option(help="Write the key and XML there, mode 0600.", show_default=False),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Print what a hypervisor needs to open an image, the tenant's key included."""
    from storvirt.service import attaching

    wanted = image_name(name)
    with fabric_and_ceph(context) as (fabric, cluster):
        connection = attaching.attach(fabric, cluster, tenant, wanted)
    files = _files(connection, as_)
    where = _write(files, write_dir) if write_dir else Path()
    if output is not Format.TABLE:
        show(_document(connection, as_, files, where, written=write_dir is not None), output)
    elif as_ is Hypervisor.QEMU:
        key_file = str(where / hypervisor.key_file_name(connection))
        print(shlex.join(hypervisor.qemu_arguments(connection, key_file)))
        if not write_dir:
            say(f"The key is below; put it in {key_file} with mode 0600, or give --write-dir.")
            print(connection.secret)
    else:
        _print_libvirt(connection, where if write_dir else None)


def _files(connection: Connection, as_: Hypervisor) -> dict[str, str]:
    key = {hypervisor.key_file_name(connection): connection.secret}
    if as_ is Hypervisor.QEMU:
        return key
    return {
        **key,
        "secret.xml": hypervisor.libvirt_secret(connection),
        f"{connection.path.name}.xml": hypervisor.libvirt_disk(connection),
    }


def _print_libvirt(connection: Connection, where: Path | None) -> None:
    if where is None:
        say("Secret, value for `virsh secret-set-value`, and disk; or give --write-dir.")
        print(hypervisor.libvirt_secret(connection), end="")
        print(connection.secret)
        print(hypervisor.libvirt_disk(connection), end="")
        return
    key_file = where / hypervisor.key_file_name(connection)
    disk_file = where / f"{connection.path.name}.xml"
    print(f"virsh secret-define {where / 'secret.xml'}")
    print(f"virsh secret-set-value {connection.secret_id} --file {key_file}")
    print(f"virsh attach-device DOMAIN {disk_file} --persistent")


def _document(
    connection: Connection,
    as_: Hypervisor,
    files: dict[str, str],
    where: Path,
    *,
    written: bool,
) -> dict[str, Any]:
    key_file = str(where / hypervisor.key_file_name(connection))
    document: dict[str, Any] = {
        "image": str(connection.path),
        "pool": connection.path.pool,
        "namespace": connection.path.namespace,
        "name": connection.path.name,
        "user": connection.user,
        "key": connection.secret,
        "fsid": connection.fsid,
        "monitors": [f"{host}:{port}" for host, port in connection.monitors],
        "files": {str(where / name): text for name, text in files.items()},
        "written": written,
    }
    if as_ is Hypervisor.QEMU:
        document["qemu"] = {
            "object": hypervisor.qemu_object(connection, key_file),
            "blockdev": hypervisor.qemu_blockdev(connection),
            "arguments": hypervisor.qemu_arguments(connection, key_file),
        }
    else:
        document["libvirt"] = {
            "secret_id": str(connection.secret_id),
            "secret": hypervisor.libvirt_secret(connection),
            "secret_value": connection.secret,
            "disk": hypervisor.libvirt_disk(connection),
        }
    return document


def _write(files: dict[str, str], directory: Path) -> Path:
    directory = directory.absolute()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in files.items():
            path = directory / name
            # Made anew with its mode, so that no moment and no older mode shows the key.
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
    except OSError as error:
        raise InvalidRequest(
            f"directory {directory} cannot be written: {error.strerror}. Choose another."
        ) from error
    return directory
