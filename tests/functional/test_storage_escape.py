"""The escape suite: every command of every daemon, every call of librbd and every operation on
objects, with a tenant's key, on what is not its own. Nothing changes anywhere, and nothing secret
is read.

What *is* allowed is listed here, word for word. The last test shows that the suite can fail.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.functional.storage import Svctl

pytestmark = [pytest.mark.functional, pytest.mark.ceph]

# Commands that answer: cluster maps and states, which every RBD client reads, and the settings.
# No key, no image's name, nothing of another tenant's is in them.
ANSWERED = {
    *(
        "config dump",
        "df",
        "features",
        "fsid",
        "health",
        "log last",
        "mon count-metadata",
    ),
    *(
        "mon dump",
        "mon feature ls",
        "mon getmap",
        "mon metadata",
        "mon ok-to-rm",
    ),
    *(
        "mon ok-to-stop",
        "mon stat",
        "mon versions",
        "node ls",
        "osd blacklist ls",
    ),
    *(
        "osd blocked-by",
        "osd blocklist ls",
        "osd count-metadata",
        "osd crush class ls",
    ),
    *(
        "osd crush class ls-osd",
        "osd crush dump",
        "osd crush get-tunable",
    ),
    *(
        "osd crush rule dump",
        "osd crush rule list",
        "osd crush rule ls",
    ),
    *(
        "osd crush show-tunables",
        "osd crush tree",
        "osd crush weight-set dump",
    ),
    *(
        "osd crush weight-set ls",
        "osd df",
        "osd dump",
        "osd erasure-code-profile ls",
    ),
    *(
        "osd find",
        "osd get-require-min-compat-client",
        "osd getcrushmap",
        "osd getmap",
    ),
    *(
        "osd getmaxosd",
        "osd info",
        "osd last-stat-seq",
        "osd ls",
        "osd lspools",
        "osd map",
    ),
    *(
        "osd metadata",
        "osd numa-status",
        "osd perf",
        "osd pool application get",
    ),
    *(
        "osd pool get",
        "osd pool get-quota",
        "osd pool ls",
        "osd pool stats",
        "osd stat",
    ),
    *(
        "osd test-reweight-by-pg",
        "osd test-reweight-by-utilization",
        "osd tree",
        "osd utilization",
        "osd versions",
    ),
    *(
        "quorum_status",
        "report",
        "status",
        "time-sync-status",
        "version",
        "versions",
    ),
}

# The pool's settings, which opening an image lists; and what needs no cluster.
ALLOWED = {
    "default: exec rbd.metadata_list rbd_info",
    "shared: open by id read-only",
    "shared: read rbd_data",
    "shared: stat rbd_data",
    "shared: get_xattrs rbd_data",
    "shared: omap keys rbd_data",
    "shared: omap values rbd_data",
    # librbd watches headers, which can't be notified; nobody watches data.
    "shared: notify rbd_data",
    *(
        f"RBD {label}: {call}"
        for label in ("other", "default")
        for call in (
            "config_list(theirs)",
            "pool_metadata_list(theirs)",
            "features_to_string(0)",
            "version()",
        )
    ),
}
# Of a shared image's header and object map: methods that read.
READ_OF_SHARED = {
    *(
        "hello.replay rbd_header",
        "hello.replay rbd_object_map",
    ),
    *(
        "hello.say_hello rbd_header",
        "hello.say_hello rbd_object_map",
    ),
    *(
        "journal.client_list rbd_header",
        "journal.client_list rbd_object_map",
    ),
    *(
        "journal.get_order rbd_header",
        "lock.list_locks rbd_header",
    ),
    *(
        "lock.list_locks rbd_object_map",
        "rbd.dir_list rbd_header",
    ),
    *(
        "rbd.dir_list rbd_object_map",
        "rbd.get_all_features rbd_header",
    ),
    *(
        "rbd.get_all_features rbd_object_map",
        "rbd.get_create_timestamp rbd_header",
    ),
    *(
        "rbd.get_create_timestamp rbd_object_map",
        "rbd.get_data_pool rbd_header",
    ),
    *(
        "rbd.get_data_pool rbd_object_map",
        "rbd.get_features rbd_header",
    ),
    *(
        "rbd.get_id rbd_object_map",
        "rbd.get_object_prefix rbd_header",
    ),
    *(
        "rbd.get_snapcontext rbd_header",
        "rbd.group_dir_list rbd_header",
    ),
    *(
        "rbd.group_dir_list rbd_object_map",
        "rbd.image_group_get rbd_header",
    ),
    *(
        "rbd.image_group_get rbd_object_map",
        "rbd.metadata_list rbd_header",
    ),
    *(
        "rbd.metadata_list rbd_object_map",
        "rbd.mirror_image_list rbd_header",
    ),
    *(
        "rbd.mirror_image_list rbd_object_map",
        "rbd.mirror_image_map_list rbd_header",
    ),
    *(
        "rbd.mirror_image_map_list rbd_object_map",
        "rbd.mirror_peer_list rbd_header",
    ),
    *(
        "rbd.mirror_peer_list rbd_object_map",
        "rbd.namespace_list rbd_header",
    ),
    *(
        "rbd.namespace_list rbd_object_map",
        "rbd.object_map_load rbd_object_map",
    ),
    *(
        "rbd.op_features_get rbd_header",
        "rbd.op_features_get rbd_object_map",
    ),
    *(
        "rbd.parent_get rbd_header",
        "rbd.parent_get rbd_object_map",
    ),
    *(
        "rbd.trash_list rbd_header",
        "rbd.trash_list rbd_object_map",
    ),
    *(
        "version.read rbd_header",
        "version.read rbd_object_map",
    ),
}
# Its answer is the site's name in the monitors, and it wants a whole connection.
UNTRIED = {"RBD.mirror_site_name_get"}


@pytest.fixture(scope="module")
def request_of_alice(svctl: Svctl) -> Iterator[dict[str, Any]]:
    """Alice has an image; Bob has a secret one, and one that is shared with her."""
    _clear(svctl)
    svctl("pool", "create", "escape", "--pg-num", "4")
    for tenant in ("alice", "bob"):
        svctl("tenant", "create", tenant)
        svctl("namespace", "create", tenant, "--pool", "escape")
    svctl("image", "create", "mine", "--tenant", "alice", "--size", "8MiB")
    for name in ("secret", "golden"):
        svctl("image", "create", name, "--tenant", "bob", "--size", "8MiB")
        _fill(svctl, f"escape/bob/{name}")
        svctl("snapshot", "create", f"{name}@base", "--tenant", "bob", "--protect")
    svctl("image", "share", "golden", "--tenant", "bob", "--with", "alice")
    key = svctl("image", "attach", "mine", "--tenant", "alice")
    yield {
        "user": key["user"],
        "key": key["key"],
        "pool": "escape",
        "own": "alice",
        "own_image": "mine",
        "other": "bob",
        "other_image": "secret",
        "shared_image": "golden",
        "snapshot_id": _snapshot_id(svctl, "escape/bob/secret"),
        "commands": True,
    }
    _clear(svctl)


def test_a_tenants_key_changes_nothing_and_reads_no_secret(
    svctl: Svctl, request_of_alice: dict[str, Any]
) -> None:
    found = svctl.probe("escape_everything", json.dumps(request_of_alice))

    assert found["changed"] == []
    assert found["leaked"] == []
    assert {name.partition(" ")[0] for name in found["answered"]} == {"mon"}
    assert {name.removeprefix("mon ") for name in found["answered"]} <= ANSWERED
    read = {f"shared: exec {method}" for method in READ_OF_SHARED}
    assert set(found["done"]) <= ALLOWED | read
    assert {"shared: read rbd_data", "shared: open by id read-only"} <= set(found["done"])
    assert set(found["untried"]) <= UNTRIED
    assert found["tried"] > 3000


def test_a_clone_reads_its_shared_parent_and_unsharing_waits_for_it(
    svctl: Svctl, request_of_alice: dict[str, Any]
) -> None:
    svctl.host.run(
        [
            *("rbd", "clone", "escape/bob/golden@base", "escape/alice/desk"),
            "--rbd-default-clone-format=2",
        ]
    )
    who = ["--id", request_of_alice["user"], "--key", request_of_alice["key"]]
    export = ["rbd", "export", "--no-progress", *who, "--keyring=/dev/null"]
    parent = svctl.host.run(
        ["sh", "-c", "rbd export --no-progress escape/bob/golden - | sha256sum"]
    )

    clone = svctl.host.run(["sh", "-c", " ".join([*export, "escape/alice/desk", "- | sha256sum"])])
    svctl.host.run(["rbd", "rm", "--no-progress", "escape/alice/desk"])
    left = svctl("image", "unshare", "golden", "--tenant", "bob", "--with", "alice")
    caps = svctl.host.run(["ceph", "auth", "get", "client.virtkit.alice"]).stdout

    assert clone.stdout == parent.stdout
    assert left["shared_with"] == [] and "namespace=bob" not in caps
    svctl("image", "share", "golden", "--tenant", "bob", "--with", "alice")


def test_the_suite_sees_what_stock_caps_let_through(svctl: Svctl) -> None:
    ceph = svctl.host.run
    ceph(["ceph", "osd", "pool", "create", "stock", "4"])
    try:
        ceph(["rbd", "pool", "init", "stock"])
        for tenant, image in (("eve", "mine"), ("bob", "secret")):
            ceph(["rbd", "namespace", "create", f"stock/{tenant}"])
            ceph(["rbd", "create", f"stock/{tenant}/{image}", "--size", "8M"])
        _fill(svctl, "stock/bob/secret")
        ceph(["rbd", "snap", "create", "--no-progress", "stock/bob/secret@base"])
        stock = ["mon", "profile rbd", "osd", "profile rbd pool=stock"]
        key = ceph(["ceph", "auth", "get-or-create-key", "client.eve", *stock]).stdout.strip()

        found = svctl.probe(
            "escape_everything",
            json.dumps(
                {
                    "user": "eve",
                    "key": key,
                    "pool": "stock",
                    "own": "eve",
                    "own_image": "mine",
                    "other": "bob",
                    "other_image": "secret",
                    "shared_image": None,
                    "snapshot_id": _snapshot_id(svctl, "stock/bob/secret"),
                    "commands": False,
                }
            ),
        )
    finally:
        sure = ["stock", "stock", "--yes-i-really-really-mean-it"]
        ceph(["ceph", "osd", "pool", "delete", *sure])
        ceph(["ceph", "auth", "del", "client.eve"])
        ceph(["ceph", "osd", "blocklist", "rm", "10.255.255.1:0/1"], check=False)

    assert {"other: read rbd_data", "other: write rbd_data", "blocklist"} <= set(found["done"])
    assert "blocklist" in found["changed"]
    assert any(name.startswith("bob/rbd_data") for name in found["changed"])


def test_osds_with_cephs_own_caps_are_named_and_narrowed(svctl: Svctl) -> None:
    ceph = svctl.host.run
    wide = ["mon", "allow profile osd", "mgr", "allow profile osd", "osd", "allow *"]
    ceph(["ceph", "auth", "caps", "osd.0", *wide])

    before = svctl("status")["osds_that_copy_for_anybody"]
    narrowed = svctl("harden", "--yes")["narrowed"]

    assert before == narrowed == ["osd.0"]
    assert svctl("status")["osds_that_copy_for_anybody"] == []
    caps = ceph(["ceph", "auth", "get", "osd.0"]).stdout
    assert 'caps osd = "allow * tag rbd virtkit-tier=yes"' in caps
    assert 'caps mon = "allow profile osd"' in caps


def _fill(svctl: Svctl, path: str) -> None:
    size = ["--io-size=4096", "--io-total=64K"]
    svctl.host.run(["rbd", "bench", "--io-type=write", *size, path])


def _snapshot_id(svctl: Svctl, path: str) -> int:
    listed = svctl.host.run(["rbd", "snap", "ls", path, "--format=json"]).stdout
    return int(json.loads(listed)[0]["id"])


def _clear(svctl: Svctl) -> None:
    for tenant in ("alice", "bob"):
        svctl.remove_tenant(tenant)
    if any(pool["name"] == "escape" for pool in svctl("pool", "list")):
        svctl("pool", "delete", "escape", "--yes")
