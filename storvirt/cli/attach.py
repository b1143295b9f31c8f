"""`svctl image attach`."""

import os
import shlex
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from storvirt import hypervisor
from storvirt.cli.common import TenantOption, fabric_and_ceph, say
from storvirt.cli.golden_attach import print_attachment
from storvirt.hypervisor import CacheMode, Connection, DetectZeroes, Disk
from storvirt.model import image_name
from storvirt.placement.reading import client_location
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
        typer.Option(help="Write the key there, mode 0600.", show_default=False),
    ] = None,
    pci_slot: Annotated[
        int, typer.Option(min=1, max=31, help="For libvirt: another for each disk of a domain.")
    ] = 0x10,
    host: Annotated[
        str | None,
        typer.Option(
            help="Where the guest runs, for the read policy localize; needs --write-dir.",
            show_default=False,
        ),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="What an encrypted image opens with.", show_default=False),
    ] = None,
    cache: Annotated[
        CacheMode | None, typer.Option(help="See the documentation.", show_default="QEMU's")
    ] = None,
    discard: Annotated[bool, typer.Option(help="Give back what the guest trims.")] = True,
    detect_zeroes: Annotated[
        DetectZeroes, typer.Option(help="What becomes of zeros that are written.")
    ] = DetectZeroes.OFF,
    iothread: Annotated[bool, typer.Option("--iothread", help="A thread for this disk.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="The guest only reads.")] = False,
    direct: Annotated[
        bool, typer.Option("--direct", help="Pass by the host's cache of golden images.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Print what a hypervisor needs, the tenant's key included."""
    from storvirt.service import attaching, golden_serving

    wanted = image_name(name)
    disk = Disk(
        cache=cache,
        discard=discard,
        detect_zeroes=detect_zeroes,
        iothread=iothread,
        read_only=read_only,
    )
    if host is not None and write_dir is None:
        raise InvalidRequest("--host is told the client in a file. Say where: --write-dir.")
    with fabric_and_ceph(context) as (fabric, cluster):
        if not direct and (cached := golden_serving.attach(fabric, tenant, wanted)):
            print_attachment(cached, libvirt=as_ is Hypervisor.LIBVIRT, output=output)
            return
        connection = attaching.attach(
            fabric, cluster, tenant, wanted, passphrase_file=passphrase_file
        )
        location = None if host is None else attaching.location(fabric, cluster, host)
    where = _write(connection, write_dir) if write_dir else Path()
    if location is not None:
        connection = replace(connection, conf_file=str(_write_location(where, location)))
    key_file = str(where / hypervisor.key_file_name(connection))
    if output is not Format.TABLE:
        show(
            _document(connection, as_, key_file, pci_slot, disk)
            | {"written": write_dir is not None},
            output,
        )
        return
    if as_ is Hypervisor.QEMU:
        print(shlex.join(hypervisor.qemu_arguments(connection, key_file, disk=disk)))
    else:
        element = hypervisor.libvirt_commandline(connection, key_file, pci_slot=pci_slot, disk=disk)
        print(element, end="")
    if not write_dir:
        say(f"The key is below; put it in {key_file} with mode 0600, or give --write-dir.")
        print(connection.secret)


def _write_location(directory: Path, host: str) -> Path:
    path = directory / f"client-on-{host}.conf"
    draft = directory / f".{path.name}.{os.getpid()}"
    try:
        draft.write_text(client_location(host))
        draft.rename(path)
    except OSError as error:
        raise InvalidRequest(
            f"directory {directory} cannot be written: {error.strerror}. Choose another."
        ) from error
    return path


def _document(
    connection: Connection, as_: Hypervisor, key_file: str, pci_slot: int, disk: Disk
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "image": str(connection.path),
        "pool": connection.path.pool,
        "namespace": connection.path.namespace,
        "name": connection.path.name,
        "user": connection.user,
        "key": connection.secret,
        "key_file": key_file,
        "fsid": connection.fsid,
        "monitors": [f"{host}:{port}" for host, port in connection.monitors],
    }
    if as_ is Hypervisor.QEMU:
        document["qemu"] = {
            "object": hypervisor.qemu_object(connection, key_file),
            "blockdev": hypervisor.qemu_blockdev(connection, disk),
            "arguments": hypervisor.qemu_arguments(connection, key_file, disk=disk),
        }
        if connection.passphrase_file:
            document["qemu"]["passphrase"] = hypervisor.qemu_passphrase(connection)
    else:
        element = hypervisor.libvirt_commandline(connection, key_file, pci_slot=pci_slot, disk=disk)
        document["libvirt"] = {"commandline": element}
    return document


def _write(connection: Connection, directory: Path) -> Path:
    directory = directory.absolute()
    path = directory / hypervisor.key_file_name(connection)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Made anew with its mode, so that no moment and no older mode shows the key.
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(connection.secret)
    except OSError as error:
        raise InvalidRequest(
            f"directory {directory} cannot be written: {error.strerror}. Choose another."
        ) from error
    return directory
