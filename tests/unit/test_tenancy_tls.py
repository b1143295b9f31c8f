"""The fabric database over TLS: who gets in, and what a stolen host key can't do."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ovs.poller
import pytest

from netvirt.rows import AGENT_COLUMNS
from netvirt.service import hosts, networks, ports
from netvirt.service.networks import NetworkRequest
from netvirt.service.ports import PortRequest
from tenancy import service
from tenancy.backends import embedded, pki, tls
from tenancy.backends.codec import DATABASE
from tenancy.backends.fabric import Fabric
from tenancy.backends.watch import FabricWatch, Insert
from tenancy.errors import BackendUnavailable, InvalidRequest, Refused
from tenancy.pki import Kind


class Realm:
    """A database that hosts reach with certificates, and operators by its socket."""

    def __init__(self, directory: Path) -> None:
        self.pki = directory / "pki"
        pki.init(self.pki)
        self.directory = directory
        self.port = _free_port()
        self.run = directory / "run"

    @property
    def remote(self) -> str:
        return f"ssl:127.0.0.1:{self.port}"

    @property
    def own(self) -> str:
        return f"unix:{self.run}/fabric.sock"

    def issue(self, kind: Kind, name: str) -> Path:
        return pki.issue(self.pki, kind, name, days=30)

    def start(self) -> None:
        embedded.start(
            self.directory / "fabric.db",
            run_dir=self.run,
            listen=[f"pssl:{self.port}:127.0.0.1"],
            certificates=self.issue(Kind.SERVER, "db1") / "hosts",
        )

    def as_host(self, name: str) -> Fabric:
        tls.use(self.issue(Kind.HOST, name), self.remote)
        return Fabric.connect(self.remote, timeout_s=10)


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    realm = Realm(tmp_path_factory.mktemp("tls"))
    realm.start()
    yield realm
    embedded.stop(realm.run)


@pytest.fixture
def operator(realm: Realm) -> Iterator[Fabric]:
    with Fabric.connect(realm.own) as fabric:
        yield fabric


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def attempt(fabric: Fabric, *operations: dict[str, Any]) -> list[Any]:
    """What the server answers to operations written by hand, as whoever has the key can."""
    answers: list[Any] = fabric._rpc.call("transact", [DATABASE, *operations])
    return answers


def everything(fabric: Fabric) -> dict[str, list[str]]:
    """All rows of the tables that say who is who and what belongs to whom."""
    tables = ("Tenant", "Network", "Subnet", "Port", "Address", "Binding", "Attachment", "Host")
    tables += ("Image", "StoragePool", "StorageNamespace", "RBAC_Role", "RBAC_Permission")
    found = fabric.select_many([(table, {}) for table in tables])
    return {
        table: sorted(repr((row.id, sorted(row.columns.items(), key=str))) for row in rows)
        for table, rows in zip(tables, found, strict=True)
    }


def test_a_stolen_host_key_can_do_nothing_to_others(realm: Realm, operator: Fabric) -> None:
    service.create(operator, "red")
    networks.create(operator, "red", NetworkRequest(name="front", cidrs=["10.1.0.0/24"]))
    for host in ("h1", "h2"):
        hosts.create(operator, host)
    victim = ports.create(operator, "red", "front", PortRequest(name="web", host="h2"))
    transaction = operator.transaction()
    bound = {"port": victim.port.id, "network": victim.network.id}
    transaction.insert("Binding", {**bound, "host": "h2", "claim": 1, "active": True})
    transaction.commit()
    before = everything(operator)
    theirs = [["host", "==", "h2"]]
    port = [["_uuid", "==", ["uuid", str(victim.port.id)]]]

    with realm.as_host("h1") as stolen:
        attempts: dict[str, dict[str, Any]] = {
            "a tenant": {"op": "insert", "table": "Tenant", "row": {"name": "evil"}},
            "a tenant gone": {"op": "delete", "table": "Tenant", "where": []},
            "more quota": {
                "op": "update",
                "table": "Quota",
                "where": [],
                "row": {"limit": 1_000_000},
            },
            "a segment": {
                "op": "mutate",
                "table": "Network",
                "where": [],
                "mutations": [["segment_id", "+=", 1]],
            },
            "networks gone": {"op": "delete", "table": "Network", "where": []},
            "another's port": {
                "op": "update",
                "table": "Port",
                "where": port,
                "row": {"host": "h1"},
            },
            "another's port gone": {"op": "delete", "table": "Port", "where": port},
            "another's MAC": {
                "op": "update",
                "table": "Port",
                "where": port,
                "row": {"mac": "02:00:00:00:00:01"},
            },
            "another's addresses": {"op": "delete", "table": "Address", "where": theirs},
            "another's binding": {"op": "delete", "table": "Binding", "where": theirs},
            "another's claim": {
                "op": "update",
                "table": "Binding",
                "where": theirs,
                "row": {"active": False},
            },
            "another's claim made": {
                "op": "insert",
                "table": "Binding",
                "row": {
                    "port": ["uuid", str(victim.port.id)],
                    "network": ["uuid", str(victim.network.id)],
                    "host": "h3",
                    "claim": 9,
                    "active": True,
                },
            },
            "another host": {"op": "insert", "table": "Host", "row": {"name": "h3"}},
            "another's endpoint": {
                "op": "update",
                "table": "Host",
                "where": [["name", "==", "h2"]],
                "row": {"tunnel_ip": "10.9.9.9"},
            },
            "itself renamed": {
                "op": "update",
                "table": "Host",
                "where": [["name", "==", "h1"]],
                "row": {"name": "h2"},
            },
            "segments": {
                "op": "update",
                "table": "Fabric",
                "where": [],
                "row": {"next_segment": 1},
            },
            "rights": {
                "op": "update",
                "table": "RBAC_Permission",
                "where": [],
                "row": {"insert_delete": True},
            },
            "a door": {
                "op": "update",
                "table": "Connection",
                "where": [],
                "row": {"role": ""},
            },
            "a pool": {
                "op": "insert",
                "table": "StoragePool",
                "row": {"name": "evil", "state": "ready"},
            },
        }
        for what, operation in attempts.items():
            answer = attempt(stolen, operation)
            assert [one["error"] for one in answer if one] == ["permission error"], (what, answer)
        with pytest.raises(Refused, match="does not let this machine's certificate"):
            service.create(stolen, "evil")

        # Its own name on a claim to what only another may hold: written, and passed over.
        claim = {**attempts["another's claim made"]["row"], "host": "h1"}
        [made] = attempt(stolen, {"op": "insert", "table": "Binding", "row": claim})
        held = ports.get(operator, "red", "front", "web").binding
        assert held is not None and held.host == "h2"
        # So is an address that it gives to that port.
        row = {
            "network": claim["network"],
            "subnet": ["uuid", str(victim.network.subnets[0].id)],
            "port": claim["port"],
            "ip": "10.1.0.99",
            "host": "h1",
        }
        [given] = attempt(stolen, {"op": "insert", "table": "Address", "row": row})
        assert ports.get(operator, "red", "front", "web").port == victim.port
        for table, answer in (("Binding", made), ("Address", given)):
            where = [["_uuid", "==", answer["uuid"]]]
            assert attempt(stolen, {"op": "delete", "table": table, "where": where}) == [
                {"count": 1}
            ]
    assert everything(operator) == before


def test_a_host_writes_what_is_its_own(realm: Realm, operator: Fabric) -> None:
    with realm.as_host("h7") as own:
        [made] = attempt(own, {"op": "insert", "table": "Host", "row": {"name": "h7"}})
        where = [["_uuid", "==", made["uuid"]]]
        row = {"tunnel_ip": "10.0.0.7", "cfg": 3, "version": "1"}
        assert attempt(own, {"op": "update", "table": "Host", "where": where, "row": row}) == [
            {"count": 1}
        ]
        asked = own.transaction()
        asked.request_acknowledgement(operator.select("Network")[0].id)
        asked.commit()

    assert hosts.get(operator, "h7").cfg == 3
    hosts.delete(operator, "h7", now_s=int(time.time()))


def test_nobody_gets_in_with_the_wrong_certificate(realm: Realm, tmp_path: Path) -> None:
    stranger = tmp_path / "pki"
    pki.init(stranger)
    wrong = {
        "an operator's": realm.issue(Kind.OPERATOR, "ann"),
        "a server's": realm.issue(Kind.SERVER, "other") / "hosts",
        "a stranger's": pki.issue(stranger, Kind.HOST, "h1", days=30),
    }
    for what, bundle in wrong.items():
        tls.use(bundle, realm.remote)
        with pytest.raises(BackendUnavailable, match=r"does not answer|refuses|lost"):
            with Fabric.connect(realm.remote, timeout_s=5) as fabric:
                fabric.top()
            pytest.fail(f"{what} certificate let it in")


def test_a_host_is_not_taken_in_by_another_hosts_certificate(realm: Realm, tmp_path: Path) -> None:
    """Whoever has a host's key must not be able to pose as the database."""
    bundle = realm.issue(Kind.HOST, "h1")
    port = _free_port()
    argv = embedded.argv(tmp_path / "false.db", [f"pssl:{port}:127.0.0.1"], tmp_path)
    argv[1:1] = tls.server_options(bundle)
    embedded.prepare(tmp_path / "false.db")
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *argv], stderr=subprocess.DEVNULL
    ) as false:
        try:
            remote = f"ssl:127.0.0.1:{port}"
            tls.use(realm.issue(Kind.HOST, "h2"), remote)
            deadline = time.monotonic() + 10
            while True:
                with pytest.raises(BackendUnavailable) as refused:
                    Fabric.connect(remote, timeout_s=5)
                if "Connection refused" not in str(refused.value):
                    break
                assert time.monotonic() < deadline
            assert "unsuitable certificate purpose" in str(refused.value)
        finally:
            false.kill()


def test_keys_that_others_may_read_are_not_used(realm: Realm, tmp_path: Path) -> None:
    bundle = tmp_path / "tls"
    shutil.copytree(realm.issue(Kind.HOST, "h1"), bundle)
    (bundle / "key.pem").chmod(0o640)
    with pytest.raises(InvalidRequest, match="chmod 600"):
        tls.use(bundle, realm.remote)
    (bundle / "key.pem").unlink()
    with pytest.raises(InvalidRequest, match=r"key\.pem can't be read"):
        tls.use(bundle, realm.remote)
    (bundle / "key.pem").write_text("garbage")
    (bundle / "key.pem").chmod(0o600)
    with pytest.raises(InvalidRequest, match="can't be used"):
        tls.use(bundle, realm.remote)
    # Who needs none is asked for none.
    tls.use(tmp_path / "nowhere", "unix:/run/virtkit/fabric.sock")


def test_a_watch_follows_over_tls_and_hears_why_it_may_not_write(
    realm: Realm, operator: Fabric
) -> None:
    tls.use(realm.issue(Kind.HOST, "h1"), realm.remote)
    followed = FabricWatch(realm.remote, AGENT_COLUMNS)
    followed.set_interest_in_all("Fabric")
    try:
        _run(followed, lambda: followed.settled)
        # Far more than one record of TLS carries.
        labels = {f"key-{number}": "x" * 100 for number in range(2000)}
        hosts.create(operator, "big", labels=labels)
        followed.set_interest_in_all("Host")
        _run(followed, lambda: any(row["name"] == "big" for row in followed.rows("Host")))
        [big] = [row for row in followed.rows("Host") if row["name"] == "big"]
        assert big["labels"] == labels

        followed.write([Insert("Host", {"name": "h2x"})])
        _run(followed, lambda: followed.write_refused is not None)
        assert "prohibit row insertion" in str(followed.write_refused)
    finally:
        followed.close()
        hosts.delete(operator, "big", now_s=int(time.time()))


def _run(followed: FabricWatch, until: Any) -> None:
    deadline = time.monotonic() + 20
    followed.run()
    while not until():
        assert time.monotonic() < deadline, "it did not happen"
        poller = ovs.poller.Poller()
        followed.wait(poller)
        poller.timer_wait(1000)
        poller.block()
        followed.run()


def test_operators_come_in_by_a_relay_with_all_rights(realm: Realm, operator: Fabric) -> None:
    port, run = _free_port(), realm.directory / "relay"
    run.mkdir()
    server = realm.issue(Kind.SERVER, "db1") / "operators"
    program = [str(Path(sys.executable).with_name("nvctl")), "--db", realm.own]
    program += ["db", "relay", f"--listen=pssl:{port}:127.0.0.1"]
    program += [f"--run-dir={run}", f"--certificates={server}"]
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *program], stderr=subprocess.DEVNULL
    ) as relay:
        try:
            remote = f"ssl:127.0.0.1:{port}"
            tls.use(realm.issue(Kind.OPERATOR, "ann"), remote)
            deadline = time.monotonic() + 20
            while True:
                try:
                    with Fabric.connect(remote, timeout_s=5) as ann:
                        service.create(ann, "by-ann")
                    break
                except BackendUnavailable:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            assert operator.find("Tenant", name="by-ann") is not None

            tls.use(realm.issue(Kind.HOST, "h1"), remote)
            with (
                pytest.raises(BackendUnavailable),
                Fabric.connect(remote, timeout_s=5) as stolen,
            ):
                service.create(stolen, "by-a-host")
            assert operator.find("Tenant", name="by-a-host") is None
        finally:
            relay.kill()
    service.delete(operator, "by-ann")


def test_doors_follow_what_is_asked_for_at_the_next_start(tmp_path: Path) -> None:
    file = tmp_path / "fabric.db"

    def doors() -> list[tuple[str, str]]:
        query = [DATABASE, {"op": "select", "table": "Connection", "where": []}]
        done = subprocess.run(
            ["ovsdb-tool", "query", file, json.dumps(query)],
            capture_output=True,
            text=True,
            check=True,
        )
        return sorted((row["target"], row["role"]) for row in json.loads(done.stdout)[0]["rows"])

    embedded.prepare(file, ["pssl:6640:10.0.0.1", "pssl:6640:10.0.0.2"])
    assert doors() == [("pssl:6640:10.0.0.1", "host"), ("pssl:6640:10.0.0.2", "host")]
    size = file.stat().st_size
    embedded.prepare(file, ["pssl:6640:10.0.0.2", "pssl:6640:10.0.0.1"])
    assert file.stat().st_size == size
    embedded.prepare(file)
    assert doors() == []
