"""What a request for images is decided on, and how often the database is asked for it."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from storvirt.model import ImageName, PoolName
from storvirt.service import admission, standing
from tenancy import service as tenants
from tenancy.backends.fabric import Fabric
from tenancy.backends.rpc import Rpc
from tenancy.errors import QuotaExceeded
from tenancy.model import Resource

GIB = 1 << 30


@pytest.fixture
def red(fabric: Fabric) -> Iterator[str]:
    """A tenant with room for two images, and namespaces in pools `ssd` and `hdd`."""
    name = f"red-{uuid4().hex[:8]}"
    tenant = tenants.create(fabric, name, quota={Resource.IMAGES: 2})
    transaction = fabric.transaction()
    pools = [
        transaction.insert("StoragePool", {"name": f"{kind}-{name}", "state": "ready"})
        for kind in ("ssd", "hdd")
    ]
    for pool in pools:
        row = {"tenant": tenant.id, "pool": pool, "state": "ready"}
        transaction.insert("StorageNamespace", row)
    transaction.commit()
    yield name


def test_a_refusal_by_quota_asks_the_database_twice(
    fabric: Fabric, red: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    call = Rpc.call
    monkeypatch.setattr(
        Rpc, "call", lambda self, *arguments: asked.append(1) or call(self, *arguments)
    )
    names = [ImageName(f"web-{number}") for number in range(3)]

    with pytest.raises(QuotaExceeded, match="quota of images does not admit 3 more"):
        admission.admit_all(fabric, red, names, GIB, pool=PoolName(f"ssd-{red}"))

    assert len(asked) == 2
    assert fabric.select("Image") == []


def test_images_go_beside_their_parent_if_the_tenant_has_a_place_there(
    fabric: Fabric, red: str
) -> None:
    names = [ImageName("web")]
    beside = standing.read(fabric, red, names, pool=None, beside=PoolName(f"hdd-{red}"))
    said = standing.read(
        fabric, red, names, pool=PoolName(f"ssd-{red}"), beside=PoolName(f"hdd-{red}")
    )

    assert beside.space.record.pool == beside.pool["name"] == f"hdd-{red}"
    assert said.space.record.pool == f"ssd-{red}"


def test_what_is_there_is_found_by_name(fabric: Fabric, red: str) -> None:
    pool = PoolName(f"ssd-{red}")
    admission.admit_all(fabric, red, [ImageName("web")], GIB, pool=pool)

    found = standing.read(fabric, red, [ImageName("web"), ImageName("db")], pool=pool)

    assert [row["name"] for row in found.images] == ["web"]
    assert {row["resource"]: row["available"] for row in found.quota}[Resource.IMAGES] == 1
