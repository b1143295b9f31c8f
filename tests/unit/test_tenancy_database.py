"""Databases that are not as they should be, and how that is said."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.waiting import until
from tenancy import service, settings
from tenancy.backends import codec, embedded
from tenancy.backends.fabric import Fabric
from tenancy.errors import BackendUnavailable, InvalidRequest
from tenancy.names import validate_remotes


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("db")
    yield directory
    embedded.stop(directory)


def make(directory: Path, schema: dict, *operations: dict) -> Path:  # type: ignore[type-arg]
    """A database file of this schema."""
    schema_file, file = directory / "schema", directory / "fabric.db"
    schema_file.write_text(json.dumps(schema))
    subprocess.run(["ovsdb-tool", "create", file, schema_file], check=True)
    transaction = json.dumps([schema["name"], *operations])
    subprocess.run(["ovsdb-tool", "transact", file, transaction], check=True, capture_output=True)
    return file


def serve(directory: Path, file: Path) -> str:
    """Serve a file as it is, without converting it."""
    command = embedded.argv(file, [f"punix:{directory}/fabric.sock"], directory)
    command[1:1] = ["--detach", f"--pidfile={directory}/fabric.pid"]
    subprocess.run(command, check=True, capture_output=True, cwd=directory)
    return f"unix:{directory}/fabric.sock"


@pytest.mark.parametrize(
    "text",
    [
        "unix:/run/virtkit/fabric.sock",
        "tcp:10.0.0.1:6640",
        "tcp:[fd00::1]:6640",
        "ssl:10.0.0.1:6640",
        "tcp:db-1.example.org:6640,tcp:db-2.example.org:6640",
    ],
)
def test_an_address_of_a_database(text: str) -> None:
    assert validate_remotes(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "foo",
        "unix:",
        "tcp:1.2.3.4",
        "tcp:host:port",
        "tcp:10.0.0.1:0",
        "tcp:10.0.0.1:99999",
        "ptcp:6640",
        "tcp:10.0.0.1:6640,foo",
    ],
)
def test_what_is_no_address_of_a_database(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not an address of one"):
        validate_remotes(text)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"db = [", "Correct the file"),
        (b"dbx = 1", "unknown field `dbx`"),
        (b'db = "foo"', "is not an address"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_settings_file_that_is_wrong(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "virtkit.toml"
    file.write_bytes(content)

    with pytest.raises(InvalidRequest, match=says):
        settings.load(file=file, environment={})


def test_a_settings_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="can't be read"):
        settings.load(file=tmp_path, environment={})


def test_an_earlier_schema_is_named(directory: Path) -> None:
    schema = json.loads(codec.schema_text())
    del schema["tables"]["Tenant"]["columns"]["labels"]
    del schema["tables"]["Binding"]
    tenant = {"op": "insert", "table": "Tenant", "row": {"name": "red"}}
    remote = serve(directory, make(directory, schema, tenant))

    with Fabric.connect(remote) as fabric:
        with pytest.raises(BackendUnavailable, match=r"Tenant has no column 'labels'.*db start"):
            fabric.select("Tenant")
        with pytest.raises(BackendUnavailable, match="another version's schema"):
            fabric.select_many([("Binding", {}), ("Tenant", {})])


def test_what_a_later_schema_has_added_is_passed_over(directory: Path) -> None:
    schema = json.loads(codec.schema_text())
    schema["tables"]["Tenant"]["columns"]["colour"] = {"type": "string"}
    remote = serve(directory, make(directory, schema, codec.FIRST_ROW))

    with Fabric.connect(remote) as fabric:
        service.create(fabric, "red")
        assert [tenant.name for tenant in service.list_all(fabric)] == ["red"]


def test_a_database_without_its_row_is_named_with_what_makes_it(directory: Path) -> None:
    remote = serve(directory, make(directory, json.loads(codec.schema_text())))

    with Fabric.connect(remote) as fabric:
        with pytest.raises(BackendUnavailable, match="lacks its Fabric row") as caught:
            fabric.top()
        transaction = str(caught.value).split("'")[1]
        subprocess.run(["ovsdb-client", "transact", remote, transaction], check=True)
        assert fabric.top()["next_segment"] == 1


def test_another_database_is_named(directory: Path) -> None:
    schema = {"name": "Other", "tables": {"T": {"columns": {"c": {"type": "string"}}}}}
    remote = serve(directory, make(directory, schema))

    with (
        Fabric.connect(remote) as fabric,
        pytest.raises(BackendUnavailable, match="not another"),
    ):
        fabric.select("Tenant")


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(BackendUnavailable, match=r"/proc/nowhere.* can't be written"):
        embedded.start(Path("/proc/nowhere/fabric.db"), run_dir=Path("/proc/nowhere"))


def test_a_database_served_in_the_foreground(directory: Path) -> None:
    """As a container has it: one process, ended by SIGTERM, the data there for the next."""
    command = [
        *(str(Path(sys.executable).with_name("nvctl")), "db", "run"),
        *("--database", str(directory / "data" / "fabric.db"), "--run-dir", str(directory)),
    ]
    remote = f"unix:{directory}/fabric.sock"
    for turn in range(2):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                until((directory / "fabric.sock").exists, what="it is not served", timeout_s=30)
                with Fabric.connect(remote) as fabric:
                    if turn == 0:
                        service.create(fabric, "red")
                    assert service.get(fabric, "red").name == "red"
            finally:
                server.terminate()
            assert server.wait(15) == -signal.SIGTERM
        assert not (directory / "fabric.sock").exists()
