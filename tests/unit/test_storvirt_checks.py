"""What `svctl doctor` makes of facts, one check at a time."""

from uuid import uuid4

import pytest

from storvirt import checks
from storvirt.checks import DeleteKey, GiveUp, Layer, PromisedImage, Repair, SetCaps, Space
from storvirt.model import ImageName, ImagePath, PoolName, State, TenantName
from tenancy.diagnosis import Finding

RED, VMS = TenantName("red"), PoolName("vms")
CAPS = {"mon": "allow r", "osd": "allow rwx namespace=red tag rbd virtkit=vms"}


def kinds(findings: list[Finding]) -> list[str]:
    return [one.kind for one in findings]


def promised(name: str = "disk", state: State = State.READY, **more: object) -> PromisedImage:
    path = ImagePath(pool=VMS, namespace=RED, name=name)
    return PromisedImage(id=uuid4(), path=path, state=state, **more)  # type: ignore[arg-type]


def space(*images: str, state: State = State.READY) -> Space:
    return Space(tenant=RED, pool=VMS, state=state, images=frozenset(images))


def test_what_is_promised_and_there_is_no_finding() -> None:
    assert checks.images([promised()], [space("disk")], busy=False) == []


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (promised(state=State.CREATING), "image-half-made"),
        (promised(state=State.CREATING, source="disk.qcow2"), "unfinished"),
        (promised(state=State.DELETING), "image-half-deleted"),
        (promised(state=State.RENAMING, old_name="old"), "unfinished"),
        (promised(moving=True), "unfinished"),
        (promised(rollback=True), "unfinished"),
        (promised("gone"), "image-lost"),
    ],
)
def test_what_is_not_finished_is_found(row: PromisedImage, kind: str) -> None:
    assert kinds(checks.images([row], [space("disk")], busy=False)) == [kind] + (
        ["image-unknown"] if row.path.name == "gone" else []
    )


def test_only_what_lost_nothing_is_given_up_and_not_while_somebody_may_be_at_it() -> None:
    blank = promised(state=State.CREATING)
    imported = promised(state=State.CREATING, source="disk.qcow2")
    wanted = GiveUp(RED, ImageName("disk"), blank.id)
    assert [f.mend for f in checks.images([blank], [space()], busy=False)] == [wanted]
    assert [f.mend for f in checks.images([blank], [space()], busy=True)] == [None]
    assert [f.mend for f in checks.images([imported], [space()], busy=False)] == [None]


def test_an_unfinished_image_is_left_over_only_without_its_row() -> None:
    row = promised(state=State.CREATING)
    own, other = f".virtkit-{row.id}", f".virtkit-{uuid4()}"
    found = checks.images([row], [space(own, other)], busy=False)
    assert [(one.kind, one.mend is None) for one in found] == [
        ("image-half-made", False),
        ("image-left-over", False),
    ]
    busy = checks.images([row], [space(own, other)], busy=True)
    assert [one.mend for one in busy] == [None, None]


def test_namespaces_that_ceph_lost_are_made_again() -> None:
    lost = Space(tenant=RED, pool=VMS, state=State.READY, images=None)
    assert [one.mend for one in checks.spaces([lost])] == [Repair(RED, VMS)]
    assert kinds(checks.spaces([space(state=State.CREATING)])) == ["namespace-unfinished"]
    assert checks.spaces([space()]) == []


def keys(found: dict[str, dict[str, str]], *, flux: bool = False) -> list[Finding]:
    in_flux = frozenset({RED}) if flux else frozenset()
    return checks.keys(found, {RED: CAPS}, in_flux, frozenset({"vms"}))


def test_keys_are_compared_with_what_they_should_be() -> None:
    assert keys({"client.virtkit.red": CAPS}) == []
    (missing,) = keys({})
    assert (missing.kind, missing.mend) == ("key-missing", SetCaps(RED))
    (wide,) = keys({"client.virtkit.red": {**CAPS, "mon": "allow *"}})
    assert (wide.kind, wide.mend) == ("caps-differ", SetCaps(RED))
    assert keys({}, flux=True) == []


def test_a_key_of_nobody_goes_unless_another_fabric_may_need_it() -> None:
    blue = {"mon": "allow r", "osd": "allow rwx namespace=blue tag rbd virtkit=vms"}
    theirs = {"mon": "allow r", "osd": "allow rwx namespace=blue tag rbd virtkit=other"}
    own = {"client.virtkit.red": CAPS}
    (found,) = keys({**own, "client.virtkit.blue": blue})
    assert found.mend == DeleteKey("client.virtkit.blue")
    (foreign,) = keys({**own, "client.virtkit.blue": theirs})
    assert (foreign.kind, foreign.mend) == ("key-orphaned", None)
    # Whoever does not say where it reaches is not known to be ours.
    (bare,) = keys({**own, "client.virtkit.blue": {"mon": "allow r"}})
    assert bare.mend is None


def test_clones_and_snapshots_are_compared_with_what_ceph_has() -> None:
    path = promised().path
    well = Layer(
        path=path,
        wants_parent="base@v1",
        parent="vms/red/base@v1",
        wants_snapshots=frozenset({"a"}),
        snapshots=frozenset({"a", "of-a-group"}),
    )
    assert checks.layers([well]) == []
    found = checks.layers(
        [
            Layer(path=path, wants_parent="base@v1", failure="does not exist in Ceph"),
            Layer(path=path, wants_parent="base@v1"),
            Layer(path=path, wants_snapshots=frozenset({"a"})),
        ]
    )
    assert kinds(found) == ["image-unreadable", "clone-without-parent", "snapshot-lost"]


def test_clocks_and_versions_that_are_near_enough_are_no_finding() -> None:
    assert checks.clocks(0.5, {}) == []
    assert kinds(checks.clocks(-5, {"b": 0.2})) == ["clock-skew", "clock-skew"]
    assert checks.versions({"osd": {"16.2.15": 3}, "mon": {"16.2.15": 1}}, "18.2.1") == []
    mixed = checks.versions({"osd": {"16.2.15": 3}, "mon": {"17.2.0": 1}}, "16.2.15")
    assert kinds(mixed) == ["version-differs"]
    assert kinds(checks.versions({"osd": {"16.2.15": 3}}, "19.1.0")) == ["version-differs"]


def test_of_cephs_own_complaints_those_count_that_keep_it_from_working() -> None:
    found = checks.health({"OSD_DOWN": "1 osds down", "POOL_NO_REDUNDANCY": "1 pool"})
    assert [one.object for one in found] == ["Ceph, OSD_DOWN"]
