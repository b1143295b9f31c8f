"""The clustered fabric database without a lab: files, refusals, what is sent twice, and TLS."""

import json
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from lab.waiting import until
from netvirt.service import networks, ports
from netvirt.service.networks import NetworkRequest
from netvirt.service.ports import PortRequest, PortState
from tenancy import clustering, dbfile, members, service
from tenancy.backends import backup, cluster, codec, embedded, member, pki, tls
from tenancy.backends.codec import DATABASE
from tenancy.backends.fabric import Fabric
from tenancy.backends.transaction import Transaction
from tenancy.errors import BackendUnavailable, InvalidRequest, NotFound, Refused
from tenancy.members import Entry, Peer, Report
from tenancy.model import Resource
from tenancy.pki import Kind

PATIENCE_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def place(directory: Path, *listen: str, certificates: Path | None = None) -> clustering.Place:
    return clustering.Place(
        database=directory / "fabric.db",
        run_dir=directory,
        listen=listen,
        certificates=certificates or directory / "none",
    )


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Directories of members, whose servers end with the test."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(tmp_path / name)
        made[-1].mkdir(exist_ok=True)
        return made[-1]

    yield make
    for directory in made:
        embedded.stop(directory)


def contents(file: Path) -> dbfile.Contents:
    return dbfile.parse(str(file), file.read_bytes())


# Files


@pytest.fixture
def saved(fabric: Fabric, tmp_path: Path) -> Path:
    """A backup of a small fabric."""
    service.create(fabric, "red", labels={"a": "b"})
    networks.create(fabric, "red", NetworkRequest(name="front", cidrs=["10.1.0.0/24"]))
    ports.create(fabric, "red", "front", PortRequest(name="web"))
    file = tmp_path / "saved.db"
    backup.save(fabric.remote, file, tls_options=[], replace=False)
    return file


def test_a_backup_is_the_owners_alone_and_is_not_replaced_unasked(
    fabric: Fabric, saved: Path
) -> None:
    before = saved.read_bytes()
    assert saved.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Refused, match="exists"):
        backup.save(fabric.remote, saved, tls_options=[], replace=False)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir() if "saved" in path.name] == [saved.name]


def test_a_backup_that_is_damaged_anywhere_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for damaged in (data[:-1], data[:-100], data.replace(b'"web"', b'"wob"'), data + b"x"):
        assert damaged != data
        saved.write_bytes(damaged)
        with pytest.raises(InvalidRequest, match="is damaged"):
            backup.read(saved)


def test_a_backup_cut_off_between_two_records_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: data.index(b"OVSDB JSON", 1)])
    with pytest.raises(InvalidRequest, match="no row of table Fabric"):
        backup.read(saved)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x00" * 1000])
def test_what_is_no_backup_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    with pytest.raises(InvalidRequest, match="is no database's file"):
        backup.read(file)


def test_a_later_versions_backup_is_refused_and_an_earlier_ones_is_taken(saved: Path) -> None:
    again = Path(f"{saved}.schema")
    schema = dict(contents(saved).schema)
    for version, column in (("9.0.0", {}), ("1.1.0", {"labels"})):
        changed = json.loads(json.dumps(schema)) | {"version": version}
        for name in column:
            del changed["tables"]["Network"]["columns"][name]
        again.write_text(json.dumps(changed))
        subprocess.run(["ovsdb-tool", "convert", saved, again], check=True, capture_output=True)
        subprocess.run(["ovsdb-tool", "compact", saved], check=True, capture_output=True)
        if version == "9.0.0":
            with pytest.raises(InvalidRequest, match=r"has schema 9\.0\.0"):
                backup.read(saved)
        else:
            assert backup.read(saved).version == schema["version"]


def test_a_restore_brings_back_every_row_and_asks_before_it_replaces(
    fabric: Fabric, saved: Path
) -> None:
    wanted = backup.read(saved)
    service.create(fabric, "blue")
    ports.delete(fabric, "red", "front", "web")

    with pytest.raises(Refused, match="is not empty"):
        backup.restore(fabric.remote, wanted, replace=False)
    assert [tenant.name for tenant in service.list_all(fabric)] == ["blue", "red"]

    backup.restore(fabric.remote, wanted, replace=True)
    again = saved.with_name("again.db")
    backup.save(fabric.remote, again, tls_options=[], replace=False)
    assert contents(again).rows == contents(saved).rows


def test_a_standalone_database_becomes_a_member_with_every_row(saved: Path) -> None:
    file, kept = saved.with_name("fabric.db"), saved.with_name("fabric.db.standalone")
    saved.rename(file)
    address = f"tcp:127.0.0.1:{free_port()}"
    cluster.make_first(file, address, source=None, election_ms=1000)
    cluster.make_first(file, address, source=None, election_ms=1000)

    back = file.with_name("back.db")
    embedded.tool("cluster-to-standalone", back, file)
    for table in ("Tenant", "Quota", "Network", "Subnet", "Port", "Address"):
        # Columns with their default may be left out of a file.
        before, after = (
            {
                row_id: {**backup.defaults(table), **row}
                for row_id, row in contents(path).rows[table].items()
            }
            for path in (kept, back)
        )
        assert before == after and before, table
    with pytest.raises(Refused, match="is a member's already"):
        cluster.make_first(file, "tcp:127.0.0.1:1", source=None, election_ms=1000)
    with pytest.raises(Refused, match="is a cluster's already"):
        cluster.make_first(file, address, source=kept, election_ms=1000)


def test_a_database_that_is_served_is_not_converted(
    directories: Callable[[str], Path],
) -> None:
    directory = directories("a")
    embedded.start(directory / "fabric.db", run_dir=directory)
    with pytest.raises(Refused, match="is being served"):
        cluster.make_first(
            directory / "fabric.db", "tcp:127.0.0.1:1", source=None, election_ms=1000
        )
    assert not embedded.is_clustered(directory / "fabric.db")


def test_who_has_a_fabric_of_his_own_joins_no_other(directories: Callable[[str], Path]) -> None:
    directory = directories("a")
    embedded.prepare(directory / "fabric.db")
    with pytest.raises(Refused, match="has a fabric of its own"):
        cluster.make_joining(directory / "fabric.db", "tcp:127.0.0.1:1", ["tcp:127.0.0.1:2"])


def test_an_earlier_schema_is_converted_in_the_running_cluster(
    directories: Callable[[str], Path],
) -> None:
    here = place(directories("a"))
    schema = json.loads(codec.schema_text()) | {"version": "1.1.0"}
    now = json.loads(codec.schema_text())["version"]
    del schema["tables"]["Pin"]
    old, base = here.run_dir / "old.schema", here.run_dir / "base.db"
    old.write_text(json.dumps(schema))
    embedded.tool("create", base, old)
    tenant = {"op": "insert", "table": "Tenant", "row": {"name": "red"}}
    embedded.tool("transact", base, json.dumps([DATABASE, codec.FIRST_ROW, tenant]))
    embedded.tool("create-cluster", here.database, base, f"tcp:127.0.0.1:{free_port()}")

    remote, in_touch = clustering.start(here)

    assert in_touch
    with Fabric.connect(remote) as fabric:
        assert fabric.schema_version() == now
        assert [tenant.name for tenant in service.list_all(fabric)] == ["red"]
        assert fabric.select("Pin") == []


# Deciding


def report(count: int) -> Report:
    sids = [f"{number:04d}" for number in range(1, count + 1)]
    return Report(
        sid=sids[0],
        address="tcp:10.0.0.1:6643",
        status="cluster member",
        role="leader",
        term=1,
        leader="self",
        election_ms=1000,
        log_end=9,
        uncommitted=0,
        peers=tuple(
            Peer(
                sid=sid,
                address=f"tcp:10.0.0.{int(sid)}:6643",
                itself=sid == sids[0],
                match=9,
                silent_ms=10,
            )
            for sid in sids
        ),
    )


@pytest.mark.parametrize(
    ("count", "alive", "may"),
    [
        (1, 1, False),
        (2, 2, True),
        (2, 1, False),
        (3, 3, True),
        (3, 2, False),
        (5, 4, True),
        (5, 3, False),
        (5, 2, False),
    ],
)
def test_who_may_leave(count: int, alive: int, may: bool) -> None:
    """The first goes; of the others, the last ones are dead."""
    sids = [peer.sid for peer in report(count).peers]
    if may:
        members.check_removal("db1", sids, sids[:alive], sids[0])
        return
    with pytest.raises(Refused, match=r"db1 (can't go|is the only member)"):
        members.check_removal("db1", sids, sids[:alive], sids[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "foo",
        "tcp:1.2.3.4",
        "tcp:1.2.3.4:0",
        "unix:/x",
        "tcp:1.2.3.4:99999",
        "pssl:1:1.2.3.4",
        "tcp:0.0.0.0:6643",
        "ssl:[::]:6643",
        "tcp:a:1,tcp:b:2",
    ],
)
def test_what_is_no_address_of_a_member(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is nothing that members can reach"):
        members.check_address(text)


def test_who_is_joined() -> None:
    own = "ssl:10.0.0.2:6643"
    assert members.check_addresses(own, ["ssl:a:1,ssl:b:1", own]) == ("ssl:a:1", "ssl:b:1")
    with pytest.raises(InvalidRequest, match="nobody to join"):
        members.check_addresses(own, [own])
    with pytest.raises(InvalidRequest, match="don't speak alike"):
        members.check_addresses(own, ["tcp:10.0.0.1:6643"])


def test_a_member_is_found_by_name_address_and_id() -> None:
    known = {"db2": Entry(name="db2", address="tcp:10.0.0.2:6643", sid="0002")}
    for name in ("db2", "tcp:10.0.0.2:6643", "0002"):
        assert members.find(report(3), known, name).sid == "0002"
    with pytest.raises(NotFound, match=r"It has: db2, tcp:10\.0\.0\.1:6643, tcp:10\.0\.0\.3"):
        members.find(report(3), known, "db9")


# What is sent twice


class Cutting:
    """A server before a server, which hands one transaction on and cuts the line in place of the
    answer, once the server has given it."""

    def __init__(self, path: Path, server: str, mark: str) -> None:
        self.cuts = 0
        self._mark = mark.encode()
        self._server = server.removeprefix("unix:")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._over.is_set():
            if select.select([self._listener], [], [], 0.05)[0]:
                client, _ = self._listener.accept()
                self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._server)
            asked = b""
            while not self._over.is_set():
                ready, _, _ = select.select([client, server], [], [], 0.05)
                if client in ready:
                    data = client.recv(1 << 20)
                    if not data:
                        return
                    asked += data
                    server.sendall(data)
                if server in ready:
                    data = server.recv(1 << 20)
                    if self._mark in asked and not self.cuts:
                        self.cuts += 1
                        return
                    asked = b""
                    client.sendall(data)


@pytest.mark.parametrize("what", ["create", "delete"])
def test_a_change_whose_answer_is_lost_is_made_once(
    fabric: Fabric, fabric_remote: str, tmp_path: Path, what: str
) -> None:
    service.create(fabric, "red")
    networks.create(fabric, "red", NetworkRequest(name="front", cidrs=["10.1.0.0/24"]))
    ports.create(fabric, "red", "front", PortRequest(name="old"))
    mark = '"table":"Port","uuid"' if what == "create" else '"op":"delete","table":"Port"'
    server = Cutting(tmp_path / "sock", fabric_remote, mark)
    try:
        with Fabric.connect(f"unix:{tmp_path / 'sock'}") as cut:
            if what == "create":
                ports.create(cut, "red", "front", PortRequest(name="new"))
            else:
                ports.delete(cut, "red", "front", "old")
    finally:
        server.close()

    assert server.cuts == 1
    expected = 2 if what == "create" else 0
    assert len(fabric.select("Port")) == expected
    assert len(fabric.select("Address")) == expected
    quota = service.get(fabric, "red").quota
    used = {resource: allowance.used for resource, allowance in quota.items()}
    assert (used[Resource.PORTS], used[Resource.ADDRESSES]) == (expected, expected)


def test_who_waits_for_a_change_whose_answer_is_lost_waits_for_the_same_hosts(
    fabric: Fabric, fabric_remote: str, tmp_path: Path
) -> None:
    service.create(fabric, "red")
    networks.create(fabric, "red", NetworkRequest(name="front", cidrs=["10.1.0.0/24"]))
    made = [
        ports.create(fabric, "red", "front", PortRequest(name=name)) for name in ("held", "new")
    ]
    _bind(fabric, made[0], "h1")
    server = Cutting(tmp_path / "sock", fabric_remote, '"table":"Binding","uuid"')
    try:
        with Fabric.connect(f"unix:{tmp_path / 'sock'}") as cut:
            changes = _bind(cut, made[1], "h2")
    finally:
        server.close()

    assert server.cuts == 1
    assert "h1" in changes.holders
    assert changes.cfg == fabric.top()["cfg"]


def _bind(fabric: Fabric, state: PortState, host: str) -> Transaction:
    transaction = fabric.transaction()
    columns = {"port": state.port.id, "network": state.network.id, "claim": 1}
    transaction.insert("Binding", {**columns, "host": host, "active": True})
    transaction.request_acknowledgement(state.network.id)
    transaction.commit()
    return transaction


# TLS


def test_members_and_hosts_come_in_with_certificates_and_hosts_have_the_rights_of_hosts(
    directories: Callable[[str], Path], tmp_path: Path
) -> None:
    """At the leader and at a member that follows."""
    authorities = tmp_path / "pki"
    pki.init(authorities)
    doors = [free_port(), free_port()]
    raft = [f"ssl:127.0.0.1:{free_port()}" for _ in doors]
    places = []
    for number, door in enumerate(doors):
        certificates = pki.issue(authorities, Kind.MEMBER, f"db{number}", days=9) / "hosts"
        here = place(
            directories(f"db{number}"),
            f"pssl:{door}:127.0.0.1",
            certificates=certificates,
        )
        places.append(here)
        if number == 0:
            clustering.init(here, name="db0", address=raft[0], source=None, election_ms=1000)
        else:
            clustering.join(here, name="db1", address=raft[1], others=[raft[0]])
    for door in doors:
        remote = f"ssl:127.0.0.1:{door}"
        tls.use(pki.issue(authorities, Kind.HOST, "h1", days=9), remote)

        def refuses(remote: str = remote) -> bool:
            with Fabric.connect(remote, timeout_s=10) as stolen:
                transaction = stolen.transaction()
                transaction.insert("Tenant", {"name": "evil"})
                try:
                    transaction.commit()
                except Refused as error:
                    return "does not let this machine's certificate" in str(error)
                return False

        # The door opens when the member has read of it.
        until(partial(_answers, remote), what="no door", timeout_s=PATIENCE_S)
        assert refuses()
        with Fabric.connect(remote, timeout_s=10) as h1:
            transaction = h1.transaction()
            transaction.insert("Host", {"name": "h1", "tunnel_ip": "10.0.0.1"})
            transaction.commit()
            transaction = h1.transaction()
            transaction.delete_where("Host", name="h1")
            transaction.commit()
    with Fabric.connect(f"unix:{places[0].run_dir}/fabric.sock") as operator:
        assert operator.find("Tenant", name="evil") is None
        assert sorted(member.entries(operator)) == ["db0", "db1"]
        found = {row["target"] for row in operator.select("Connection")}
        assert found == {f"pssl:{door}:127.0.0.1" for door in doors}
    assert DATABASE in member.control(places[1].run_dir, "ovsdb-server/list-dbs")


def _answers(remote: str) -> bool:
    try:
        with Fabric.connect(remote, timeout_s=5):
            return True
    except BackendUnavailable:
        return False
