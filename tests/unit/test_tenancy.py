"""Tenants and quotas on a real database."""

import threading
from pathlib import Path

import pytest

from tenancy import ledger, service
from tenancy.backends import embedded
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import ReferenceViolation, UniqueViolation
from tenancy.errors import (
    AlreadyExists,
    BackendUnavailable,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    Refused,
    VirtkitError,
)
from tenancy.model import DEFAULT_QUOTA, UNLIMITED, Allowance, Resource
from tenancy.names import format_size, parse_size, rough_size, validate_name


def use(fabric: Fabric, tenant: str, **amounts: int) -> None:
    row = service.find(fabric, tenant)
    transaction = fabric.transaction()
    resources = {Resource(name): amount for name, amount in amounts.items()}
    ledger.charge(transaction, row.id, tenant, resources)
    transaction.commit()


def test_a_new_tenant_has_the_default_quota_except_where_told(fabric: Fabric) -> None:
    tenant = service.create(fabric, "red", quota={Resource.PORTS: 5, Resource.BYTES: UNLIMITED})

    expected = {**DEFAULT_QUOTA, Resource.PORTS: 5, Resource.BYTES: UNLIMITED}
    assert tenant.quota == {r: Allowance(limit=n, used=0) for r, n in expected.items()}


def test_a_tenant_exists_once(fabric: Fabric) -> None:
    service.create(fabric, "red")

    with pytest.raises(AlreadyExists, match="tenant red exists already"):
        service.create(fabric, "red")

    assert [tenant.name for tenant in service.list_all(fabric)] == ["red"]


@pytest.mark.parametrize("name", ["", "Red", "a b", "a/b", "a@b", "-a", "a-", "ä", "a" * 64, "a\n"])
def test_odd_names_are_refused_and_nothing_is_made(fabric: Fabric, name: str) -> None:
    with pytest.raises(InvalidRequest, match="name"):
        service.create(fabric, name)

    assert service.list_all(fabric) == []


def test_fifty_writers_race_for_the_last_unit_and_one_wins(
    fabric: Fabric, fabric_remote: str
) -> None:
    service.create(fabric, "red", quota={Resource.PORTS: 10})
    use(fabric, "red", ports=9)
    outcomes: list[VirtkitError | None] = []
    together = threading.Barrier(50)

    def race() -> None:
        with Fabric.connect(fabric_remote) as mine:
            together.wait()
            try:
                use(mine, "red", ports=1)
                outcomes.append(None)
            except QuotaExceeded as error:
                outcomes.append(error)

    threads = [threading.Thread(target=race) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes.count(None) == 1
    assert len(outcomes) == 50
    assert service.get(fabric, "red").quota[Resource.PORTS] == Allowance(limit=10, used=10)


def test_a_charge_that_fails_takes_the_whole_transaction_along(fabric: Fabric) -> None:
    service.create(fabric, "red", quota={Resource.IMAGES: 5, Resource.BYTES: 100})

    with pytest.raises(QuotaExceeded, match="bytes does not admit 101"):
        use(fabric, "red", images=1, bytes=101)

    assert service.get(fabric, "red").quota[Resource.IMAGES].used == 0


def test_a_limit_below_what_is_used_is_refused(fabric: Fabric) -> None:
    service.create(fabric, "red", quota={Resource.PORTS: 10})
    use(fabric, "red", ports=4)

    with pytest.raises(Refused, match="below the 4 in use"):
        service.set_quota(fabric, "red", {Resource.PORTS: 3})
    service.set_quota(fabric, "red", {Resource.PORTS: 4})

    assert service.get(fabric, "red").quota[Resource.PORTS] == Allowance(limit=4, used=4)


def test_a_tenant_that_owns_something_is_not_deleted(fabric: Fabric) -> None:
    tenant = service.create(fabric, "red")
    transaction = fabric.transaction()
    columns = {"tenant": tenant.id, "name": "n", "overlay": "gre", "segment_id": 7, "mtu": 1458}
    transaction.insert("Network", columns)
    transaction.commit()

    with pytest.raises(Refused, match=r"tenant red still has 1 network\. Delete"):
        service.delete(fabric, "red")

    assert service.get(fabric, "red").quota


def test_deleting_a_tenant_leaves_nothing(fabric: Fabric) -> None:
    service.create(fabric, "red")

    service.delete(fabric, "red")

    assert fabric.select_many([("Tenant", {}), ("Quota", {})]) == [[], []]
    with pytest.raises(NotFound, match="tenant red does not exist"):
        service.get(fabric, "red")


def test_violations_name_their_table(fabric: Fabric) -> None:
    service.create(fabric, "red")
    transaction = fabric.transaction()
    transaction.insert("Tenant", {"name": "red"})
    with pytest.raises(UniqueViolation) as unique:
        transaction.commit()
    assert (unique.value.table, unique.value.columns) == ("Tenant", ("name",))

    transaction = fabric.transaction()
    transaction.delete(service.find(fabric, "red"))
    with pytest.raises(ReferenceViolation) as reference:
        transaction.commit()
    assert reference.value.table == "Tenant"


def test_changes_that_depend_on_a_changed_row_are_decided_again(
    fabric: Fabric, fabric_remote: str
) -> None:
    service.create(fabric, "red")
    attempts = []

    def build(transaction: object) -> None:
        row = service.find(fabric, "red")
        attempts.append(row["labels"])
        if len(attempts) == 1:
            with Fabric.connect(fabric_remote) as other:
                service.set_labels(other, "red", {"by": "another"})
        transaction.guard(row, "labels")  # type: ignore[attr-defined]
        transaction.update(row, {"labels": {**row["labels"], "mine": "too"}})  # type: ignore[attr-defined]

    fabric.change(build)

    assert attempts == [{}, {"by": "another"}]
    assert service.get(fabric, "red").labels == {"by": "another", "mine": "too"}


def test_a_database_that_is_down_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        BackendUnavailable, match=r"does not answer \(.*No such file.*nvctl db start"
    ):
        Fabric.connect(f"unix:{tmp_path}/none.sock", timeout_s=0.5)


def test_a_database_that_stops_answering_is_noticed_within_the_timeout(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "silent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(BackendUnavailable, match=r"no answer within 0\.3 s"):
            Fabric.connect(f"unix:{path}", timeout_s=0.3)


def test_starting_twice_serves_the_same_data(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("db")
    remote = embedded.start(directory / "fabric.db", run_dir=directory)
    try:
        with Fabric.connect(remote) as fabric:
            service.create(fabric, "red")
        embedded.start(directory / "fabric.db", run_dir=directory)
        assert embedded.stop(directory)
        assert not embedded.stop(directory)
        embedded.start(directory / "fabric.db", run_dir=directory)
        with Fabric.connect(remote) as fabric:
            assert [tenant.name for tenant in service.list_all(fabric)] == ["red"]
    finally:
        embedded.stop(directory)


def test_a_database_killed_while_it_was_made_is_made_again(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("db")
    (directory / ".fabric.db.new").write_text("half")

    remote = embedded.start(directory / "fabric.db", run_dir=directory)

    with Fabric.connect(remote) as fabric:
        assert len(fabric.select("Fabric")) == 1
    embedded.stop(directory)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("4096", 4096), ("10GiB", 10 * 2**30), ("10g", 10 * 2**30), ("1 TB", 2**40)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size("size", text) == size_bytes


@pytest.mark.parametrize("text", ["", "ten", "-1", "1.5G", "10 GiBs"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a size"):
        parse_size("size", text)


def test_a_size_is_written_back_exactly() -> None:
    for size in (0, 1, 1024, 1536 * 2**20, 10 * 2**30, 2**40 + 1):
        assert parse_size("size", format_size(size)) == size


def test_a_usable_name_is_returned() -> None:
    assert validate_name("tenant", "red-1") == "red-1"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0"), (1023, "1023"), (1536, "1.5KiB"), (4796632, "4.6MiB"), (16 << 30, "16GiB")],
)
def test_a_measured_size_is_rounded_for_people(size_bytes: int, text: str) -> None:
    assert rough_size(size_bytes) == text


def test_a_refused_name_is_not_repeated_at_length() -> None:
    with pytest.raises(InvalidRequest) as refused:
        validate_name("tenant", "a" * 300)

    assert len(str(refused.value)) < 250
