"""What a hypervisor is told, and that the key is nowhere but where it must be."""

import json
from uuid import UUID
from xml.etree import ElementTree

import pytest

from storvirt import caps, hypervisor
from storvirt.hypervisor import CacheMode, Connection, DetectZeroes, Disk
from storvirt.model import ImagePath, PoolName, TenantName

KEY = "AQDQgAFrPP0jFhAA15h7VKuurca1NncyfTu+gw=="


def connection(**changes: object) -> Connection:
    fields = {
        "fsid": "1a936bc6-6f57-4de2-828d-358608b218cb",
        "monitors": [("10.0.0.1", 3300), ("fd00::2", 3300)],
        "path": ImagePath(pool=PoolName("vms"), namespace=TenantName("red"), name="disk-1"),
        "user": "virtkit.red",
        "secret": KEY,
        "image_id": UUID("80771def-bf99-4aaa-9d0b-000000000000"),
    }
    return Connection(**fields | changes)  # type: ignore[arg-type]


def test_qemu_gets_a_block_device_and_the_keys_file_but_never_the_key() -> None:
    arguments = hypervisor.qemu_arguments(connection(), "/run/keys/red")

    secret, blockdev = json.loads(arguments[1]), json.loads(arguments[3])
    assert blockdev["key-secret"] == secret["id"]
    assert secret["file"] == "/run/keys/red"
    assert arguments[5] == f"virtio-blk-pci,drive={blockdev['node-name']}"
    assert len(blockdev["node-name"]) <= 31
    assert blockdev["server"] == [
        {"host": "10.0.0.1", "port": "3300"},
        {"host": "fd00::2", "port": "3300"},
    ]
    assert KEY not in " ".join(arguments)


@pytest.mark.parametrize(
    ("mode", "direct", "no_flush", "write_cache"),
    [
        ("none", True, False, "on"),
        ("writeback", False, False, "on"),
        ("writethrough", False, False, "off"),
        ("directsync", True, False, "off"),
        ("unsafe", False, True, "on"),
    ],
)
def test_a_cache_mode_is_what_qemu_means_by_it(
    mode: str, direct: bool, no_flush: bool, write_cache: str
) -> None:
    disk = Disk(cache=CacheMode(mode))

    arguments = hypervisor.qemu_arguments(connection(), "/k/red", disk=disk)

    assert json.loads(arguments[3])["cache"] == {"direct": direct, "no-flush": no_flush}
    assert f",write-cache={write_cache}" in arguments[-1]


def test_a_disk_is_read_only_keeps_what_is_trimmed_and_has_a_thread_if_asked() -> None:
    disk = Disk(discard=False, detect_zeroes=DetectZeroes.UNMAP, iothread=True, read_only=True)

    arguments = hypervisor.qemu_arguments(connection(), "/k/red", disk=disk)

    thread, blockdev = json.loads(arguments[3]), json.loads(arguments[5])
    assert thread["qom-type"] == "iothread" and f",iothread={thread['id']}" in arguments[-1]
    assert blockdev["read-only"] is True
    assert (blockdev["discard"], blockdev["detect-zeroes"]) == ("ignore", "unmap")


def test_libvirt_passes_the_same_arguments_on() -> None:
    element = ElementTree.fromstring(
        hypervisor.libvirt_commandline(connection(), "/k/red", pci_slot=16)
    )

    arguments = [child.get("value") for child in element]
    assert arguments == hypervisor.qemu_arguments(connection(), "/k/red", pci_slot=16)
    assert arguments[-1].endswith(",addr=0x10")  # type: ignore[union-attr]
    assert element.tag == "{http://libvirt.org/schemas/domain/qemu/1.0}commandline"
    assert KEY not in ElementTree.tostring(element).decode()


def test_caps_name_the_tenants_namespaces_and_no_blocklisting() -> None:
    found = caps.for_tenant(TenantName("red"), [PoolName("vms"), PoolName("fast")])

    assert found == {
        "mon": "allow service mon r, allow service osd r",
        "osd": "allow r class-read namespace=red tag rbd virtkit-read-only=fast, "
        "allow r class-read namespace=red tag rbd virtkit-read-only=vms, "
        "allow rwx namespace=red tag rbd virtkit=fast, "
        "allow rwx namespace=red tag rbd virtkit=vms, "
        "allow class rbd metadata_list object_prefix rbd_info",
    }
    assert caps.user(TenantName("red")) == "virtkit.red"


def test_an_encrypted_images_passphrase_is_a_file_for_qemu() -> None:
    arguments = hypervisor.qemu_arguments(connection(passphrase_file="/run/pass"), "/run/key")

    passphrase, blockdev = json.loads(arguments[3]), json.loads(arguments[5])
    assert blockdev["encrypt"] == {"format": "luks2", "key-secret": passphrase["id"]}
    assert (passphrase["file"], passphrase["format"]) == ("/run/pass", "raw")
