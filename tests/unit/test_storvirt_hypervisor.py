"""What a hypervisor is told, and that the key is nowhere but where it must be."""

import json
from uuid import UUID
from xml.etree import ElementTree

from storvirt import caps, hypervisor
from storvirt.hypervisor import Connection
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


def test_libvirt_gets_a_secret_and_a_disk_that_refers_to_it() -> None:
    secret = ElementTree.fromstring(hypervisor.libvirt_secret(connection()))
    disk = ElementTree.fromstring(hypervisor.libvirt_disk(connection()))

    assert disk.find("auth/secret").get("uuid") == secret.findtext("uuid")  # type: ignore[union-attr]
    assert disk.find("source").get("name") == "vms/red/disk-1"  # type: ignore[union-attr]
    assert [host.get("name") for host in disk.findall("source/host")] == ["10.0.0.1", "fd00::2"]
    assert KEY not in ElementTree.tostring(secret).decode() + ElementTree.tostring(disk).decode()


def test_a_tenant_has_one_secret_in_a_cluster_whatever_the_image() -> None:
    other = ImagePath(pool=PoolName("vms"), namespace=TenantName("red"), name="disk-2")

    assert connection().secret_id == connection(path=other).secret_id
    assert connection().secret_id != connection(user="virtkit.blue").secret_id
    assert connection().secret_id != connection(fsid="another").secret_id


def test_caps_name_the_tenants_namespaces_and_no_blocklisting() -> None:
    found = caps.for_tenant(TenantName("red"), [PoolName("vms"), PoolName("fast")])

    assert found == {
        "mon": "allow service mon r, allow service osd r",
        "osd": "allow rwx namespace=red tag rbd virtkit=fast, "
        "allow rwx namespace=red tag rbd virtkit=vms, "
        "allow class rbd metadata_list object_prefix rbd_info",
    }
    assert caps.user(TenantName("red")) == "virtkit.red"
